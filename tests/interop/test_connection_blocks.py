"""Several servers in one profile, each with settings of its own."""

import pytest

from lab import addresses as at
from lab.appliance import Appliance
from lab.openvpn import Wrap, wrap_keys
from lab.traffic import fetch
from qubes_vpn.wire.opcode import DATA_OPCODES, Opcode

ETHERNET = 14
# IPv4 without options, then UDP
UDP_PAYLOAD = ETHERNET + 20 + 8
CONTROL = frozenset(Opcode) - DATA_OPCODES


def block(address, port, wrap, more=""):
    key = wrap_keys(wrap)[1]
    return (
        f"<connection>\nremote {address} {port} udp\n{more}"
        f"<{wrap}>\n{key}</{wrap}>\n</connection>\n"
    )


def without_remote(server):
    """A profile for the server, but for where it is and its control wrap."""
    lines = server.client_profile(wrap=Wrap.PLAIN).splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("remote "))


def test_the_second_server_has_another_wrap(lab, start_server):
    server = start_server(wrap=Wrap.TLS_CRYPT)
    profile = (
        without_remote(server)
        + "hand-window 2\n"
        + block(at.SECOND_SERVER4, 4444, Wrap.TLS_AUTH)
        + block(at.SERVER4, at.VPN_PORT, Wrap.TLS_CRYPT)
    )
    with Appliance(lab).lock() as appliance:
        appliance.connect(profile).wait_connected()
        assert "QV-" in appliance.log(), "the first one does not answer"
        assert appliance.status()["remote"]["address"] == str(at.SERVER4)
        assert fetch(lab.app(1)).status == 200


@pytest.mark.parametrize("size", [600, 1200])
def test_control_packets_have_the_size_of_their_block(lab, start_server, size):
    """Of the packet on the link; a certificate does not fit into one."""
    server = start_server(wrap=Wrap.TLS_CRYPT)
    own = f"max-packet-size {size}\n"
    profile = without_remote(server) + block(
        at.SERVER4, at.VPN_PORT, Wrap.TLS_CRYPT, own
    )
    with lab.capture() as capture, Appliance(lab).lock() as appliance:
        appliance.connect(profile).wait_connected()
    longest = max(
        len(frame) - ETHERNET
        for out, frame in capture.frames()
        if out and frame[UDP_PAYLOAD] >> 3 in CONTROL
    )
    assert size - 40 < longest <= size
