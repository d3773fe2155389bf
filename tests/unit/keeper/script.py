"""The keeper's end of an engine's socket, played from a script."""

import contextlib
import os
import socket
from typing import get_args

from lab.background import Background
from qubes_vpn.keeper import messages
from qubes_vpn.keeper.client import KeeperClient
from qubes_vpn.keeper.codec import Codec, receive_record, send_record
from qubes_vpn.keeper.talk import ANSWERS

REQUESTS = Codec(get_args(messages.EngineRequest))


class Script(Background):
    """Keeps what was asked; `answer` says what becomes of it."""

    def __init__(self):
        super().__init__()
        self.asked = []
        ours, self._sock = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET
        )
        self.client = KeeperClient(ours)

    def stop(self):
        self.client.close()
        super().stop()

    def answer(self, request):
        """Give the reply, and descriptors that go with it."""
        raise NotImplementedError

    def _run(self):
        with self._sock as sock, contextlib.suppress(OSError):
            while data := receive_record(sock)[0]:
                seq, request = REQUESTS.decode(data)
                self.asked.append(request)
                reply, given = self.answer(request)
                send_record(sock, ANSWERS.encode(seq, reply), given)
                for descriptor in given:
                    os.close(descriptor)
