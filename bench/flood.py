"""Datagrams of strangers at a client that runs, and where they got to."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.rig import OUTSIDE, Rig
from bench.run import MismatchError, Session
from bench.variants import CPU_SERVER, environment
from lab.addresses import VPN_PORT
from lab.openvpn import Wrap
from qubes_vpn.wire.control import HEADER_SIZE
from qubes_vpn.wire.opcode import Opcode

RATE = 20_000
# Another address than the server's, on the same link.
STRANGER = "10.99.2.3"
# Of the control channel; what is measured elsewhere has tls-crypt.
OTHER_WRAPS = (Wrap.PLAIN, Wrap.TLS_AUTH, Wrap.TLS_CRYPT_V2)
_ETH_P_ALL = 3
_PORTS = 20


class Ear:
    """Hears the server's session id, as anybody on the path does."""

    def __init__(self, rig: Rig) -> None:
        with rig.internet.enter():
            self._sock = socket.socket(
                socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL)
            )
        self._sock.bind(("downlink", _ETH_P_ALL))
        self._sock.setblocking(False)

    def session_id(self) -> bytes:
        """Of the last reset that the server has answered; call it once."""
        found = b""
        with contextlib.closing(self._sock):
            while packet := self._next():
                datagram = packet[_PORTS + 8 :]
                if (
                    packet[_PORTS : _PORTS + 2] == VPN_PORT.to_bytes(2)
                    and datagram[0] >> 3
                    == Opcode.P_CONTROL_HARD_RESET_SERVER_V2
                ):
                    found = datagram[1:HEADER_SIZE]
        if not found:
            raise MismatchError("no session id was heard")
        return found

    def _next(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            return self._sock.recv(100)
        return b""


def strange(
    running: Session, source: str, *words: str
) -> "subprocess.Popen[bytes]":
    """Start the strangers; they print what they have sent."""
    port, near = client_port(running)
    argv = [*("taskset", "-c", CPU_SERVER), sys.executable, "-m"]
    argv += ["bench.strangers", f"{source}:{VPN_PORT}", f"{near}:{port}"]
    return running.rig.internet.popen(
        [*argv, "--rate", str(RATE), *words],
        stdout=subprocess.PIPE,
        env=environment(),
    )


@contextlib.contextmanager
def flooded(running: Session) -> Iterator[None]:
    """For as long as it lasts, the server's address sends what is not its."""
    process = strange(running, OUTSIDE, "--seconds", "100")
    try:
        yield
        if process.poll() is not None:
            raise MismatchError("the flood ended before the transfer")
    finally:
        process.terminate()
        process.wait()


def client_port(running: Session) -> tuple[int, str]:
    """Where the client's socket is: its port and address."""
    for line in Path(f"/proc/{running.pid}/net/udp").read_text().splitlines():
        words = line.split()
        if words[2].endswith(f":{VPN_PORT:04X}"):
            return int(words[1].split(":")[1], 16), "10.99.2.1"
    return _unconnected(running)


def _unconnected(running: Session) -> tuple[int, str]:
    """Of a client that does not connect its socket: from the server's log."""
    found = running.server.wait_for(r"10\.99\.2\.1:(\d+)")
    return int(found[1]), "10.99.2.1"


def datagrams(running: Session) -> tuple[int, int]:
    """How many UDP took in the VPN qube, and had no socket for.

    Taken: handed to a socket, or the socket had no room.
    """
    text = Path(f"/proc/{running.pid}/net/snmp").read_text()
    names, values = [
        line.split()[1:] for line in text.splitlines() if line[:4] == "Udp:"
    ]
    found = dict(zip(names, map(int, values), strict=True))
    return found["InDatagrams"] + found["RcvbufErrors"], found["NoPorts"]
