"""The sockets of agent and engine: requests in, answers and notices out."""

import contextlib
import os
import select
import socket
from collections.abc import Callable
from typing import Final, get_args

from qubes_vpn.keeper import messages
from qubes_vpn.keeper.codec import (
    Codec,
    MessageError,
    receive_record,
    send_record,
)

AGENT: Final = Codec(get_args(messages.AgentRequest))
ENGINE: Final = Codec(get_args(messages.EngineRequest))
ANSWERS: Final = Codec((*get_args(messages.Reply), *get_args(messages.Notice)))

# What is said, and the descriptors that go with it.
Answer = tuple[messages.Reply, list[int]]


class EndedError(Exception):
    """The conversation is over. reason: its slug."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def serve(
    sock: socket.socket,
    codec: Codec,
    do: Callable[[object, list[int]], Answer],
) -> None:
    """Take one request, and answer it, unless its number is 0.

    EndedError: also for what is no request.
    """
    try:
        data, received = receive_record(sock)
    except (OSError, MessageError):
        raise EndedError("bad-message") from None
    if not data:
        raise EndedError("gone")
    try:
        seq, request = codec.decode(data)
    except (MessageError, ValueError):
        _close_all(received)
        raise EndedError("bad-message") from None
    answer, given = do(request, received)
    _close_all(received)
    try:
        if seq:
            send_record(sock, ANSWERS.encode(seq, answer), given)
    except OSError:
        raise EndedError("gone") from None
    finally:
        _close_all(given)


def tell(sock: socket.socket, notice: messages.Notice) -> None:
    """Send a notice; one that does not listen misses it."""
    # its end is seen when it is read from
    with contextlib.suppress(OSError):
        send_record(sock, ANSWERS.encode(0, notice))


def has_words(sock: socket.socket) -> bool:
    """Tell whether something waits to be read."""
    return bool(select.select([sock], [], [], 0)[0])


def has_ended(sock: socket.socket) -> bool:
    """Tell whether the other end is gone, and nothing is left to read."""
    if not has_words(sock):
        return False
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except OSError:
        return True


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
