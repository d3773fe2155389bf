"""The agent's end of an engine's socket."""

import contextlib
import os
import socket

from qubes_vpn.keeper.codec import receive_record, send_record
from qubes_vpn.runtime import job as jobs
from qubes_vpn.runtime import messages


class EngineTalk:
    """Numbers what is said to one engine, and hears what it says."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sequence = 0

    def fileno(self) -> int:
        """Give the descriptor; readable means `receive` is to be called."""
        return self._sock.fileno()

    def tell(self, message: object, descriptors: tuple[int, ...] = ()) -> None:
        """Say something; a dead engine is noticed by its socket's end."""
        self._sequence += 1
        with contextlib.suppress(OSError):
            send_record(
                self._sock,
                messages.CODEC.encode(self._sequence, message),
                descriptors,
            )

    def tell_job(self, message: object, job: jobs.Job) -> None:
        """Say something that a job goes with."""
        descriptor = jobs.pack(job)
        try:
            self.tell(message, (descriptor,))
        finally:
            os.close(descriptor)

    def receive(self) -> object:
        """Take one message. OSError: it has ended; MessageError."""
        data, descriptors = receive_record(self._sock)
        for descriptor in descriptors:
            os.close(descriptor)
        if not data:
            raise OSError("end of file")
        return messages.CODEC.decode(data)[1]

    def close(self) -> None:
        """Close the socket: the engine then ends."""
        self._sock.close()
