"""Pinning: what a VPN qube says is not believed, and nothing is widened."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_vpn.qubes.admin import pin
from qubes_vpn.qubes.admin.plan import AdminError

PINNED = [
    "action=accept dst4=203.0.113.7/32 proto=udp dstports=1194-1194",
    "action=drop",
]


def answers(host, *lines):
    text = "\n".join(lines)
    host.service("sys-vpn", "qubesvpn.Endpoints", f"cat <<'.'\n{text}\n.")


def firewall(host):
    return host.model.vms["sys-vpn"].firewall


def test_the_first_pin_is_asked_for(vpn):
    status, output, errors = vpn.run("pin", "sys-vpn")
    assert status == 1
    assert "+ action=accept dst4=203.0.113.7/32" in output
    assert "not agreed" in errors
    assert firewall(vpn) == ["action=drop"]
    assert vpn.run("pin", "sys-vpn", "--yes")[0] == 0
    assert firewall(vpn) == PINNED


def test_both_families_and_protocols(vpn):
    answers(vpn, "203.0.113.7 udp 1194", "2001:db8::7 tcp 443")
    assert vpn.run("pin", "sys-vpn", "--yes")[0] == 0
    assert firewall(vpn) == [
        PINNED[0],
        "action=accept dst6=2001:db8::7/128 proto=tcp dstports=443-443",
        "action=drop",
    ]


def test_narrowing_is_not_asked_for_and_widening_is(vpn):
    answers(vpn, "203.0.113.7 udp 1194", "203.0.113.8 udp 1194")
    vpn.run("pin", "sys-vpn", "--yes")
    answers(vpn, "203.0.113.7 udp 1194")
    assert vpn.run("pin", "sys-vpn")[0] == 0
    assert firewall(vpn) == PINNED
    answers(vpn, "203.0.113.7 udp 1194", "203.0.113.9 udp 53")
    assert vpn.run("pin", "sys-vpn")[0] == 1
    assert firewall(vpn) == PINNED
    assert vpn.run("pin", "sys-vpn", "--auto")[0] == 0
    assert len(firewall(vpn)) == 3


def test_pinning_what_was_open_narrows(vpn):
    assert vpn.run("unpin", "sys-vpn")[0] == 0
    assert firewall(vpn) == ["action=accept"]
    assert vpn.run("pin", "sys-vpn")[0] == 0
    assert firewall(vpn) == PINNED


def test_a_second_pin_changes_nothing(vpn):
    vpn.run("pin", "sys-vpn", "--yes")
    status, output, _ = vpn.run("pin", "sys-vpn")
    assert (status, output) == (0, "nothing to do\n")
    assert vpn.made() == ["sys-vpn vm.Start+ "]


def test_refresh_lets_names_resolve_and_takes_that_back(vpn):
    vpn.run("pin", "sys-vpn", "--yes")
    vpn.service(
        "sys-vpn",
        "qubesvpn.Endpoints",
        '[ "$1" = refresh ] && echo 203.0.113.9 udp 1194',
    )
    assert vpn.run("pin", "--refresh", "sys-vpn")[0] == 1
    assert firewall(vpn) == PINNED
    sets = [line for line in vpn.made() if "firewall.Set" in line]
    assert len(sets) == 2
    assert "specialtarget=dns expire=" in sets[0]
    assert vpn.run("pin", "--refresh", "sys-vpn", "--yes")[0] == 0
    assert "203.0.113.9" in firewall(vpn)[0]
    assert not any("specialtarget" in rule for rule in firewall(vpn))


def test_a_dry_run_shows_a_sequence_that_is_never_open(vpn):
    vpn.model.vms["sys-vpn"].state = "Running"
    status, output, _ = vpn.run("pin", "sys-vpn", "--yes", "--dry-run")
    assert status == 0
    assert firewall(vpn) == ["action=drop"]
    assert output.splitlines() == [
        "qvm-firewall sys-vpn add --before 0 action=drop",
        "qvm-firewall sys-vpn add --before 0 " + PINNED[0],
        "qvm-firewall sys-vpn del --rule-no 2",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "evil.example.com udp 1194",
        "203.0.113.7 udp 0",
        "203.0.113.7 udp 65536",
        "203.0.113.7 udp 01194",
        "203.0.113.7  udp 1194",
        "203.0.113.7 icmp 1",
        "203.0.113.7/0 udp 1194",
        "203.0.113.7 udp 1194 comment=x",
        "10.137.0.9 udp 53",
        "::ffff:192.0.2.1 udp 53",
        "10.139.1.1 udp 53",
        "127.0.0.1 udp 53",
        "224.0.0.1 udp 53",
        "0.0.0.0 udp 53",
        "fd09:24ef:4179::1 udp 53",
        "203.0.113.7 udp 1194\n\n",
        "\u0662 udp 1",
        "203.0.113.7 udp \u0661",
    ],
)
def test_a_line_that_is_not_strict_refuses_the_whole_list(vpn, line):
    answers(vpn, "203.0.113.7 udp 1194", line)
    status, _, errors = vpn.run("pin", "sys-vpn", "--auto")
    assert status == 69
    assert "its list of endpoints is refused" in errors
    assert firewall(vpn) == ["action=drop"]


def test_too_many_lines_are_refused():
    line = "203.0.113.{} udp 1194\n"
    lines = [line.format(n).encode() for n in range(33)]
    assert len(pin.parse_endpoints("q", b"".join(lines[:32]))) == 32
    with pytest.raises(AdminError, match="more than 32"):
        pin.parse_endpoints("q", b"".join(lines))
    with pytest.raises(AdminError, match="too long"):
        pin.parse_endpoints("q", b"x" * 5000)


@given(
    st.binary(max_size=300)
    | st.text("0123456789abcdef.: udptc\n").map(str.encode)
)
def test_any_answer_gives_addresses_or_admin_error(untrusted):
    try:
        endpoints = pin.parse_endpoints("q", untrusted)
    except AdminError:
        return
    for endpoint in endpoints:
        assert str(endpoint).encode() in untrusted or isinstance(
            endpoint.address, ipaddress.IPv6Address
        )


def test_no_endpoint_is_an_error_with_the_fix(vpn):
    vpn.service("sys-vpn", "qubesvpn.Endpoints", "true")
    status, _, errors = vpn.run("pin", "sys-vpn")
    assert status == 69
    assert "qvm-vpn pin --refresh sys-vpn" in errors


def test_import_pins_again(vpn):
    vpn.file("work", "x.ovpn", "client\n")
    assert vpn.run("import", "sys-vpn", "work:x.ovpn", "--yes")[0] == 0
    assert firewall(vpn) == PINNED


def test_a_declined_import_is_taken_back(vpn):
    vpn.file("work", "x.ovpn", "client\n")
    assert vpn.run("import", "sys-vpn", "work:x.ovpn")[0] == 1
    assert firewall(vpn) == ["action=drop"]
    assert "vm-config.vpn-profile" not in vpn.model.vms["sys-vpn"].features
