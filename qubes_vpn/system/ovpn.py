"""The kernel's `ovpn` driver: one peer of one device, its keys, its counters.

A device of kind `ovpn` is made by rtnetlink (system.rtnl); everything else is
the generic netlink family "ovpn". Asking for the family loads the module.
A peer's socket is named by a descriptor of the process that asks, and the
peer goes when that socket does.

Not pyroute2: it does not know the family, and would cost the keeper 15 MB.
Layout: type of the family; command u8, version u8, 2 zero bytes; attributes,
nested ones with their flag set, counters in 4 or 8 bytes.
Source: linux/ovpn.h, Documentation/netlink/specs/ovpn.yaml.
"""

import errno
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from sys import byteorder
from typing import Final

from qubes_vpn.errors import UnavailableError
from qubes_vpn.system.netlink import (
    NETLINK_GENERIC,
    Attribute,
    Attributes,
    NetlinkError,
    NetlinkSocket,
    attributes,
    nested,
    parse,
    read_text,
    read_u32,
    text,
    u32,
)

KIND: Final = "ovpn"
# the device's mode: for one peer, unless this is given when it is made
MANY_PEERS: Final = (1, b"\x01")
GROUP: Final = "peers"

_GENL: Final = struct.Struct("=BBH")
_VERSION: Final = 1
# linux/genetlink.h: the family of families
_CTRL, _CTRL_GETFAMILY, _CTRL_VERSION = 16, 3, 2
_CTRL_FAMILY_ID, _CTRL_FAMILY_NAME, _CTRL_MCAST_GROUPS = 1, 2, 7
_CTRL_GROUP_NAME, _CTRL_GROUP_ID = 1, 2

_PEER_NEW, _PEER_SET, _PEER_GET, _PEER_DEL, _PEER_DEL_NTF = 1, 2, 3, 4, 5
_KEY_NEW, _KEY_SWAP, _KEY_SWAP_NTF, _KEY_DEL = 6, 8, 9, 10
_IFINDEX, _PEER, _KEYCONF = 1, 2, 3
_ID, _REMOTE_IPV4, _REMOTE_IPV6, _REMOTE_PORT, _SOCKET = 1, 2, 3, 5, 6
_VPN_IPV4, _VPN_IPV6 = 8, 9
_KEEPALIVE_INTERVAL, _KEEPALIVE_TIMEOUT, _DEL_REASON = 13, 14, 15
_VPN_RX_BYTES: Final = 16
_KEY_PEER_ID, _KEY_SLOT, _KEY_ID, _KEY_CIPHER = 1, 2, 3, 4
_KEY_ENCRYPT, _KEY_DECRYPT = 5, 6
_DIR_KEY, _DIR_NONCE = 1, 2

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


class Ovpn:
    """Requests to the driver. UnavailableError: this kernel has none."""

    def __init__(self) -> None:
        self._sock = NetlinkSocket(NETLINK_GENERIC)
        request = _GENL.pack(_CTRL_GETFAMILY, _CTRL_VERSION, 0)
        request += attributes([(_CTRL_FAMILY_NAME, text(KIND))])
        try:
            answer = self._sock.get("ovpn", _CTRL, request)
        except NetlinkError as error:
            self._sock.close()
            if error.number == errno.ENOENT:
                raise UnavailableError("no ovpn in this kernel") from None
            raise
        found = parse(answer[0][1][_GENL.size :])
        self._family = int.from_bytes(found[_CTRL_FAMILY_ID], byteorder)
        self.group = _group(found[_CTRL_MCAST_GROUPS])

    def close(self) -> None:
        """Let go of the socket."""
        self._sock.close()

    def news(self) -> "News":
        """Give a socket that hears of what happens to peers."""
        return News(self._family, self.group)

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
        request = encode_new_peer(index, peer_id, descriptor, remote, inside)
        self._sock.request("new peer", self._family, request)

    def set_keepalive(
        self, index: int, peer_id: int, interval: int, timeout: int
    ) -> None:
        """Send a ping after `interval` silent seconds; end after `timeout`."""
        self._peer(
            "keepalive",
            _PEER_SET,
            index,
            [
                (_ID, u32(peer_id)),
                (_KEEPALIVE_INTERVAL, u32(interval)),
                (_KEEPALIVE_TIMEOUT, u32(timeout)),
            ],
        )

    def peer(self, index: int, peer_id: int) -> PeerCounters | None:
        """Give the peer's counters; None when it is gone."""
        found = self._seen(index, peer_id)
        if found is None:
            return None
        # bytes in and out, packets in and out; the tunnel's, then the link's
        numbers = [
            int.from_bytes(found[_VPN_RX_BYTES + offset], byteorder)
            for offset in range(8)
        ]
        return PeerCounters(*numbers)

    def remote(
        self, index: int, peer_id: int
    ) -> tuple[IPv4Address | IPv6Address, int] | None:
        """Give where a UDP peer is now; None when it is gone.

        The driver follows a peer that moves without saying so before 7.x.
        """
        found = self._seen(index, peer_id)
        if found is None:
            return None
        raw = found.get(_REMOTE_IPV4) or found[_REMOTE_IPV6]
        return ip_address(raw), int.from_bytes(found[_REMOTE_PORT][:2])

    def _seen(self, index: int, peer_id: int) -> Attributes | None:
        request = _request(
            _PEER_GET, index, nested(_PEER, [(_ID, u32(peer_id))])
        )
        try:
            answer = self._sock.get("peer", self._family, request)
        except NetlinkError as error:
            if error.number == errno.ENOENT:
                return None
            raise
        return parse(parse(answer[0][1][_GENL.size :])[_PEER])

    def delete_peer(self, index: int, peer_id: int) -> None:
        """Detach the peer, if it is there; its keys go with it."""
        self._lenient("peer", _PEER_DEL, index, (_PEER, [(_ID, u32(peer_id))]))

    def new_key(self, index: int, peer_id: int, key: Key) -> None:
        """Put a key into a slot; PRIMARY encrypts, both decrypt."""
        request = encode_new_key(index, peer_id, key)
        self._sock.request("new key", self._family, request)

    def swap_keys(self, index: int, peer_id: int) -> None:
        """Exchange the slots."""
        request = _request(
            _KEY_SWAP, index, nested(_KEYCONF, [(_KEY_PEER_ID, u32(peer_id))])
        )
        self._sock.request("swap keys", self._family, request)

    def delete_key(self, index: int, peer_id: int, slot: int) -> None:
        """Forget the key of a slot, if there is one."""
        items = [(_KEY_PEER_ID, u32(peer_id)), (_KEY_SLOT, u32(slot))]
        self._lenient("key", _KEY_DEL, index, (_KEYCONF, items))

    def _peer(
        self, what: str, command: int, index: int, items: list[Attribute]
    ) -> None:
        request = _request(command, index, nested(_PEER, items))
        self._sock.request(what, self._family, request)

    def _lenient(
        self,
        what: str,
        command: int,
        index: int,
        items: tuple[int, list[Attribute]],
    ) -> None:
        try:
            request = _request(command, index, nested(*items))
            self._sock.request(what, self._family, request)
        except NetlinkError as error:
            # gone already: the peer, or the whole device
            if error.number not in (errno.ENOENT, errno.ENODEV):
                raise


class News:
    """Hears of peers that go and of keys that are used up."""

    def __init__(self, family: int, group: int) -> None:
        self._family = family
        self._sock = NetlinkSocket(NETLINK_GENERIC, (group,))

    def fileno(self) -> int:
        """Give the descriptor to watch."""
        return self._sock.fileno()

    def close(self) -> None:
        """Hear no more."""
        self._sock.close()

    def receive(self) -> Iterator[PeerNews]:
        """Give what is there. OsRefusedError: some was lost."""
        for kind, body in self._sock.receive():
            if kind == self._family:
                yield from decode_news(body)


def _request(command: int, index: int, item: Attribute) -> bytes:
    return _GENL.pack(command, _VERSION, 0) + attributes(
        [(_IFINDEX, u32(index)), item]
    )


def _direction(kind: int, key: bytes, nonce: bytes) -> Attribute:
    return nested(kind, [(_DIR_KEY, key), (_DIR_NONCE, nonce)])


def encode_new_peer(
    index: int,
    peer_id: int,
    descriptor: int,
    remote: tuple[IPv4Address | IPv6Address, int] | None,
    inside: Iterable[IPv4Address | IPv6Address] = (),
) -> bytes:
    """Encode what Ovpn.new_peer asks for."""
    items = [(_ID, u32(peer_id)), (_SOCKET, u32(descriptor))]
    if remote is not None:
        address, port = remote
        four = address.version == 4
        items.append((_REMOTE_IPV4 if four else _REMOTE_IPV6, address.packed))
        items.append((_REMOTE_PORT, port.to_bytes(2)))
    for address in inside:
        kind = _VPN_IPV4 if address.version == 4 else _VPN_IPV6
        items.append((kind, address.packed))
    return _request(_PEER_NEW, index, nested(_PEER, items))


def encode_new_key(index: int, peer_id: int, key: Key) -> bytes:
    """Encode what Ovpn.new_key asks for."""
    return _request(
        _KEY_NEW,
        index,
        nested(
            _KEYCONF,
            [
                (_KEY_PEER_ID, u32(peer_id)),
                (_KEY_SLOT, u32(key.slot)),
                (_KEY_ID, u32(key.key_id)),
                (_KEY_CIPHER, u32(key.cipher)),
                _direction(_KEY_ENCRYPT, key.encrypt, key.encrypt_nonce),
                _direction(_KEY_DECRYPT, key.decrypt, key.decrypt_nonce),
            ],
        ),
    )


def decode_news(body: bytes) -> Iterator[PeerNews]:
    """Decode one notification; those of no interest give nothing."""
    command = _GENL.unpack_from(body)[0]
    items = parse(body[_GENL.size :])
    index = read_u32(items[_IFINDEX])
    if command == _PEER_DEL_NTF:
        peer = parse(items[_PEER])
        reason = read_u32(peer[_DEL_REASON])
        known = reason < len(REASONS)
        what = REASONS[reason] if known else f"reason-{reason}"
        yield PeerNews(index, read_u32(peer[_ID]), what)
    elif command == _KEY_SWAP_NTF:
        peer_id = read_u32(parse(items[_KEYCONF])[_KEY_PEER_ID])
        yield PeerNews(index, peer_id, KEYS_WORN_OUT)


def _group(listed: bytes) -> int:
    """Find the multicast group that peers are told of."""
    for body in parse(listed).values():
        group = parse(body)
        if read_text(group[_CTRL_GROUP_NAME]) == GROUP:
            return read_u32(group[_CTRL_GROUP_ID])
    raise UnavailableError("an ovpn without notifications")
