"""Traffic, and an exact count of it at both ends.

    python -m bench.load serve            in the internet, until killed
    python -m bench.load KIND HOST [...]  in the app; prints `ready`, begins
                                          when it reads a line, prints JSON

up, down and both move --bytes over --flows TCP streams: always the same
amount, so that clients are compared over the same work. small sends --seconds
of UDP datagrams of --size bytes, --rate a second, over --flows in turn. One
thread and one epoll at each end, for one flow as for a thousand.
"""

import argparse
import itertools
import json
import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Generator

PORT = 5301
SO_RCVBUFFORCE = 33
SMALL_SIZE = 64
BURST = 20
CHUNK = 1 << 17
WAIT = 120.0
_REQUEST = struct.Struct("!4sQ")
_COUNT = struct.Struct("!Q")
_ZEROS = memoryview(bytes(CHUNK))
_BUFFER = bytearray(1 << 20)
# Yields what it waits for, returns what it counted.
Task = Generator[int, None, int]


class Loop:
    """Runs a task a socket until all have ended."""

    def __init__(self) -> None:
        self.poll = select.epoll()
        self.tasks: dict[int, tuple[socket.socket, Task]] = {}
        self.masks: dict[int, int] = {}
        self.counted = 0

    def add(self, sock: socket.socket, task: Task) -> None:
        sock.setblocking(False)
        fd, mask = sock.fileno(), next(task)
        self.tasks[fd], self.masks[fd] = (sock, task), mask
        self.poll.register(fd, mask)

    def turn(self, timeout: float = WAIT) -> None:
        for fd, _ in self.poll.poll(timeout):
            sock, task = self.tasks[fd]
            try:
                if (mask := next(task)) != self.masks[fd]:
                    self.poll.modify(fd, mask)
                    self.masks[fd] = mask
                continue
            except StopIteration as end:
                self.counted += end.value
            except OSError as error:
                print(f"load: {error}", file=sys.stderr)
            self.poll.unregister(fd)
            del self.tasks[fd]
            sock.close()

    def run(self, limit: float = WAIT) -> None:
        """Until no task is left, or the time is over."""
        end = time.monotonic() + limit
        while self.tasks and time.monotonic() < end:
            self.turn(1.0)


def sending(sock: socket.socket, size: int) -> Task:
    left = size
    while left:
        yield select.EPOLLOUT
        left -= sock.send(_ZEROS[: min(left, CHUNK)])
    sock.shutdown(socket.SHUT_WR)
    return size


def receiving(sock: socket.socket) -> Task:
    total = 0
    while True:
        yield select.EPOLLIN
        size = sock.recv_into(_BUFFER)
        if not size:
            return total
        total += size


def sent_up(sock: socket.socket, size: int) -> Task:
    """Send, and have the far end say what it got."""
    yield from sending(sock, size)
    yield select.EPOLLIN
    return int(_COUNT.unpack(sock.recv(_COUNT.size))[0])


def answering(sock: socket.socket, sink: "Sink") -> Task:
    """Do what the first bytes of a connection ask for."""
    yield select.EPOLLIN
    kind, size = _REQUEST.unpack(sock.recv(_REQUEST.size))
    match kind:
        case b"up  ":
            got = yield from receiving(sock)
            sock.send(_COUNT.pack(got))
        case b"down":
            yield from sending(sock, size)
            # until the other end has it all
            yield from receiving(sock)
        case b"sink":
            sock.send(_COUNT.pack(sink.count))
        case _:
            raise OSError("not our traffic")
    return 0


class Sink:
    """Counts small datagrams."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 23)
        self.sock.bind(("0.0.0.0", PORT))
        self.count = 0

    def counting(self) -> Task:
        while True:
            yield select.EPOLLIN
            self.sock.recv_into(_BUFFER)
            self.count += 1


def cubic(sock: socket.socket) -> socket.socket:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
    return sock


def accepting(listener: socket.socket, loop: Loop, sink: Sink) -> Task:
    while True:
        yield select.EPOLLIN
        sock, _ = listener.accept()
        loop.add(sock, answering(sock, sink))


def serve() -> None:
    loop, sink = Loop(), Sink()
    loop.add(sink.sock, sink.counting())
    listener = cubic(socket.create_server(("0.0.0.0", PORT), backlog=2048))
    loop.add(listener, accepting(listener, loop, sink))
    print("ready", flush=True)
    while True:
        loop.turn()


def begin() -> float:
    print("ready", flush=True)
    sys.stdin.readline()
    return time.monotonic()


def connect(host: str) -> socket.socket:
    return cubic(socket.create_connection((host, PORT), timeout=WAIT))


def bulk(given: argparse.Namespace) -> dict[str, float]:
    """Streams; all are connected before the first byte."""
    kinds = ("up", "down") if given.kind == "both" else (given.kind,)
    size = given.bytes // given.flows
    socks = [
        (kind, connect(given.host))
        for kind in kinds
        for _ in range(given.flows)
    ]
    loop, began = Loop(), begin()
    for kind, sock in socks:
        sock.sendall(_REQUEST.pack(kind.ljust(4).encode(), size))
        up = kind == "up"
        loop.add(sock, sent_up(sock, size) if up else receiving(sock))
    loop.run()
    took = time.monotonic() - began
    sent = size * len(socks)
    return {"sent": sent, "received": loop.counted, "seconds": took}


def counted(host: str) -> int:
    with connect(host) as sock:
        sock.sendall(_REQUEST.pack(b"sink", 0))
        return int(_COUNT.unpack(sock.recv(_COUNT.size))[0])


def small(given: argparse.Namespace) -> dict[str, float]:
    before = counted(given.host)
    socks = []
    for _ in range(given.flows):
        socks.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        socks[-1].connect((given.host, PORT))
    turn = itertools.cycle(socks)
    data, sent, began = bytes(given.size), 0, begin()
    while sent < given.seconds * given.rate:
        for _ in range(BURST):
            next(turn).send(data)
        sent += BURST
        wait = began + sent / given.rate - time.monotonic()
        if wait > 0:
            time.sleep(wait)
    took = time.monotonic() - began
    time.sleep(0.3)
    received = counted(given.host) - before
    return {"sent": sent, "received": received, "seconds": took}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.load")
    kinds = ("serve", "up", "down", "both", "small")
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("host", nargs="?", default="")
    parser.add_argument("--bytes", type=int, default=1 << 26)
    parser.add_argument("--flows", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--size", type=int, default=SMALL_SIZE)
    parser.add_argument("--rate", type=int, default=20_000)
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
    if given.kind == "serve":
        serve()
    else:
        run = small if given.kind == "small" else bulk
        print(json.dumps(run(given)), flush=True)


if __name__ == "__main__":
    main()
