"""The data plane in the kernel: the `ovpn` driver moves the packets.

    plane = KernelPlane(keeper, link, channel, stream=False)
    the handshake goes over the link as with any plane, then
    plane.begin(settings), and install, swap, remove as the engine says
    plane.refresh(now) each second, plane.on_event for PeerEvent

The driver takes data packets off the link's socket and leaves the control
packets there. It also sends the pings and knows when the peer has been
silent for too long; its counters become the engine's Traffic. What only a
process could send into the tunnel (a ping, OCC) is not sent.
"""

import contextlib
import select
import socket
from typing import Final

from qubes_vpn.config.pulled import TunnelSettings
from qubes_vpn.crypto.keys import DataKeys
from qubes_vpn.dataplane.base import Counters, Slot
from qubes_vpn.dataplane.link import DatagramLink, StreamLink
from qubes_vpn.dataplane.userspace import BURST, DATA, ROUNDS
from qubes_vpn.engine.data_channel import DataChannel
from qubes_vpn.engine.timers import PACKET_ID_WARN
from qubes_vpn.errors import OsRefusedError, SessionError
from qubes_vpn.keeper import messages
from qubes_vpn.keeper.client import KeeperClient, KeeperRefusedError

# By OpenVPN's names, as the driver numbers them.
CIPHERS: Final = {
    "AES-128-GCM": 1,
    "AES-192-GCM": 1,
    "AES-256-GCM": 1,
    "CHACHA20-POLY1305": 2,
}
_BLOCK: Final = 16


def unsuited(settings: TunnelSettings, keys: DataKeys) -> str:
    """Say why the driver cannot do what was negotiated; "": it can."""
    if keys.peer_id is None:
        return "the server gave no peer-id"
    if keys.cipher not in CIPHERS:
        return f"not for {keys.cipher}"
    if keys.epoch or keys.static:
        return "not for this data format"
    if keys.compression:
        return "not with compression framing"
    if settings.fragment:
        return "not with fragment"
    return ""


class KernelPlane:
    """The driver, asked by way of the keeper; the link stays ours.

    link: connected and non-blocking, opened for the kernel plane, UDP, or
    TCP with stream=True. Raises OsRefusedError when the keeper refuses, and
    SessionError "link-closed" and "link-framing" as other planes.
    """

    def __init__(
        self,
        keeper: KeeperClient,
        link: socket.socket,
        channel: DataChannel,
        *,
        stream: bool = False,
    ) -> None:
        self.device = ""
        self.link: DatagramLink | StreamLink = (
            StreamLink(link, channel.drop)
            if stream
            else DatagramLink(link, channel.drop)
        )
        self._epoll = select.epoll()
        self._epoll.register(link, select.EPOLLIN)
        self._keeper = keeper
        self._channel = channel
        self._peer_id: int | None = None
        self._keepalive = (0, 0)
        self._counters = Counters()
        self._link_packets = (0, 0)

    # --- the peer

    def begin(self, settings: TunnelSettings, keys: DataKeys) -> None:
        """Make the device; the link becomes its peer."""
        assert keys.peer_id is not None
        self._keepalive = _keepalive(settings)
        reply, _ = self._keeper.request(
            messages.NewPeer(keys.peer_id, *self._keepalive)
        )
        assert isinstance(reply, messages.TunOpened)
        self._peer_id = keys.peer_id
        self.open(reply.device)

    def unready(self) -> str:
        """Say why the driver cannot take the link at this moment, or ""."""
        link = self.link
        if isinstance(link, StreamLink) and (link.unread or link.waiting):
            return "the stream is in the middle of a packet"
        return ""

    def apply(self, settings: TunnelSettings) -> None:
        """Follow settings that the server changed later."""
        keepalive = _keepalive(settings)
        if self._peer_id is not None and keepalive != self._keepalive:
            self._keepalive = keepalive
            self._ask(messages.SetPeer(self._peer_id, *keepalive))

    def on_event(self, event: messages.PeerEvent) -> None:
        """Take what the keeper heard from the driver.

        Raises SessionError when the session cannot go on; a peer that was
        silent for too long ends it by the engine's own timer.
        """
        if event.peer_id != self._peer_id:
            return
        traffic = self._channel.traffic
        if event.what == "keys-worn-out":
            traffic.key_packets = max(traffic.key_packets, PACKET_ID_WARN)
            return
        self._peer_id = None
        if event.what == "expired":
            traffic.rx_last = 0.0
        else:
            raise SessionError("link-closed", f"ovpn says {event.what}")

    def refresh(self, now: float) -> None:
        """Bring Traffic up to what the driver counted. now: mono seconds."""
        if self._peer_id is None:
            return
        try:
            found, _ = self._keeper.request(messages.GetPeer(self._peer_id))
        except KeeperRefusedError:
            return  # gone; the event that says why is on its way
        assert isinstance(found, messages.PeerCounters)
        self._account(found, now)

    def _account(self, found: messages.PeerCounters, now: float) -> None:
        traffic, before = self._channel.traffic, self._counters
        received = found.link_rx_packets - self._link_packets[0]
        sent = found.link_tx_packets - self._link_packets[1]
        rx_bytes = found.link_rx_bytes - before.link_rx_bytes
        tx_bytes = found.link_tx_bytes - before.link_tx_bytes
        traffic.rx_packets += received
        traffic.tx_packets += sent
        traffic.key_packets += sent
        traffic.rx_bytes += rx_bytes
        traffic.tx_bytes += tx_bytes
        traffic.key_blocks += received + sent + (rx_bytes + tx_bytes) // _BLOCK
        traffic.tun_bytes += found.rx_bytes - before.rx_bytes
        traffic.tun_bytes += found.tx_bytes - before.tx_bytes
        # the driver's word: the peer is there, and pings are sent
        traffic.rx_last = traffic.tx_last = now
        self._link_packets = found.link_rx_packets, found.link_tx_packets
        self._counters = Counters(
            rx_packets=found.rx_packets,
            rx_bytes=found.rx_bytes,
            tx_packets=found.tx_packets,
            tx_bytes=found.tx_bytes,
            link_rx_bytes=found.link_rx_bytes,
            link_tx_bytes=found.link_tx_bytes,
        )

    # --- a data plane

    def open(self, device: str) -> None:
        """Remember the device's name."""
        self.device = device

    def install(self, slot: Slot, keys: DataKeys) -> None:
        """Put keys into a slot; a SECONDARY key decrypts only."""
        assert keys.peer_id is not None
        self._ask(
            messages.NewKey(
                peer_id=keys.peer_id,
                slot=int(slot),
                key_id=keys.key_id,
                cipher=CIPHERS[keys.cipher],
                encrypt_key=keys.encrypt.cipher_key.hex(),
                encrypt_nonce=keys.encrypt.implicit_iv.hex(),
                decrypt_key=keys.decrypt.cipher_key.hex(),
                decrypt_nonce=keys.decrypt.implicit_iv.hex(),
            )
        )

    def swap(self) -> None:
        """Exchange the slots: what was SECONDARY encrypts from now on."""
        if self._peer_id is not None:
            self._ask(messages.SwapKeys(self._peer_id))

    def remove(self, slot: Slot) -> None:
        """Forget the keys of a slot."""
        if self._peer_id is not None:
            self._ask(messages.RemoveKey(self._peer_id, int(slot)))

    def readable(self) -> tuple[int, ...]:
        """Give the descriptor to watch for input."""
        return (self._epoll.fileno(),)

    def pump(self, descriptor: int, now: float) -> list[bytes]:
        """Return the control packets that the link delivered."""
        del descriptor, now
        control: list[bytes] = []
        self.link.flush()
        self._watch()
        for _ in range(ROUNDS):
            got = 0
            with contextlib.closing(self.link.packets(BURST)) as packets:
                for buffer, size in packets:
                    got += 1
                    if size and buffer[0] >> 3 in DATA:
                        # before there was a peer
                        self._channel.drop("before-keys")
                    else:
                        control.append(bytes(buffer[:size]))
            if control or not got:
                break
        return control

    def send_control(self, datagram: bytes) -> None:
        """Send a control packet on the link."""
        self.link.send(datagram)
        self._watch()

    def send_data(self, payload: bytes, now: float) -> None:
        """Do nothing: pings are the driver's, and it takes nothing else."""
        del payload, now

    def counters(self) -> Counters:
        """Give what `refresh` found."""
        drops = tuple(sorted(self._channel.drops.items()))
        before = self._counters
        return Counters(
            before.rx_packets,
            before.rx_bytes,
            before.tx_packets,
            before.tx_bytes,
            before.link_rx_bytes,
            before.link_tx_bytes,
            drops,
        )

    def close(self) -> None:
        """Have the peer deleted; the device stays, without carrier."""
        peer_id, self._peer_id = self._peer_id, None
        if peer_id is not None:
            # a keeper that is gone has taken it along
            with contextlib.suppress(OsRefusedError):
                self._keeper.request(messages.RemovePeer(peer_id))
        self._epoll.close()

    def _watch(self) -> None:
        """Wait for room as well while something waits for it."""
        waiting = select.EPOLLOUT if self.link.waiting else 0
        self._epoll.modify(self.link.sock, select.EPOLLIN | waiting)

    def _ask(self, request: messages.EngineRequest) -> None:
        """Ask for a change; of no use any more once the peer is gone."""
        try:
            self._keeper.request(request)
        except KeeperRefusedError as error:
            if error.reason != "no-peer":
                raise


def _keepalive(settings: TunnelSettings) -> tuple[int, int]:
    """Give ping and the silence that ends the session, in seconds."""
    return settings.ping, settings.ping_exit or settings.ping_restart
