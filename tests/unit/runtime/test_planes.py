"""Which plane is chosen, by what the keeper and the server say."""

import socket
from dataclasses import replace
from ipaddress import ip_address

import pytest

from qubes_vpn.config.profile import parse_client_profile
from qubes_vpn.config.pulled import TunnelSettings
from qubes_vpn.crypto.keys import DataKeys, DirectionKeys
from qubes_vpn.dataplane import choose
from qubes_vpn.dataplane.kernel import KernelPlane
from qubes_vpn.dataplane.userspace import UserspacePlane
from qubes_vpn.engine.data_channel import DataChannel
from qubes_vpn.engine.traffic import Traffic
from qubes_vpn.errors import OsRefusedError
from qubes_vpn.keeper import messages
from qubes_vpn.keeper.client import KeeperRefusedError
from qubes_vpn.policy.phase import Plane
from qubes_vpn.runtime.planes import Planes
from tests.unit.keeper.script import Script

SIDE = DirectionKeys(b"k" * 32, implicit_iv=b"i" * 8)
KEYS = DataKeys(3, 17, "AES-256-GCM", SIDE, SIDE)
SETTINGS = TunnelSettings(cipher="AES-256-GCM")
FINGERPRINT = ":".join(["00"] * 32)
PROFILE = f"""
client
dev tun
remote 192.0.2.10 1194 udp
peer-fingerprint {FINGERPRINT}
auth-user-pass
"""


class Opener(Script):
    """Opens what is asked for; `refuse`: reasons by the request's type."""

    def __init__(self):
        super().__init__()
        self.refuse = {}
        self.far = []

    def stop(self):
        super().stop()
        for sock in self.far:
            sock.close()

    def answer(self, request):
        answer = messages.Done()
        match request:
            case messages.OpenTun():
                answer = messages.TunOpened("tun-vpn")
            case messages.NewPeer():
                answer = messages.TunOpened("ovpn-vpn")
        slug = self.refuse.get(type(request))
        if isinstance(request, messages.OpenLink):
            slug = slug if request.plane is Plane.KERNEL else None
        if slug:
            return messages.Refused(slug, "no"), ()
        if not isinstance(
            request, messages.OpenLink | messages.OpenRelay | messages.OpenTun
        ):
            return answer, ()
        ours, theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        )
        self.far.append(theirs)
        return answer, (ours.detach(),)


@pytest.fixture
def keeper():
    with Opener() as script:
        yield script.client, script


def begin(planes, text=PROFILE):
    """Open the link and give the plane of the handshake."""
    profile = parse_client_profile(text, "profile", None)
    link = planes.open_link(profile, profile.remotes[0], 0)
    channel = DataChannel(Traffic())
    return link, channel, planes.start(link, channel, stream=False)


def kinds(script):
    return [type(request).__name__ for request in script.asked]


def test_the_kernels_is_used_where_it_is(keeper):
    planes = Planes(keeper[0])
    link, channel, plane = begin(planes)
    with link:
        assert not planes.features.epoch
        assert planes.settle(plane, channel, SETTINGS, KEYS) is plane
    assert isinstance(plane, KernelPlane)
    assert (planes.plane, planes.reason) == (Plane.KERNEL, "")
    assert planes.device == "ovpn-vpn"
    assert kinds(keeper[1]) == ["OpenLink", "NewPeer", "NewKey"]


def test_without_a_driver_it_is_asked_for_once(keeper):
    keeper[1].refuse[messages.OpenLink] = "no-ovpn"
    planes = Planes(keeper[0])
    for _ in range(2):
        link, channel, plane = begin(planes)
        with link:
            plane = planes.settle(plane, channel, SETTINGS, KEYS)
            assert isinstance(plane, UserspacePlane)
            plane.close()
    assert planes.features.epoch
    assert planes.reason == "this kernel has no ovpn"
    assert kinds(keeper[1]) == ["OpenLink", "OpenTun", "OpenLink", "OpenLink"]


@pytest.mark.parametrize(
    ("keys", "refused", "why"),
    [
        ({"cipher": "AES-256-CBC"}, None, "not for AES-256-CBC"),
        ({}, messages.NewPeer, "the driver refuses: os-refused: no"),
        ({}, messages.NewKey, "the driver refuses: os-refused: no"),
    ],
)
def test_what_the_driver_refuses_goes_on_in_userspace(
    keeper, keys, refused, why
):
    keeper[1].refuse[refused] = "os-refused"
    planes = Planes(keeper[0])
    link, channel, plane = begin(planes)
    given = replace(KEYS, **keys)
    if "cipher" in keys:
        side = replace(SIDE, hmac_key=b"h" * 32)
        given = replace(given, encrypt=side, decrypt=side, digest="SHA256")
    with link:
        following = planes.settle(plane, channel, SETTINGS, given)
        assert isinstance(following, UserspacePlane)
        assert channel.primary is not None
        following.close()
    assert (planes.plane, planes.reason) == (Plane.USERSPACE, why)
    assert planes.device == "tun-vpn"
    # one link: the server sees nothing of it
    assert kinds(keeper[1]).count("OpenLink") == 1


def test_with_kernel_nothing_else_will_do(keeper):
    planes = Planes(keeper[0], "kernel")
    link, channel, plane = begin(planes)
    static = replace(KEYS, peer_id=None)
    with link, pytest.raises(OsRefusedError, match="gave no peer-id"):
        planes.settle(plane, channel, SETTINGS, static)
    assert "OpenTun" not in kinds(keeper[1])
    keeper[1].refuse[messages.OpenLink] = "no-ovpn"
    with pytest.raises(OsRefusedError, match="this kernel has no ovpn"):
        begin(planes)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("http-proxy 192.0.2.1 3128", "not through a proxy"),
        ("fragment 1200", "not with fragment"),
        ("data-ciphers AES-256-CBC", "no cipher of the driver's"),
    ],
)
def test_a_profile_that_does_not_suit_is_not_tried(keeper, line, why):
    text = (
        PROFILE.replace("1194 udp", "1194 tcp") if "proxy" in line else PROFILE
    )
    planes = Planes(keeper[0])
    link, _, plane = begin(planes, f"{text}{line}\n")
    with link:
        plane.close()
    assert planes.reason == why
    assert kinds(keeper[1]) == ["OpenTun", "OpenLink"]


def test_another_refusal_is_no_reason_to_go_on(keeper):
    keeper[1].refuse[messages.OpenLink] = "os-refused"
    with pytest.raises(KeeperRefusedError):
        begin(Planes(keeper[0]))


def test_no_tun_device_stands_by_the_kernels(keeper):
    planes = Planes(keeper[0])
    link, _, plane = begin(planes, f"{PROFILE}fragment 1200\n")
    with link:
        plane.close()
    tun = keeper[1].far[0]
    tun.send(b"still there")
    with begin(planes)[0], pytest.raises(OSError, match=r"refused|Broken"):
        tun.send(b"gone")
    assert planes.device == ""


def test_the_link_is_made_as_the_profile_says(keeper):
    lines = "local 192.0.2.7\nlport 4000\nsndbuf 5000\nrcvbuf 6000\n"
    planes = Planes(keeper[0], "userspace")
    link, _, plane = begin(planes, PROFILE + lines)
    plane.close()
    link.close()
    (asked,) = [
        request
        for request in keeper[1].asked
        if isinstance(request, messages.OpenLink)
    ]
    local = ip_address("192.0.2.7")
    made = (asked.local, asked.lport, asked.sndbuf, asked.rcvbuf)
    assert made == (local, 4000, 5000, 6000)


def test_a_relay_has_a_device_without_headers_and_a_socket_of_its_own(
    keeper, monkeypatch
):
    monkeypatch.setattr(choose, "can_offload", lambda: True)
    planes = Planes(keeper[0])
    text = PROFILE + "lport 4000\nsocks-proxy 192.0.2.9\n"
    profile = parse_client_profile(text, "profile", None)
    remote = profile.remotes[0]
    plain = replace(remote, proxy=None)
    userspace = replace(profile, compression="stub")
    for each in (remote, remote, plain):
        planes.open_link(userspace, each, 0).close()
    headers = [
        request.vnet_hdr
        for request in keeper[1].asked
        if isinstance(request, messages.OpenTun)
    ]
    assert headers == [False, True]
    planes.open_relay(profile, remote, 4444).close()
    assert keeper[1].asked[-1] == messages.OpenRelay(4444, lport=4000)
