"""The link socket: datagrams, or a stream of framed packets.

Both classes send packets and never block. What the network refuses is a
counted drop; a stream that ended raises SessionError.
"""

import errno
import functools
import socket
from collections import deque
from collections.abc import Callable, Generator
from sys import byteorder
from typing import Final

from qubes_vpn.errors import SessionError
from qubes_vpn.wire.framing import LENGTH_SIZE

# What a full queue of data packets may hold, in bytes. Not more: what waits
# here adds to the latency of everything behind it.
QUEUE_MAX: Final = 256 * 1024
# Room behind a packet that opening it may write to.
SPARE: Final = 64
DATAGRAM_MAX: Final = 65_535
STREAM_BUFFER: Final = 2 * DATAGRAM_MAX + SPARE
# linux/udp.h: send one buffer as datagrams of this size; receive likewise.
UDP_SEGMENT: Final = 103
# Segments that every kernel takes in one call, and their size in IPv4.
SEGMENTS_MAX: Final = 64
SEGMENTED_MAX: Final = 65_507
UDP_GRO: Final = 104

Drop = Callable[..., None]
# What recvfrom gives: host, port, and for IPv6 two numbers more.
Address = tuple[str, int] | tuple[str, int, int, int]
Packets = Generator[tuple[memoryview, int], None, None]

# The kernel's refusals, as slugs of drop counters. Anything else is an
# "other" and does not end the session: ping-restart decides that.
_SLUGS: Final = {
    errno.EAGAIN: "full",
    errno.ENOBUFS: "full",
    errno.EPERM: "filtered",
    errno.EMSGSIZE: "too-big",
    errno.ECONNREFUSED: "refused",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETDOWN: "unreachable",
    errno.EIO: "down",
    errno.EINVAL: "invalid",
}


def slug(prefix: str, error: OSError) -> str:
    """Name a refusal of the kernel, such as "link-full"."""
    return f"{prefix}-{_SLUGS.get(error.errno or 0, 'other')}"


class DatagramLink:
    """A non-blocking UDP socket: connected, or to one of many addresses.

    address: where to send on a socket that is not connected.
    When the socket is full, what it did not take is kept and the tun held
    back, as OpenVPN does: a burst of the sender's is not turned into loss
    here.
    """

    stream = False

    def __init__(
        self, sock: socket.socket, drop: Drop, address: Address | None = None
    ) -> None:
        self.sock = sock
        self._drop = drop
        self._address = address
        self._send = (
            sock.send
            if address is None
            else functools.partial(_send_to, sock.sendto, address)
        )
        self._kept: deque[tuple[bytes, int]] = deque()
        self._gso = True
        self._gso_below = DATAGRAM_MAX + 1
        self._buffer: memoryview | None = None

    @property
    def waiting(self) -> bool:
        """Whether something waits for the socket to take it."""
        return bool(self._kept)

    def has_room(self) -> bool:
        """Say whether a data packet may be sealed."""
        return not self._kept

    def send(self, datagram: memoryview | bytes) -> bool:
        """Send one datagram; False when it was dropped (and counted)."""
        try:
            self._send(datagram)
        except OSError as error:
            return self._refused(datagram, error)
        return True

    def send_run(self, run: memoryview, size: int, count: int) -> None:
        """Send `count` datagrams of `size` bytes; the last may be shorter.

        In one call, where the kernel takes UDP_SEGMENT: for good not where
        it says EIO or EINVAL (no checksums by the device, or too old), and
        not from this size on where it says EMSGSIZE (the path's MTU).
        """
        if self._kept:
            self._keep(run, size)
        elif count == 1:
            self.send(run)
        elif not self._gso or size >= self._gso_below:
            self._send_singly(run, size)
        else:
            most = min(SEGMENTS_MAX, SEGMENTED_MAX // size) * size
            for begin in range(0, len(run), most):
                part = run[begin : begin + most]
                if self._kept:
                    self._keep(part, size)
                else:
                    self._send_at_once(part, size, -(-len(part) // size))

    def _send_at_once(self, run: memoryview, size: int, count: int) -> None:
        control = [(socket.SOL_UDP, UDP_SEGMENT, size.to_bytes(2, byteorder))]
        for again in (True, False):
            try:
                self.sock.sendmsg((run,), control, 0, self._address)
            except OSError as error:
                number = error.errno
                if number == errno.ECONNREFUSED and again:
                    continue
                if number in (errno.EIO, errno.EINVAL):
                    self._gso = False
                elif number == errno.EMSGSIZE:
                    self._gso_below = size
                elif number == errno.EAGAIN:
                    self._keep(run, size)
                    return
                else:
                    self._drop(slug("link", error), count)
                    return
                self._send_singly(run, size)
            return

    def _send_singly(self, run: memoryview, size: int) -> None:
        for begin in range(0, len(run), size):
            if self._kept:
                self._keep(run[begin:], size)
                return
            self.send(run[begin : begin + size])

    def _keep(self, run: memoryview, size: int) -> None:
        """Keep a run for later: bounded by has_room, which callers ask."""
        self._kept.append((bytes(run), size))

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it."""
        kept, self._kept = self._kept, deque()
        while kept:
            run, size = kept.popleft()
            self.send_run(memoryview(run), size, -(-len(run) // size))
            if self._kept:
                self._kept.extend(kept)
                return

    def _refused(self, datagram: memoryview | bytes, error: OSError) -> bool:
        if error.errno == errno.ECONNREFUSED:
            # What came back for an earlier one; this one was not sent yet.
            try:
                self._send(datagram)
            except OSError as again:
                error = again
            else:
                return True
        if error.errno == errno.EAGAIN and not self._kept:
            self._kept.append((bytes(datagram), len(datagram)))
            return True
        self._drop(slug("link", error))
        return False

    def packets(self, limit: int) -> Packets:
        """Give up to `limit` packets: a buffer, and the packet's size in it.

        The packet is at the buffer's start, with SPARE bytes behind it, and
        valid until the next one.
        """
        if self._buffer is None:
            self._buffer = memoryview(bytearray(DATAGRAM_MAX + SPARE))
        receive, buffer = self.sock.recv_into, self._buffer
        window = buffer[:DATAGRAM_MAX]
        for _ in range(limit):
            try:
                size = receive(window)
            except BlockingIOError:
                return
            except OSError as error:
                self._drop(slug("link", error))
                continue
            yield buffer, size


class StreamLink:
    """A connected, non-blocking TCP socket; each packet after its length.

    OpenVPN's peers want packet ids without a gap over TCP, so nothing is
    dropped once it is sealed: ask has_room before.
    """

    stream = True

    def __init__(
        self,
        sock: socket.socket,
        drop: Drop,
        buffer: memoryview | None = None,
        packet_max: int = DATAGRAM_MAX,
    ) -> None:
        """buffer: STREAM_BUFFER bytes; links of one thread may share it.

        packet_max: the longest packet that the peer may send.
        """
        self.sock = sock
        self._drop = drop
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._buffer = buffer or memoryview(bytearray(STREAM_BUFFER))
        self._packet_max = packet_max
        self._end = 0
        self._rest = b""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def waiting(self) -> bool:
        """Whether something waits for the socket to take it."""
        return bool(self._queue)

    def has_room(self) -> bool:
        """Say whether a data packet may be sealed."""
        return self._queued < QUEUE_MAX

    @property
    def unsent(self) -> tuple[memoryview, ...]:
        """What waits for the socket to take it."""
        return tuple(self._queue)

    def forget_unsent(self) -> None:
        """Give up what waits: the stream is broken."""
        self._queue.clear()
        self._queued = 0

    @property
    def unread(self) -> bytes:
        """What was received, and is no whole packet yet."""
        return self._rest

    def resume(self, other: "StreamLink") -> None:
        """Go on, in mid-packet, where another on this socket stopped."""
        self._rest = other.unread
        for frames in other.unsent:
            self.send_frames(frames)

    def send(self, packet: memoryview | bytes) -> bool:
        """Send one packet, now or later. Raises SessionError."""
        return self.send_frames(
            len(packet).to_bytes(LENGTH_SIZE) + bytes(packet)
        )

    def send_frames(self, frames: bytes | memoryview) -> bool:
        """Send packets that have their lengths before them."""
        sent = 0
        if not self._queue:
            sent = self._try(frames)
            if sent == len(frames):
                return True
        rest = memoryview(bytes(memoryview(frames)[sent:]))
        self._queue.append(rest)
        self._queued += len(rest)
        return True

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it."""
        while self._queue:
            head = self._queue[0]
            sent = self._try(head)
            self._queued -= sent
            if sent < len(head):
                self._queue[0] = head[sent:]
                return
            self._queue.popleft()

    def _try(self, frames: bytes | memoryview) -> int:
        try:
            return self.sock.send(frames)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise _closed(error) from error

    def receive(self) -> memoryview:
        """Read once; give what is there and was not consumed.

        Call consume then. Raises SessionError "link-closed" when the stream
        has ended.
        """
        kept = len(self._rest)
        self._buffer[:kept] = self._rest
        try:
            size = self.sock.recv_into(self._buffer[kept:-SPARE])
        except BlockingIOError:
            size = 0
        except OSError as error:
            raise _closed(error) from error
        else:
            if not size:
                raise SessionError("link-closed", "the server closed it")
        self._end = kept + size
        return self._buffer[: self._end]

    def consume(self, size: int) -> None:
        """Keep all but the first `size` bytes of what receive gave.

        Raises SessionError "link-framing" when a packet that is too long
        begins there.
        """
        self._rest = rest = bytes(self._buffer[size : self._end])
        if int.from_bytes(rest[:LENGTH_SIZE]) > self._packet_max:
            raise SessionError("link-framing", "a packet that is too long")

    def packets(self, limit: int) -> Packets:
        """Give the whole packets of one read, as DatagramLink does.

        limit is not used: a read bounds them. What opening a packet writes
        behind it is put back: the next packet is there.
        """
        del limit
        data = self.receive()
        start = 0
        buffer = self._buffer
        while size := packet_size(data[start:]):
            body = start + LENGTH_SIZE
            start = body + size
            behind = bytes(buffer[start : start + SPARE])
            yield buffer[body:], size
            buffer[start : start + SPARE] = behind
        self.consume(start)


def packet_size(frames: memoryview) -> int:
    """Give the size of the packet at the start; 0 if it is not whole.

    Raises SessionError "link-framing" where no packet can begin.
    """
    if len(frames) <= LENGTH_SIZE:
        return 0
    size = frames[0] << 8 | frames[1]
    if not size:
        raise SessionError("link-framing", "a packet of 0 bytes")
    return size if len(frames) >= LENGTH_SIZE + size else 0


def _send_to(
    sendto: Callable[[memoryview | bytes, Address], int],
    address: Address,
    datagram: memoryview | bytes,
) -> int:
    return sendto(datagram, address)


def _closed(error: OSError) -> SessionError:
    return SessionError("link-closed", error.strerror or "")
