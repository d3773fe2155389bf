"""The kernel data plane: the `ovpn` device, its peer and its keys.

The peer's socket has to be one of this process, so a copy of the link is
kept; that is also why the peer outlives the engine, and is deleted here as
soon as the network is closed.
"""

import os
import socket
from collections.abc import Callable
from dataclasses import asdict
from ipaddress import ip_address
from typing import Any, Final, TypeAlias

from qubes_vpn.errors import UnavailableError
from qubes_vpn.keeper import messages
from qubes_vpn.keeper.bounds import RequestRefusedError, require
from qubes_vpn.keeper.device import Device
from qubes_vpn.policy.routes import DEVICES
from qubes_vpn.system import ovpn, tun
from qubes_vpn.system.rtnl import Rtnl

PEER_ID_MAX: Final = 0xFFFFFF
KEY_ID_MAX: Final = 7
NONCE_SIZE: Final = 8
# Key sizes by the kernel's numbers of ciphers.
KEY_SIZES: Final = {1: (16, 24, 32), 2: (32,)}
PING_MAX: Final = 86_400 * 365
# The driver wants both times or neither: this is never, in seconds.
NEVER: Final = 1 << 30

Handler: TypeAlias = Callable[[Any], messages.Reply]


class OvpnDevice(Device):
    """The device that the driver makes; it has no descriptor."""

    def __init__(self, name: str, rtnl: Rtnl) -> None:
        super().__init__(name, rtnl, tun.TunSource(0))

    def make(self) -> int:
        """Make the device anew: its index. It has no carrier yet."""
        self._rtnl.delete_link(self.name)
        self._rtnl.add_link(self.name, ovpn.KIND)
        self._set_ipv6(wanted=False)
        return self.link().index


class KernelPeer:
    """The one peer, from `hold` of its link to `forget`.

    handlers: what it does for the engine, by the request's type.
    """

    def __init__(self, rtnl: Rtnl, tun_name: str) -> None:
        # a name of one's own choice is that of either device
        name = DEVICES[1] if tun_name == DEVICES[0] else tun_name
        self.device = OvpnDevice(name, rtnl)
        self.handlers: dict[type, Handler] = {
            messages.SetPeer: self._set_peer,
            messages.NewKey: self._new_key,
            messages.SwapKeys: self._swap_keys,
            messages.RemoveKey: self._remove_key,
            messages.GetPeer: self._get_peer,
            messages.RemovePeer: self._remove_peer,
        }
        self._driver: ovpn.Ovpn | None = None
        self._link: socket.socket | None = None
        self._index = 0
        self._peer_id: int | None = None

    def require_driver(self) -> ovpn.Ovpn:
        """Give the driver. RequestRefusedError: this kernel has none."""
        if self._driver is None:
            try:
                self._driver = ovpn.Ovpn()
            except UnavailableError as error:
                raise RequestRefusedError("no-ovpn", str(error)) from None
        return self._driver

    def news(self) -> ovpn.News:
        """Give the socket that tells of the peer; see `concerns`."""
        return self.require_driver().news()

    def concerns(self, news: ovpn.PeerNews) -> bool:
        """Tell whether this is about our peer; one that is gone is gone."""
        ours = news.index == self._index and news.peer_id == self._peer_id
        if ours and news.what != ovpn.KEYS_WORN_OUT:
            self._peer_id = None
        return ours

    def hold(self, descriptor: int) -> None:
        """Keep a copy of this link; what was before it is forgotten."""
        self.forget()
        self._link = socket.socket(fileno=os.dup(descriptor))

    def forget(self) -> None:
        """Delete the peer, and let go of its link. Close first."""
        peer_id, self._peer_id = self._peer_id, None
        link, self._link = self._link, None
        try:
            if peer_id is not None and self._driver is not None:
                self._driver.delete_peer(self._index, peer_id)
        finally:
            if link is not None:
                link.close()

    def new_peer(self, request: messages.NewPeer) -> None:
        """Make the device, and the link its peer."""
        _check_peer(request)
        require(self._link, "no-link")
        assert self._link is not None
        driver = self.require_driver()
        self._peer_id = None
        self._index = self.device.make()
        remote = None
        if self._link.type & socket.SOCK_DGRAM:
            host, port = self._link.getpeername()[:2]
            remote = ip_address(host), port
        driver.new_peer(
            self._index, request.peer_id, self._link.fileno(), remote
        )
        self._peer_id = request.peer_id
        self._keepalive(request)

    def _keepalive(self, request: messages.NewPeer | messages.SetPeer) -> None:
        if request.ping or request.ping_restart:
            self.require_driver().set_keepalive(
                self._index,
                request.peer_id,
                request.ping or NEVER,
                request.ping_restart or NEVER,
            )

    def _mine(self, peer_id: int) -> ovpn.Ovpn:
        require(peer_id == self._peer_id, "no-peer")
        return self.require_driver()

    def _set_peer(self, request: messages.SetPeer) -> messages.Reply:
        _check_peer(request)
        self._mine(request.peer_id)
        self._keepalive(request)
        return messages.Done()

    def _new_key(self, request: messages.NewKey) -> messages.Reply:
        key = _key(request)
        driver = self._mine(request.peer_id)
        driver.new_key(self._index, request.peer_id, key)
        return messages.Done()

    def _swap_keys(self, request: messages.SwapKeys) -> messages.Reply:
        driver = self._mine(request.peer_id)
        driver.swap_keys(self._index, request.peer_id)
        return messages.Done()

    def _remove_key(self, request: messages.RemoveKey) -> messages.Reply:
        require(request.slot in (0, 1), "bad-slot")
        # without its peer there are no keys either
        if request.peer_id == self._peer_id:
            driver = self._mine(request.peer_id)
            driver.delete_key(self._index, request.peer_id, request.slot)
        return messages.Done()

    def _get_peer(self, request: messages.GetPeer) -> messages.Reply:
        driver = self._mine(request.peer_id)
        found = driver.peer(self._index, request.peer_id)
        require(found, "no-peer")
        assert found is not None
        return messages.PeerCounters(**asdict(found))

    def _remove_peer(self, request: messages.RemovePeer) -> messages.Reply:
        if request.peer_id == self._peer_id:
            self.forget()
        return messages.Done()


def _check_peer(request: messages.NewPeer | messages.SetPeer) -> None:
    require(0 <= request.peer_id <= PEER_ID_MAX, "bad-peer-id")
    for seconds in (request.ping, request.ping_restart):
        require(0 <= seconds <= PING_MAX, "bad-ping")


def _key(request: messages.NewKey) -> ovpn.Key:
    """Check NewKey. No error repeats what it holds."""
    require(request.slot in (0, 1), "bad-slot")
    require(0 <= request.key_id <= KEY_ID_MAX, "bad-key-id")
    sizes = KEY_SIZES.get(request.cipher)
    require(sizes, "bad-cipher")
    try:
        encrypt, encrypt_nonce, decrypt, decrypt_nonce = map(
            bytes.fromhex,
            (
                request.encrypt_key,
                request.encrypt_nonce,
                request.decrypt_key,
                request.decrypt_nonce,
            ),
        )
    except ValueError:
        raise RequestRefusedError("bad-key") from None
    for key in (encrypt, decrypt):
        require(sizes and len(key) in sizes, "bad-key")
    require(len(encrypt) == len(decrypt), "bad-key")
    for nonce in (encrypt_nonce, decrypt_nonce):
        require(len(nonce) == NONCE_SIZE, "bad-key")
    return ovpn.Key(
        request.slot,
        request.key_id,
        request.cipher,
        encrypt,
        encrypt_nonce,
        decrypt,
        decrypt_nonce,
    )
