"""A server's data path in the kernel: the `ovpn` driver, with many peers.

The UDP sockets stay ours: the driver takes the data packets of its peers off
them and leaves the control packets there. A peer is made when its client is
admitted; until then keys wait, since the driver routes by inner addresses.
"""

import selectors
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from qubes_vpn.config.server_profile import ServerProfile
from qubes_vpn.crypto.keys import DataKeys
from qubes_vpn.dataplane.kernel import CIPHERS
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.hello import Source
from qubes_vpn.engine.timers import PACKET_ID_WARN
from qubes_vpn.runtime.server_clients import Client
from qubes_vpn.runtime.server_events import Control, OnEvents
from qubes_vpn.runtime.server_plane import ServerPlane
from qubes_vpn.system.ovpn import KEYS_WORN_OUT, Key, Ovpn, PeerCounters

_NEVER: Final = 0


class KernelPlane(ServerPlane):
    """Has the driver move the packets between clients and the device."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        index: int,
        control: Control,
        profile: ServerProfile,
    ) -> None:
        super().__init__(
            selector,
            None,
            control,
            client_to_client=False,
            connections_max=_NEVER,
        )
        self._index = index
        self._ovpn = Ovpn()
        self._news = self._ovpn.news()
        self._keepalive = (profile.ping, profile.ping_restart)
        self._waiting: dict[int, list[tuple[int, DataKeys]]] = {}
        self._before: dict[int, PeerCounters] = {}
        selector.register(
            self._news,
            selectors.EVENT_READ,
            OnEvents(lambda _events: self._on_news()),
        )

    def install(self, client: Client, slot: int, keys: DataKeys) -> None:
        """Put keys into a slot, or have them wait for the peer."""
        if keys.peer_id is None or keys.cipher not in CIPHERS:
            # it will be told nothing: an old client, and a rare cipher
            self._control.gone(client, "not-for-the-kernel")
        elif client.admitted is None:
            self._waiting.setdefault(client.number, []).append((slot, keys))
        else:
            self._ovpn.new_key(self._index, client.number, _key(slot, keys))

    def swap(self, client: Client) -> None:
        """Exchange the slots."""
        self._ovpn.swap_keys(self._index, client.number)

    def forget(self, client: Client, slot: int) -> None:
        """Forget the keys of a slot."""
        self._ovpn.delete_key(self._index, client.number, slot)

    def admit(self, client: Client) -> None:
        """Make the peer, with the keys that waited."""
        assert client.sock is not None
        assert client.admitted is not None
        lease = client.admitted.lease
        inside: list[IPv4Address | IPv6Address] = []
        for address in (lease.address4, lease.address6):
            if address is not None:
                inside.append(address)  # noqa: PERF401 mypy joins the types so
        self._ovpn.new_peer(
            self._index,
            client.number,
            client.sock.fileno(),
            (client.source.address, client.source.port),
            inside,
        )
        if all(self._keepalive):
            self._ovpn.set_keepalive(
                self._index, client.number, *self._keepalive
            )
        for slot, keys in self._waiting.pop(client.number, []):
            self._ovpn.new_key(self._index, client.number, _key(slot, keys))

    def detach(self, client: Client) -> None:
        """Forget a client, and its peer."""
        self._waiting.pop(client.number, None)
        self._before.pop(client.number, None)
        self._ovpn.delete_peer(self._index, client.number)
        super().detach(client)

    def send_data(self, client: Client, payload: bytes, now: float) -> None:
        """Do nothing: only the driver sends data packets, pings included."""

    def refresh(self, now: Now) -> None:
        """Bring traffic and sources up to what the driver knows."""
        for client in list(self.clients.values()):
            if client.admitted is None:
                continue
            seen = self._ovpn.peer(self._index, client.number)
            remote = self._ovpn.remote(self._index, client.number)
            if seen is None or remote is None:
                continue  # the news that says why is on its way
            self._account(client, seen, now.mono)
            self._follow_remote(client, remote)

    def close(self) -> None:
        """Let go of the driver too."""
        self._selector.unregister(self._news)
        self._news.close()
        super().close()
        self._ovpn.close()

    def _account(self, client: Client, seen: PeerCounters, now: float) -> None:
        traffic = client.channel.traffic
        before = self._before.get(client.number, PeerCounters(*[0] * 8))
        self._before[client.number] = seen
        if seen.link_rx_packets != before.link_rx_packets:
            traffic.rx_last = now
        if seen.link_tx_packets != before.link_tx_packets:
            traffic.tx_last = now
        traffic.rx_packets += seen.link_rx_packets - before.link_rx_packets
        traffic.tx_packets += seen.link_tx_packets - before.link_tx_packets
        traffic.rx_bytes += seen.link_rx_bytes - before.link_rx_bytes
        traffic.tx_bytes += seen.link_tx_bytes - before.link_tx_bytes
        traffic.tun_bytes = seen.rx_bytes + seen.tx_bytes
        client.rx_packets, client.rx_bytes = seen.rx_packets, seen.rx_bytes
        client.tx_packets, client.tx_bytes = seen.tx_packets, seen.tx_bytes

    def _follow_remote(
        self, client: Client, remote: tuple[IPv4Address | IPv6Address, int]
    ) -> None:
        source = Source(client.source.socket, *remote)
        if source == client.source:
            return
        if self._control.moved(client, source):
            self.follow(client, source)
        else:
            self._control.gone(client, "float-refused")

    def _on_news(self) -> None:
        for news in self._news.receive():
            client = self.clients.get(news.peer_id)
            if news.index != self._index or client is None:
                continue
            if news.what == KEYS_WORN_OUT:
                client.channel.traffic.key_packets = PACKET_ID_WARN
            elif news.what != "userspace":
                self._control.gone(client, news.what)


def _key(slot: int, keys: DataKeys) -> Key:
    return Key(
        slot,
        keys.key_id,
        CIPHERS[keys.cipher],
        keys.encrypt.cipher_key,
        keys.encrypt.implicit_iv,
        keys.decrypt.cipher_key,
        keys.decrypt.implicit_iv,
    )
