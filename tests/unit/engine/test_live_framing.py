"""How a real server frames, cuts and compresses its packets."""

from ipaddress import ip_address

import pytest

from qubes_vpn.engine import effects
from tests.unit.engine.live import icmp_echo

pytestmark = [pytest.mark.netns, pytest.mark.interop]

GATEWAY = ip_address("10.8.0.1")


def settings_of(live):
    return live.of(effects.ApplySettings)[-1].settings


# --- fragments ----------------------------------------------------------------


@pytest.mark.parametrize("framing", [(), ("comp-lzo no",)])
def test_fragments_of_a_server_are_put_together(start_server, connect, framing):
    lines = ("fragment 700", *framing)
    # the server cuts a large packet; we are to send none that is too large
    server = start_server(extra=lines, client_extra=lines)
    live = connect(server)
    settings = settings_of(live)
    assert settings.path_mtu <= 700 - 24
    assert live.ping_through(GATEWAY)[20] == 0
    echo = icmp_echo(settings.ifconfig4.ip, GATEWAY, 9, bytes(1400))
    live.send_data(echo)
    live.run_until(lambda one: len(one.received) > 1)
    assert len(live.received[1]) == len(echo)
    assert live.traffic.rx_packets >= 4, "it came in pieces"
    assert not live.channel.drops


@pytest.mark.parametrize(
    "method", ["comp-lzo yes", "compress lz4", "compress lz4-v2"]
)
def test_a_server_that_compresses_is_understood(start_server, connect, method):
    ours = (method, "allow-compression asym")
    server = start_server(
        extra=(method, "allow-compression yes"), client_extra=ours
    )
    live = connect(server)
    address = settings_of(live).ifconfig4.ip
    contents = (bytes(1000), bytes(range(256)) * 4, b"abcdefghi" * 40)
    for number, content in enumerate(contents):
        echo = icmp_echo(address, GATEWAY, number, content)
        live.send_data(echo)
        # the server's kernel also speaks of IPv6
        live.run_until(lambda one: any(p[0] == 0x45 for p in one.received))
        (answer,) = (p for p in live.received if p[0] == 0x45)
        live.received.clear()
        assert answer[28:] == content
    assert live.traffic.rx_bytes < 2000, "it was compressed"
    assert not live.channel.drops


COMPRESSING = ("comp-lzo yes", "compress lz4", "compress lz4-v2")


@pytest.mark.parametrize("method", COMPRESSING)
@pytest.mark.parametrize("pushed", [True, False], ids=["pushed", "ours"])
def test_without_permission_nothing_is_unpacked(
    start_server, connect, method, pushed
):
    """What does not shrink arrives; what came compressed does not at all."""
    ours = () if pushed else (method, "allow-compression no")
    server = start_server(
        extra=(method, "allow-compression yes"),
        push=(method,) if pushed else (),
        client_extra=ours,
    )
    live = connect(server)
    address = settings_of(live).ifconfig4.ip
    live.send_data(icmp_echo(address, GATEWAY, 1, bytes(1000)))
    live.run_until(lambda one: "compressed" in one.channel.drops)
    assert not any(p[0] == 0x45 for p in live.received)
    # short packets are not worth it
    live.send_data(icmp_echo(address, GATEWAY, 2))
    live.run_until(lambda one: any(p[0] == 0x45 for p in one.received))
    # the server's kernel also speaks of IPv6
    assert {packet[0] >> 4 for packet in live.received} <= {4, 6}
    assert set(live.channel.drops) == {"compressed"}
