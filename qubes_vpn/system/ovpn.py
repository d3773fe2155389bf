"""The kernel's `ovpn` driver: one peer of one device, its keys, its counters.

A device of kind `ovpn` is made by rtnetlink (system.rtnl); everything else is
the generic netlink family "ovpn". Asking for the family loads the module.
A peer's socket is named by a descriptor of the process that asks, and the
peer goes when that socket does.

pyroute2 does not know the family: its messages are defined here.
Source: linux/ovpn.h, Documentation/netlink/specs/ovpn.yaml.
"""

import errno
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from sys import byteorder
from typing import Any, Final

from qubes_vpn.errors import UnavailableError
from qubes_vpn.system.netlink import (
    Attribute,
    NetlinkError,
    Notices,
    Requests,
    message,
)
from qubes_vpn.system.pyroute import ifinfmsg, netlink

KIND: Final = "ovpn"
# the device's mode: for one peer, unless this is given when it is made
MANY_PEERS: Final = ("IFLA_OVPN_MODE", 1)
GROUP: Final = "peers"

_VERSION: Final = 1
_PEER_NEW, _PEER_SET, _PEER_GET, _PEER_DEL, _PEER_DEL_NTF = 1, 2, 3, 4, 5
_KEY_NEW, _KEY_SWAP, _KEY_SWAP_NTF, _KEY_DEL = 6, 8, 9, 10
# inside the tunnel, then on the link; their size is the kernel's choice
_COUNTERS: Final = (
    "VPN_RX_BYTES",
    "VPN_TX_BYTES",
    "VPN_RX_PACKETS",
    "VPN_TX_PACKETS",
    "LINK_RX_BYTES",
    "LINK_TX_BYTES",
    "LINK_RX_PACKETS",
    "LINK_TX_PACKETS",
)

REASONS: Final = (
    "teardown",
    "userspace",
    "expired",
    "transport-error",
    "transport-disconnect",
)
KEYS_WORN_OUT: Final = "keys-worn-out"


@dataclass(frozen=True, slots=True)
class Key:
    """One key for both directions.

    cipher: 1 AES-GCM (the size says which), 2 CHACHA20-POLY1305.
    nonces: the 8 bytes that follow the packet id.
    """

    slot: int
    key_id: int
    cipher: int
    encrypt: bytes = field(repr=False)
    encrypt_nonce: bytes = field(repr=False)
    decrypt: bytes = field(repr=False)
    decrypt_nonce: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PeerCounters:
    """What a peer moved: inside the tunnel, and on the link."""

    rx_bytes: int
    tx_bytes: int
    rx_packets: int
    tx_packets: int
    link_rx_bytes: int
    link_tx_bytes: int
    link_rx_packets: int
    link_tx_packets: int


@dataclass(frozen=True, slots=True)
class PeerNews:
    """The peer is gone, for one of REASONS; or KEYS_WORN_OUT."""

    index: int
    peer_id: int
    what: str


class OvpnLink(netlink.nla):
    """What a device of this kind is told when it is made."""

    nla_map = (("IFLA_OVPN_UNSPEC", "none"), ("IFLA_OVPN_MODE", "uint8"))


ifinfmsg.ifinfmsg.ifinfo.register_link_kind(module={KIND: OvpnLink})


class OvpnMessage(netlink.genlmsg):
    """A message of the family, both ways."""

    nla_map = (
        ("UNSPEC", "none"),
        ("IFINDEX", "uint32"),
        ("PEER", "Peer"),
        ("KEYCONF", "KeyConf"),
    )

    class Peer(netlink.nla):
        """A peer: what it is given, where it is, what it moved."""

        nla_flags = netlink.NLA_F_NESTED
        nla_map = (
            ("UNSPEC", "none"),
            ("ID", "uint32"),
            ("REMOTE_IPV4", "ip4addr"),
            ("REMOTE_IPV6", "ip6addr"),
            ("REMOTE_IPV6_SCOPE_ID", "uint32"),
            ("REMOTE_PORT", "be16"),
            ("SOCKET", "uint32"),
            ("SOCKET_NETNSID", "int32"),
            ("VPN_IPV4", "ip4addr"),
            ("VPN_IPV6", "ip6addr"),
            ("LOCAL_IPV4", "ip4addr"),
            ("LOCAL_IPV6", "ip6addr"),
            ("LOCAL_PORT", "be16"),
            ("KEEPALIVE_INTERVAL", "uint32"),
            ("KEEPALIVE_TIMEOUT", "uint32"),
            ("DEL_REASON", "uint32"),
            *((name, "cdata") for name in _COUNTERS),
        )

    class KeyConf(netlink.nla):
        """A key in its slot."""

        nla_flags = netlink.NLA_F_NESTED
        nla_map = (
            ("UNSPEC", "none"),
            ("PEER_ID", "uint32"),
            ("SLOT", "uint32"),
            ("KEY_ID", "uint32"),
            ("CIPHER_ALG", "uint32"),
            ("ENCRYPT_DIR", "Direction"),
            ("DECRYPT_DIR", "Direction"),
        )

        class Direction(netlink.nla):
            """The key of one direction."""

            nla_flags = netlink.NLA_F_NESTED
            nla_map = (
                ("UNSPEC", "none"),
                ("CIPHER_KEY", "cdata"),
                ("NONCE_TAIL", "cdata"),
            )


class Ovpn:
    """Requests to the driver. UnavailableError: this kernel has none."""

    def __init__(self) -> None:
        self._sock = Requests(
            netlink.NETLINK_GENERIC, {netlink.GENL_ID_CTRL: netlink.ctrlmsg}
        )
        try:
            self._family, self._group = self._find()
        except BaseException:
            self._sock.close()
            raise
        self._sock.expect(self._family, OvpnMessage)

    def _find(self) -> tuple[int, int]:
        """Give the numbers of the family and of its multicast group."""
        name = [("CTRL_ATTR_FAMILY_NAME", KIND)]
        request = message(
            netlink.ctrlmsg, name, cmd=netlink.CTRL_CMD_GETFAMILY, version=1
        )
        try:
            family = self._sock.get("ovpn", netlink.GENL_ID_CTRL, request)
        except NetlinkError as error:
            if error.number == errno.ENOENT:
                raise UnavailableError("no ovpn in this kernel") from None
            raise
        for group in family.get_attr("CTRL_ATTR_MCAST_GROUPS", ()):
            if group.get_attr("CTRL_ATTR_MCAST_GRP_NAME") == GROUP:
                number = group.get_attr("CTRL_ATTR_MCAST_GRP_ID")
                return family.get_attr("CTRL_ATTR_FAMILY_ID"), number
        raise UnavailableError("an ovpn without notifications")

    def close(self) -> None:
        """Let go of the socket."""
        self._sock.close()

    def news(self) -> "News":
        """Give a socket that hears of what happens to peers."""
        return News(self._family, self._group)

    def new_peer(
        self,
        index: int,
        peer_id: int,
        descriptor: int,
        remote: tuple[IPv4Address | IPv6Address, int] | None,
        inside: Iterable[IPv4Address | IPv6Address] = (),
    ) -> None:
        """Attach a socket of this process to device `index`.

        remote: where packets go, for UDP; None for TCP, which knows it.
        inside: the peer's addresses, on a device for many peers. A peer
        before it is replaced.
        """
        request = new_peer(index, peer_id, descriptor, remote, inside)
        self._sock.request("new peer", self._family, request)

    def set_keepalive(
        self, index: int, peer_id: int, interval: int, timeout: int
    ) -> None:
        """Send a ping after `interval` silent seconds; end after `timeout`."""
        request = _peer(
            _PEER_SET,
            index,
            ("ID", peer_id),
            ("KEEPALIVE_INTERVAL", interval),
            ("KEEPALIVE_TIMEOUT", timeout),
        )
        self._sock.request("keepalive", self._family, request)

    def peer(self, index: int, peer_id: int) -> PeerCounters | None:
        """Give the peer's counters; None when it is gone."""
        found = self._seen(index, peer_id)
        if found is None:
            return None
        raw = (found.get_attr(name) for name in _COUNTERS)
        return PeerCounters(*(int.from_bytes(each, byteorder) for each in raw))

    def remote(
        self, index: int, peer_id: int
    ) -> tuple[IPv4Address | IPv6Address, int] | None:
        """Give where a UDP peer is now; None when it is gone.

        The driver follows a peer that moves without saying so before 7.x.
        """
        found = self._seen(index, peer_id)
        if found is None:
            return None
        address = found.get_attr("REMOTE_IPV4") or found.get_attr("REMOTE_IPV6")
        return ip_address(address), found.get_attr("REMOTE_PORT")

    def _seen(self, index: int, peer_id: int) -> netlink.nlmsg | None:
        request = _peer(_PEER_GET, index, ("ID", peer_id))
        try:
            return self._sock.get("peer", self._family, request).get_attr(
                "PEER"
            )
        except NetlinkError as error:
            if error.number == errno.ENOENT:
                return None
            raise

    def delete_peer(self, index: int, peer_id: int) -> None:
        """Detach the peer, if it is there; its keys go with it."""
        self._lenient("peer", _peer(_PEER_DEL, index, ("ID", peer_id)))

    def new_key(self, index: int, peer_id: int, key: Key) -> None:
        """Put a key into a slot; PRIMARY encrypts, both decrypt."""
        request = new_key(index, peer_id, key)
        self._sock.request("new key", self._family, request)

    def swap_keys(self, index: int, peer_id: int) -> None:
        """Exchange the slots."""
        request = _keyconf(_KEY_SWAP, index, ("PEER_ID", peer_id))
        self._sock.request("swap keys", self._family, request)

    def delete_key(self, index: int, peer_id: int, slot: int) -> None:
        """Forget the key of a slot, if there is one."""
        which = ("PEER_ID", peer_id), ("SLOT", slot)
        self._lenient("key", _keyconf(_KEY_DEL, index, *which))

    def _lenient(self, what: str, request: netlink.nlmsg) -> None:
        try:
            self._sock.request(what, self._family, request)
        except NetlinkError as error:
            # gone already: the peer, or the whole device
            if error.number not in (errno.ENOENT, errno.ENODEV):
                raise


class News:
    """Hears of peers that go and of keys that are used up."""

    def __init__(self, family: int, group: int) -> None:
        classes = {family: OvpnMessage}
        self._family = family
        self._sock = Notices(netlink.NETLINK_GENERIC, (group,), classes)

    def fileno(self) -> int:
        """Give the descriptor to watch."""
        return self._sock.fileno()

    def close(self) -> None:
        """Hear no more."""
        self._sock.close()

    def receive(self) -> Iterator[PeerNews]:
        """Give what is there. OsRefusedError: some was lost."""
        for found in self._sock.receive():
            if found["header"]["type"] == self._family:
                yield from read_news(found)


def _peer(command: int, index: int, *items: Attribute) -> netlink.nlmsg:
    return _message(command, index, "PEER", items)


def _keyconf(command: int, index: int, *items: Attribute) -> netlink.nlmsg:
    return _message(command, index, "KEYCONF", items)


def _message(
    command: int, index: int, name: str, items: Iterable[Attribute]
) -> netlink.nlmsg:
    inner = (name, {"attrs": list(items)})
    outer: list[Attribute] = [("IFINDEX", index), inner]
    return message(OvpnMessage, outer, cmd=command, version=_VERSION)


def new_peer(
    index: int,
    peer_id: int,
    descriptor: int,
    remote: tuple[IPv4Address | IPv6Address, int] | None,
    inside: Iterable[IPv4Address | IPv6Address] = (),
) -> netlink.nlmsg:
    """Give the message of Ovpn.new_peer."""
    items: list[Attribute] = [("ID", peer_id), ("SOCKET", descriptor)]
    if remote is not None:
        address, port = remote
        items.append((f"REMOTE_IPV{address.version}", str(address)))
        items.append(("REMOTE_PORT", port))
    items.extend((f"VPN_IPV{each.version}", str(each)) for each in inside)
    return _peer(_PEER_NEW, index, *items)


def new_key(index: int, peer_id: int, key: Key) -> netlink.nlmsg:
    """Give the message of Ovpn.new_key."""
    return _keyconf(
        _KEY_NEW,
        index,
        ("PEER_ID", peer_id),
        ("SLOT", key.slot),
        ("KEY_ID", key.key_id),
        ("CIPHER_ALG", key.cipher),
        ("ENCRYPT_DIR", _direction(key.encrypt, key.encrypt_nonce)),
        ("DECRYPT_DIR", _direction(key.decrypt, key.decrypt_nonce)),
    )


def _direction(key: bytes, nonce: bytes) -> dict[str, Any]:
    return {"attrs": [("CIPHER_KEY", key), ("NONCE_TAIL", nonce)]}


def read_news(found: netlink.nlmsg) -> Iterator[PeerNews]:
    """Read one notification; those of no interest give nothing."""
    index = found.get_attr("IFINDEX")
    if found["cmd"] == _PEER_DEL_NTF:
        peer = found.get_attr("PEER")
        reason = peer.get_attr("DEL_REASON")
        known = reason < len(REASONS)
        what = REASONS[reason] if known else f"reason-{reason}"
        yield PeerNews(index, peer.get_attr("ID"), what)
    elif found["cmd"] == _KEY_SWAP_NTF:
        peer_id = found.get_attr("KEYCONF").get_attr("PEER_ID")
        yield PeerNews(index, peer_id, KEYS_WORN_OUT)
