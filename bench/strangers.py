"""Datagrams that nobody asked for, at a rate.

    python -m bench.strangers SOURCE:PORT TARGET:PORT --rate N --seconds S

Runs in the internet as root. SOURCE may be the VPN server's own address and
port: then they look as if they came from it, and only their tags tell. kind:
data (1,400 bytes with the session's header), control (a control packet of the
session's opcode), mixed (turn by turn). --session: the server's session id in
hex, which everybody on the path sees; without it, any. Prints JSON: how many,
how long.
"""

import argparse
import itertools
import json
import random
import socket
import struct
import time

BURST = 20
SHAPES = {
    # P_DATA_V2, key 0, peer-id 0; P_CONTROL_V1, key 0
    "data": (bytes([9 << 3, 0, 0, 0]), 1400),
    "control": (bytes([4 << 3]), 600),
}
KINDS = (*SHAPES, "mixed")
_IP = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")


def packet(
    source: tuple[str, int], target: tuple[str, int], body: bytes
) -> bytes:
    """IPv4 and UDP, without a checksum, which IPv4 allows."""
    udp = _UDP.pack(source[1], target[1], _UDP.size + len(body), 0) + body
    size = _IP.size + len(udp)
    ends = (socket.inet_aton(source[0]), socket.inet_aton(target[0]))
    return _IP.pack(0x45, 0, size, 0, 0, 64, socket.IPPROTO_UDP, 0, *ends) + udp


def bodies(kind: str, session: bytes) -> list[bytes]:
    dice = random.Random(1)
    starts = {"data": b"", "control": session}
    kinds = SHAPES if kind == "mixed" else (kind,)
    return [
        SHAPES[each][0] + starts[each] + dice.randbytes(SHAPES[each][1])
        for _ in range(50)
        for each in kinds
    ]


def endpoint(text: str) -> tuple[str, int]:
    host, port = text.rsplit(":", 1)
    return host, int(port)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.strangers")
    parser.add_argument("source", type=endpoint)
    parser.add_argument("target", type=endpoint)
    parser.add_argument("--kind", choices=KINDS, default="mixed")
    parser.add_argument("--session", type=bytes.fromhex, default=b"")
    parser.add_argument("--rate", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    packets = itertools.cycle(
        [
            packet(given.source, given.target, each)
            for each in bodies(given.kind, given.session)
        ]
    )
    sent, began = 0, time.monotonic()
    while (passed := time.monotonic() - began) < given.seconds:
        # behind its time it does not catch up: no burst is larger than these
        for _ in range(BURST):
            sock.sendto(next(packets), given.target)
        sent += BURST
        wait = sent / given.rate - passed
        if wait > 0:
            time.sleep(wait)
    took = time.monotonic() - began
    print(json.dumps({"sent": sent, "seconds": took}), flush=True)


if __name__ == "__main__":
    main()
