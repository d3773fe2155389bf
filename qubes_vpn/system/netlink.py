"""Netlink by pyroute2, with this project's errors.

pyroute2's message classes say what a message looks like, its sockets carry
it. What is added here: a dump that changed while it was read is read again,
and notifications are taken without waiting, so that their descriptor can be
watched in a loop of our own. Source: netlink(7).
"""

import os
import select
import struct
from collections.abc import Iterable, Iterator, Mapping
from socket import MSG_DONTWAIT
from typing import Any, Final, TypeAlias

from qubes_vpn.errors import OsRefusedError
from qubes_vpn.system.pyroute import NetlinkSocket, exceptions, netlink

# name in the message's class, value
Attribute: TypeAlias = tuple[str, Any]

_HEADER_SIZE: Final = 16
_RECEIVE_SIZE: Final = 1 << 16
_DUMP_TRIES: Final = 5
_STATUS: Final = struct.Struct("=i")


class NetlinkError(OsRefusedError):
    """The kernel said no. number: its errno, positive."""

    def __init__(self, number: int, what: str, why: str = "") -> None:
        reason = os.strerror(number)
        if why == reason:
            why = ""
        super().__init__(f"{what}: {reason}{': ' if why else ''}{why}")
        self.number = number


def message(
    kind: type, attributes: Iterable[Attribute] = (), **fields: int | bytes
) -> netlink.nlmsg:
    """Make a message of a class; fields that are not given are 0."""
    made = kind()
    made.load({**fields, "attrs": list(attributes)})
    return made


class AsSeen(netlink.nlmsg):
    """A message whose payload was received: sent back as it was."""

    fields = (("body", "s"),)
    zstring = 0


def payload(found: netlink.nlmsg) -> bytes:
    """Give a received message without its header, for AsSeen."""
    start, size = found.offset, found["header"]["length"]
    return bytes(found.data[start + _HEADER_SIZE : start + size])


class Requests:
    """A socket that asks and waits for the answer.

    answers: classes of the messages it gets, by the message's type.
    """

    def __init__(self, protocol: int, answers: Mapping[int, type]) -> None:
        self._sock = _open(protocol, answers)
        self._ready = select.poll()
        self._ready.register(self._sock.fileno(), select.POLLIN)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def expect(self, kind: int, answer: type) -> None:
        """Take messages of this type, too, for ones of this class."""
        self._sock.register_policy(kind, answer)

    def request(
        self, what: str, kind: int, asked: netlink.nlmsg, flags: int = 0
    ) -> None:
        """Send a request and wait for the kernel's yes. NetlinkError."""
        self._exchange(what, kind, asked, netlink.NLM_F_ACK | flags)

    def get(self, what: str, kind: int, asked: netlink.nlmsg) -> netlink.nlmsg:
        """Ask for one object. NetlinkError."""
        # an answer is an acknowledgement: nobody would take another
        found, _ = self._exchange(what, kind, asked, 0)
        return found[0]

    def dump(
        self, what: str, kind: int, asked: netlink.nlmsg
    ) -> list[netlink.nlmsg]:
        """Ask for all objects; asked again when one changed meanwhile."""
        for _ in range(_DUMP_TRIES):
            found, interrupted = self._exchange(
                what, kind, asked, netlink.NLM_F_DUMP
            )
            if not interrupted:
                return found
        raise OsRefusedError(f"{what}: it changes faster than it is read")

    def _exchange(
        self, what: str, kind: int, asked: netlink.nlmsg, flags: int
    ) -> tuple[list[netlink.nlmsg], bool]:
        """Give the answers, and whether they belong to several states.

        By hand: nlm_request does not tell how a dump ended, and runs an
        event loop for each message, for three times the time.
        """
        self._sequence += 1
        asked["header"]["type"] = kind
        asked["header"]["flags"] = netlink.NLM_F_REQUEST | flags
        asked["header"]["sequence_number"] = self._sequence
        asked.reset()
        asked.encode()
        found: list[netlink.nlmsg] = []
        interrupted = False
        try:
            self._sock.sendto(asked.data, (0, 0))
            for each in self._answers():
                header = each["header"]
                interrupted |= bool(header["flags"] & netlink.NLM_F_DUMP_INTR)
                if header["error"]:
                    raise header["error"]
                if header["type"] == netlink.NLMSG_DONE:
                    break
                found.append(each)
                if not header["flags"] & netlink.NLM_F_MULTI:
                    break
        except exceptions.NetlinkError as error:
            raise NetlinkError(error.code, what, error.args[1]) from None
        except OSError as error:
            raise OsRefusedError(f"{what}: {error.strerror}") from error
        status = _status(each)
        if status:
            raise NetlinkError(-status, what)
        return found, interrupted

    def _answers(self) -> Iterator[netlink.nlmsg]:
        """Give what comes; it waits, as pyroute2 0.9's sockets do not."""
        while True:
            self._ready.poll()
            data = self._sock.recv(_RECEIVE_SIZE)
            for each in self._sock.marshal.parse(data):
                if each["header"]["sequence_number"] == self._sequence:
                    yield each


def _status(last: netlink.nlmsg) -> int:
    """Give the errno, negative, with which a dump ended."""
    body = payload(last)
    done = last["header"]["type"] == netlink.NLMSG_DONE
    return int(_STATUS.unpack_from(body)[0]) if done and body else 0


class Notices:
    """A socket that hears what the kernel tells these multicast groups."""

    def __init__(
        self,
        protocol: int,
        groups: Iterable[int],
        classes: Mapping[int, type] | None = None,
    ) -> None:
        self._sock = _open(protocol, classes or {})
        try:
            for group in groups:
                self._sock.setsockopt(
                    netlink.SOL_NETLINK, netlink.NETLINK_ADD_MEMBERSHIP, group
                )
        except OSError as error:
            self._sock.close()
            raise OsRefusedError(f"netlink: {error.strerror}") from error

    def fileno(self) -> int:
        """Give the descriptor, to watch for notifications."""
        number: int = self._sock.fileno()
        return number

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def receive(self) -> list[netlink.nlmsg]:
        """Give the notifications that are there, without waiting.

        Raises OsRefusedError when some were lost.
        """
        found: list[netlink.nlmsg] = []
        while True:
            try:
                data = self._sock.recv(_RECEIVE_SIZE, MSG_DONTWAIT)
            except BlockingIOError:
                return found
            except OSError as error:
                raise OsRefusedError(f"netlink: {error.strerror}") from error
            found.extend(self._sock.marshal.parse(data))


def _open(protocol: int, classes: Mapping[int, type]) -> NetlinkSocket:
    try:
        sock = NetlinkSocket(protocol, ext_ack=True, strict_check=True)
    except OSError as error:
        raise OsRefusedError(f"netlink: {error.strerror}") from error
    try:
        sock.bind()
    except (OSError, KeyError) as error:
        sock.close()
        raise OsRefusedError(f"netlink: no address: {error}") from error
    sock.register_policy(dict(classes))
    return sock
