"""Asking the keeper: one request, one reply, in order.

Both roles use it. The engine gets replies only; the agent gets notices too,
between them or instead of them (`receive`).
"""

import fcntl
import os
import socket
import termios
import time
from collections.abc import Callable
from typing import Final, get_args

from qubes_vpn.errors import OsRefusedError
from qubes_vpn.keeper.codec import (
    Codec,
    MessageError,
    receive_record,
    send_record,
)
from qubes_vpn.keeper.messages import (
    AgentRequest,
    EngineRequest,
    Heartbeat,
    Notice,
    Refused,
    Reply,
)

REQUEST_TIMEOUT: Final = 5.0
_REQUESTS: Final = Codec(
    dict.fromkeys((*get_args(AgentRequest), *get_args(EngineRequest)))
)
_ANSWERS: Final = Codec((*get_args(Reply), *get_args(Notice)))


class KeeperRefusedError(OsRefusedError):
    """The keeper said no. reason: the slug of its Refused."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(f"{refused.reason}: {refused.detail}")
        self.reason = refused.reason


class KeeperGoneError(OsRefusedError):
    """The keeper ended or does not answer: the network is closed."""


class KeeperClient:
    """Speaks to the keeper over a SOCK_SEQPACKET socket, which it owns."""

    def __init__(
        self,
        sock: socket.socket,
        on_notice: Callable[[Notice], None] | None = None,
    ) -> None:
        self._sock = sock
        self._on_notice = on_notice
        self._seq = 0
        self._read_at = time.monotonic()

    def fileno(self) -> int:
        """Give the descriptor; readable means `receive` is to be called."""
        return self._sock.fileno()

    def request(
        self,
        message: AgentRequest | EngineRequest,
        descriptors: tuple[int, ...] = (),
        timeout: float = REQUEST_TIMEOUT,
    ) -> tuple[Reply, list[int]]:
        """Send a request and wait for its reply; the descriptors are ours.

        Raises KeeperRefusedError when the keeper says no, KeeperGoneError
        when it is gone or silent for `timeout` seconds.
        """
        self._seq += 1
        deadline = time.monotonic() + timeout
        try:
            self._sock.settimeout(timeout)
            send_record(
                self._sock, _REQUESTS.encode(self._seq, message), descriptors
            )
            while True:
                seq, answer, received = self._next(deadline)
                if seq == self._seq:
                    break
                self._discard(seq, answer, received)
        except (OSError, MessageError) as error:
            raise KeeperGoneError(
                f"no answer to {type(message).__name__}: {error}"
            ) from error
        if isinstance(answer, Refused):
            raise KeeperRefusedError(answer)
        return answer, received

    def beat(self) -> None:
        """Say that the engine lives; nobody waits for an answer.

        Raises KeeperGoneError when the keeper has ended, or has not read
        for REQUEST_TIMEOUT what was said to it.
        """
        now = time.monotonic()
        try:
            # SIOCOUTQ of Linux: bytes that the other end has not read
            if not any(fcntl.ioctl(self._sock, termios.TIOCOUTQ, bytes(4))):
                self._read_at = now
            elif now - self._read_at > REQUEST_TIMEOUT:
                raise TimeoutError("it does not read")
            self._sock.settimeout(REQUEST_TIMEOUT)
            send_record(self._sock, _REQUESTS.encode(0, Heartbeat()))
        except OSError as error:
            raise KeeperGoneError(f"no heartbeat: {error}") from error

    def receive(self) -> None:
        """Take one notice. Raises KeeperGoneError when the keeper is gone."""
        try:
            self._discard(*self._next(time.monotonic() + REQUEST_TIMEOUT))
        except (OSError, MessageError) as error:
            raise KeeperGoneError(str(error)) from error

    def close(self) -> None:
        """Close the socket: the keeper then closes the network."""
        self._sock.close()

    def _next(self, deadline: float) -> tuple[int, Reply, list[int]]:
        self._sock.settimeout(max(deadline - time.monotonic(), 0.001))
        data, received = receive_record(self._sock)
        if not data:
            raise KeeperGoneError("the keeper has ended")
        seq, answer = _ANSWERS.decode(data)
        return seq, answer, received

    def _discard(
        self, seq: int, answer: Reply | Notice, received: list[int]
    ) -> None:
        """Pass a notice on; a late reply is of no use to anybody."""
        for descriptor in received:
            os.close(descriptor)
        if seq == 0 and self._on_notice is not None:
            self._on_notice(answer)  # type: ignore[arg-type]
