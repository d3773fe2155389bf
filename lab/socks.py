"""A SOCKS5 proxy that relays datagrams, which no small one of Debian's does.

Source: RFC 1928, 7.
"""

import contextlib
import select
import socket
import threading
from ipaddress import IPv4Address

from lab import addresses as at
from lab.capture import Endpoint
from lab.namespace import Namespace
from lab.relay import DATAGRAM_MAX, POLL, TcpRelay, Way
from lab.services import bind_udp

SOCKS_PORT, RELAY_PORT = 1080, 1081
HEADER = 10


class SocksRelay(TcpRelay):
    """Relays the datagrams of one client at a time, while it stays connected.

    named: where it says that it relays; 0.0.0.0 is wherever it is. extra: a
    prefix of datagrams that it sends besides each one of the server's.
    """

    def __init__(
        self,
        namespace: Namespace,
        server: Endpoint,
        *,
        named: IPv4Address = at.RELAY4,
        extra: bytes = b"",
    ) -> None:
        super().__init__(namespace, server)
        self.endpoint = Endpoint(at.RELAY4, "tcp", SOCKS_PORT)
        self.relay = Endpoint(at.RELAY4, "udp", RELAY_PORT)
        self.targets: set[Endpoint] = set()
        self._named = named
        self._extra = extra

    def _join(self, client: socket.socket) -> None:
        client.settimeout(5)
        client.recv(64)
        client.sendall(b"\x05\x00")
        request = client.recv(64)
        if request[:3] != b"\x05\x03\x00":
            client.sendall(b"\x05\x07\x00\x01" + bytes(6))
            client.close()
            return
        near = bind_udp(self._namespace, self.relay.address, self.relay.port)
        far = bind_udp(self._namespace, at.RELAY4, 0)
        where = self._named.packed + RELAY_PORT.to_bytes(2)
        client.sendall(b"\x05\x00\x00\x01" + where)
        self._streams.append(client)
        pump = threading.Thread(
            target=self._carry, args=(client, near, far), daemon=True
        )
        self._pumps.append(pump)
        pump.start()

    def _carry(
        self, client: socket.socket, near: socket.socket, far: socket.socket
    ) -> None:
        """Carry datagrams both ways, until the client hangs up or stop()."""
        back, source = b"", None
        with near, far:
            while not self._stop.is_set():
                ready, _, _ = select.select([client, near, far], [], [], POLL)
                if client in ready:
                    return
                if near in ready:
                    datagram, source = near.recvfrom(DATAGRAM_MAX)
                    back = datagram[:HEADER]
                    address = IPv4Address(datagram[4:8])
                    port = int.from_bytes(datagram[8:HEADER])
                    self.targets.add(Endpoint(address, "udp", port))
                    self.passed[Way.UP] += 1
                    far.sendto(datagram[HEADER:], (str(address), port))
                if far in ready and source is not None:
                    with contextlib.suppress(OSError):
                        answer = far.recv(DATAGRAM_MAX)
                        self.passed[Way.DOWN] += 1
                        if self._extra:
                            near.sendto(self._extra + answer, source)
                        near.sendto(back + answer, source)
