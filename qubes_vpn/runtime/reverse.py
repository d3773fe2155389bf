"""Answers reverse lookups of private addresses: there is no such name.

A process of its own, started by its socket (systemd's LISTEN_FDS) and ended
after IDLE_S without a question. It has this one socket and nothing else: no
network, no file, no right, no memory of what it was asked. The filter brings
it such questions of the qubes, and no others (policy.dns).
Source: RFC 6303; without it the resolver of the VPN gets them (#10706).
"""

import contextlib
import os
import socket
import sys
from ipaddress import ip_address
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.reversename

LISTEN_FD: Final = 3
IDLE_S: Final = 30.0
QUERY_MAX: Final = 1500


def answer(untrusted: bytes) -> bytes | None:
    """Give the answer to one query; None for what is none."""
    try:
        query = dns.message.from_wire(
            untrusted, question_only=True, ignore_trailing=True
        )
        (question,) = query.question
        reply = dns.message.make_response(query, recursion_available=True)
    except (dns.exception.DNSException, ValueError):
        return None
    reply.set_rcode(
        dns.rcode.NXDOMAIN if _is_private(question.name) else dns.rcode.REFUSED
    )
    return reply.to_wire()


def _is_private(name: dns.name.Name) -> bool:
    try:
        return ip_address(dns.reversename.to_address(name)).is_private
    except (dns.exception.DNSException, ValueError):
        return False


def serve(sock: socket.socket) -> None:
    """Answer until nobody has asked for IDLE_S."""
    sock.settimeout(IDLE_S)
    while True:
        try:
            query, peer = sock.recvfrom(QUERY_MAX)
        except TimeoutError:
            return
        reply = answer(query)
        if reply is not None:
            # a qube that is gone meanwhile
            with contextlib.suppress(OSError):
                sock.sendto(reply, peer)


def main() -> int:
    """Serve the socket that systemd gives."""
    if os.environ.get("LISTEN_FDS") != "1":
        print("started by qubes-vpn-reverse.socket only", file=sys.stderr)  # noqa: T201
        return os.EX_USAGE
    with socket.socket(fileno=LISTEN_FD) as sock:
        serve(sock)
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
