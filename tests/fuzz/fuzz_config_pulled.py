"""Any push is settings within their bounds, or one of two SessionErrors."""

from ipaddress import ip_address

from qubes_vpn.config.model import ClientProfile, Remote, ServerCheck
from qubes_vpn.config.pulled import merge
from qubes_vpn.config.routing import PROTECTED
from qubes_vpn.errors import SessionError
from qubes_vpn.keeper.bounds import check_configure
from qubes_vpn.runtime.mapping import configure

REMOTE = Remote("192.0.2.10")
PROFILE = ClientProfile(
    (REMOTE,),
    ServerCheck(),
    pull_filters=(("ignore", "route 9"), ("reject", "reject-me")),
)
GATEWAY = ip_address("198.51.100.1")
SEEDS = (
    b"topology subnet,ifconfig 10.8.0.2 255.255.255.0,route-gateway 10.8.0.1,"
    b"dhcp-option DNS 10.8.0.1,redirect-gateway def1,peer-id 1,cipher AES-256-GCM",
    b"ifconfig 10.8.0.6 10.8.0.5,route 10.0.0.0 255.0.0.0 vpn_gateway 5,ping 10",
    b"ifconfig-ipv6 fd00::2/64 fd00::1,route-ipv6 2000::/3,dns server 0 address 9.9.9.9",
    b"route 10.137.0.0 255.255.0.0,route 192.0.2.10,tun-mtu 1400,compress stub-v2",
    b"topology subnet,ifconfig 10.8.0.2 0.0.0.0,ifconfig-ipv6 fd00::1/0,tun-mtu 600",
    b"ifconfig 10.8.0.2 255.255.255.0,dns server 1 address ::ffff:9.9.9.9,tun-mtu 99,"
    b"dns search-domains a_b -x a..b example.org,dhcp-option DOMAIN x.",
    b"reject-me,protocol-flags cc-exit tls-ekm,auth-token x,explicit-exit-notify",
)


def one_input(data: bytes) -> None:
    """Merge the options of one push."""
    options = data.decode("utf-8", "surrogateescape").split(",")
    try:
        settings = merge(PROFILE, REMOTE, options, gateway=GATEWAY)
    except SessionError as error:
        if error.reason in {"pull-filter", "address"}:
            return
        raise
    assert len(settings.routes) <= 1024 + 16
    assert len(settings.dns) <= 8
    assert 576 <= settings.mtu <= 1600
    if settings.ifconfig4 or settings.ifconfig6:
        # what the server can make of it, the keeper takes
        check_configure(configure(settings), "tun-vpn")
    neighbours = {
        one.network for one in (settings.ifconfig4, settings.ifconfig6) if one
    }
    for route in settings.routes:
        network = route.network
        if network in neighbours or network.num_addresses == 1:
            continue
        assert not any(
            network.version == one.version and network.subnet_of(one)
            for one in PROTECTED
        )
    for name, reason in settings.refused:
        assert name.isprintable()
        assert name.isascii()
        assert reason
