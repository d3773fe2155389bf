"""A server's sockets: who is where, and what may be sent now.

One thread. Clients come over UDP, all of them on the same few sockets, or have
a connection of their own. What moves their packets is a subclass.
"""

import selectors
import socket
from collections import Counter
from typing import Final

from qubes_vpn.dataplane.link import Address, DatagramLink
from qubes_vpn.engine.hello import Source
from qubes_vpn.runtime.server_clients import Client
from qubes_vpn.runtime.server_events import Control, OnEvents
from qubes_vpn.runtime.server_stream import Connection, Connections
from qubes_vpn.wire.opcode import Opcode

DATA_V1: Final = int(Opcode.P_DATA_V1)
DATA_V2: Final = int(Opcode.P_DATA_V2)
# The first bytes that tell whose datagram it is.
HEAD_SIZE: Final = 4
DATA: Final = frozenset({DATA_V1, DATA_V2})


class ServerSockets:
    """Knows the clients by their sockets, and watches those and the device.

    selector: the data of its keys are OnEvents. tun: the device's
    descriptor, non-blocking; None where the kernel moves the packets.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        tun: int | None,
        control: Control,
        connections_max: int,
    ) -> None:
        self.clients: dict[int, Client] = {}
        self.drops: Counter[str] = Counter()
        self._selector = selector
        self._tun = tun
        self._control = control
        self._connections = Connections(
            selector, self._from_stream, self.drops, connections_max
        )
        self._sockets: list[socket.socket] = []
        self._by_address: dict[tuple[int, Address], Client] = {}
        # Clients for whose packets the socket has had no room.
        self._held: dict[int, Client] = {}
        self._watch_tun()

    def _from_tun(self) -> None:
        raise NotImplementedError

    def _from_udp(self, number: int, sock: socket.socket) -> None:
        raise NotImplementedError

    def _from_stream(self, connection: Connection) -> None:
        raise NotImplementedError

    def listen(self, sock: socket.socket) -> None:
        """Receive on a UDP socket, or accept on a listening TCP one."""
        number = len(self._sockets)
        self._sockets.append(sock)
        stream = sock.type == socket.SOCK_STREAM

        def ready(events: int) -> None:
            if stream:
                self._connections.accept(sock)
                return
            if events & selectors.EVENT_WRITE:
                self._release(sock)
            if events & selectors.EVENT_READ:
                self._from_udp(number, sock)

        self._selector.register(sock, selectors.EVENT_READ, OnEvents(ready))

    def send_to(self, source: Source, datagram: bytes) -> None:
        """Send a control packet."""
        connection = self._connections.get(source)
        if connection is not None:
            connection.stream.send(datagram)
            return
        if source.socket >= len(self._sockets):
            return  # its connection has ended
        sock = self._sockets[source.socket]
        try:
            sock.sendto(datagram, _sockaddr(sock, source))
        except OSError:
            self.drops["link"] += 1

    def attach(self, client: Client) -> None:
        """Let a client's data packets pass: it has keys."""
        self.clients[client.number] = client
        connection = self._connections.get(client.source)
        if connection is not None:
            connection.client = client
            client.link = connection.stream
        else:
            self._place(client, client.source)

    def detach(self, client: Client) -> None:
        """Forget a client."""
        del self.clients[client.number]
        self._unplace(client)
        self._let_go(client)
        self.drops.update(client.channel.drops)

    def hang_up(self, source: Source) -> None:
        """Close the TCP connection of a source, if it is one."""
        self._connections.hang_up(source)

    def hang_up_strangers(self, before: float) -> None:
        """Close connections since `before` that never became clients."""
        for connection in self._connections:
            if connection.client is None and connection.since < before:
                self._end(connection)

    def close(self) -> None:
        """Close all sockets; the device is the caller's."""
        for connection in self._connections:
            self.hang_up(connection.source)
        for sock in self._sockets:
            self._selector.unregister(sock)
            sock.close()
        if self._tun is not None and not self._held:
            self._selector.unregister(self._tun)

    def _end(self, connection: Connection) -> None:
        if self._connections.hang_up(connection.source):
            self._control.closed(connection.source)

    # --- where a client is

    def _whose(
        self, number: int, head: bytes, address: Address
    ) -> Client | None:
        """Say whose data packet begins so; nobody over TCP sends datagrams."""
        if head[0] >> 3 == DATA_V2:
            client = self.clients.get(int.from_bytes(head[1:4]))
        else:
            client = self._by_address.get((number, address))
        return None if client is None or client.at_tcp else client

    def _is_at(self, client: Client, number: int, address: Address) -> bool:
        return (
            client.address == address and client.sock is self._sockets[number]
        )

    def follow(self, client: Client, source: Source) -> None:
        """Send to the client at its new address from now on."""
        self._unplace(client)
        client.source = source
        self._place(client, source)
        client.floated += 1

    def _place(self, client: Client, source: Source) -> None:
        sock = self._sockets[source.socket]
        client.sock = sock
        client.address = _sockaddr(sock, source)
        self._let_go(client)
        client.link = DatagramLink(sock, client.channel.drop, client.address)
        self._by_address[source.socket, client.address] = client

    def _unplace(self, client: Client) -> None:
        if client.address is not None:
            key = (client.source.socket, client.address)
            if self._by_address.get(key) is client:
                del self._by_address[key]

    # --- sockets that are full

    def _watch_tun(self) -> None:
        if self._tun is not None:
            self._selector.register(
                self._tun,
                selectors.EVENT_READ,
                OnEvents(lambda _events: self._from_tun()),
            )

    def _hold(self, client: Client) -> None:
        """Hold the tun back: a UDP socket has not taken all for a client."""
        if not self._held and self._tun is not None:
            self._selector.unregister(self._tun)
        self._held[client.number] = client
        assert client.sock is not None
        self._want(client.sock, selectors.EVENT_READ | selectors.EVENT_WRITE)

    def _release(self, sock: socket.socket) -> None:
        """Send what waits for this socket, as far as it goes."""
        for client in list(self._held.values()):
            if client.sock is sock and client.link is not None:
                client.link.flush()
                if not client.link.waiting:
                    self._let_go(client)
        if not any(client.sock is sock for client in self._held.values()):
            self._want(sock, selectors.EVENT_READ)

    def _let_go(self, client: Client) -> None:
        if self._held.pop(client.number, None) and not self._held:
            self._watch_tun()

    def _want(self, sock: socket.socket, events: int) -> None:
        key = self._selector.get_key(sock)
        if key.events != events:
            self._selector.modify(sock, events, key.data)


def head_of(start: bytes) -> bytes:
    """Cut a datagram's first bytes to what is the same for all of a peer.

    With a peer id that are HEAD_SIZE bytes, else the opcode and key id.
    """
    return start if start and start[0] >> 3 == DATA_V2 else start[:1]


def is_data(head: bytes) -> bool:
    """Say so of a datagram's first bytes; one too short for data is not."""
    opcode = head[0] >> 3 if head else 0
    return opcode == DATA_V1 or (opcode == DATA_V2 and len(head) >= HEAD_SIZE)


def _sockaddr(sock: socket.socket, source: Source) -> Address:
    """Give what recvfrom would have given for this source."""
    host = source.address
    if sock.family == socket.AF_INET:
        return (str(host), source.port)
    if host.version == 4:
        return (f"::ffff:{host}", source.port, 0, 0)
    scope = host.scope_id
    number = socket.if_nametoindex(scope) if scope else 0
    return (str(host), source.port, 0, number)
