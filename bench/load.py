"""Traffic, and an exact count of it at both ends.

    python -m bench.load serve ADDRESS      in the internet
    python -m bench.load KIND SECONDS HOST  in the app; prints one JSON line

KIND: up, down, both (one TCP stream each), or small (UDP datagrams of 64 bytes,
SMALL_RATE a second). The sender of a stream stops after SECONDS; the receiver
counts to the end of it, so both counts are the same or something is wrong.
"""

import contextlib
import json
import socket
import struct
import sys
import threading
import time

PORT = 5301
SMALL_SIZE = 64
SMALL_RATE = 20_000
BURST = 20
CHUNK = 1 << 17
_REQUEST = struct.Struct("!4sd")
_COUNT = struct.Struct("!Q")


def tune(sock: socket.socket) -> socket.socket:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
    return sock


def send_for(sock: socket.socket, seconds: float) -> int:
    data, sent = bytes(CHUNK), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sock.sendall(data)
        sent += CHUNK
    sock.shutdown(socket.SHUT_WR)
    return sent


def receive_all(sock: socket.socket) -> int:
    buffer, received = bytearray(1 << 20), 0
    while size := sock.recv_into(buffer):
        received += size
    return received


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise ConnectionError
        data += more
    return data


class Sink(threading.Thread):
    """Counts small datagrams until it is asked."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
        self.sock.bind((address, PORT))
        self.count = 0

    def run(self) -> None:
        while self.sock.recv(2000):
            self.count += 1


def answer(sock: socket.socket, sink: Sink) -> None:
    kind, seconds = _REQUEST.unpack(exactly(sock, _REQUEST.size))
    match kind:
        case b"up  ":
            received = receive_all(sock)
            sock.sendall(_COUNT.pack(received))
        case b"down":
            sent = send_for(sock, seconds)
            # The count goes another way: the stream has been ended.
            answer.counts.append(sent)
        case b"last":
            sock.sendall(_COUNT.pack(answer.counts.pop()))
        case b"sink":
            before = sink.count
            sock.sendall(b"!")
            exactly(sock, 1)
            time.sleep(0.2)
            sock.sendall(_COUNT.pack(sink.count - before))
    sock.close()


answer.counts = []


def serve(address: str) -> None:
    sink = Sink("0.0.0.0")
    sink.start()
    listener = tune(socket.create_server((address, PORT), backlog=16))
    print("ready", flush=True)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=answer, args=(sock, sink), daemon=True).start()


def ask(host: str, kind: bytes, seconds: float = 0) -> socket.socket:
    sock = tune(socket.create_connection((host, PORT), timeout=60))
    sock.sendall(_REQUEST.pack(kind, seconds))
    return sock


def up(host: str, seconds: float) -> tuple[int, int]:
    sock = ask(host, b"up  ", seconds)
    sent = send_for(sock, seconds)
    return sent, _COUNT.unpack(exactly(sock, _COUNT.size))[0]


def down(host: str, seconds: float) -> tuple[int, int]:
    received = receive_all(ask(host, b"down", seconds))
    sock = ask(host, b"last")
    return _COUNT.unpack(exactly(sock, _COUNT.size))[0], received


def both(host: str, seconds: float) -> tuple[int, int]:
    results: list[tuple[int, int]] = []
    thread = threading.Thread(target=lambda: results.append(up(host, seconds)))
    thread.start()
    results.append(down(host, seconds))
    thread.join()
    return sum(each[0] for each in results), sum(each[1] for each in results)


def small(host: str, seconds: float) -> tuple[int, int]:
    control = ask(host, b"sink")
    exactly(control, 1)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((host, PORT))
    data, sent, begin = bytes(SMALL_SIZE), 0, time.monotonic()
    while sent < seconds * SMALL_RATE:
        for _ in range(BURST):
            sock.send(data)
        sent += BURST
        wait = begin + sent / SMALL_RATE - time.monotonic()
        if wait > 0:
            time.sleep(wait)
    control.sendall(b".")
    count = _COUNT.unpack(exactly(control, _COUNT.size))[0]
    return sent, count


KINDS = {"up": up, "down": down, "both": both, "small": small}


def main() -> None:
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
        return
    kind, seconds, host = sys.argv[1:4]
    begin = time.monotonic()
    sent, received = KINDS[kind](host, float(seconds))
    took = time.monotonic() - begin
    print(json.dumps({"sent": sent, "received": received, "seconds": took}))


if __name__ == "__main__":
    main()
