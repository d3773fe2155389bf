"""`qvm-vpn audit`: each finding appears when its cause does, and with it goes.

The host of the fixtures is made sound first; then one thing is broken.
"""

import json

import pytest

from qubes_vpn.qubes.admin import updates


@pytest.fixture
def sound(vpn, policy):
    """A host with nothing to find."""
    vpn.run("pin", "sys-vpn", "--yes")
    vpn.run("assign", "sys-vpn", "work", "personal")
    vpn.run("updates", "on", "sys-vpn")
    vpn.model.values["default_netvm"] = "sys-vpn"
    vpn.model.add(
        "vpn-dvm",
        template="fedora-43",
        values={"netvm": "sys-vpn", "template_for_dispvms": "True"},
        tags={"qubes-vpn-client"},
    )
    vpn.model.values["default_dispvm"] = "vpn-dvm"
    vpn.policy = policy
    return vpn


def test_a_sound_host_has_no_finding(sound):
    status, output, errors = sound.run("audit")
    assert (status, output, errors) == (0, "0 problems, 0 notes\n", "")
    assert sound.made() == []


def vms(sound, name):
    return sound.model.vms[name]


BREAKS = {
    "QV-201": lambda s: vms(s, "fedora-43").features.clear(),
    "QV-202": lambda s: vms(s, "sys-vpn").features.pop("service.qubes-vpn"),
    "QV-203": lambda s: vms(s, "sys-vpn").values.pop("provides_network"),
    "QV-204": lambda s: vms(s, "sys-vpn").values.update(netvm=""),
    "QV-205": lambda s: vms(s, "sys-vpn").features.update(ipv6="1"),
    "QV-206": lambda s: vms(s, "sys-vpn").firewall.pop(),
    "QV-207": lambda s: vms(s, "sys-vpn").firewall.insert(
        0, "action=accept dsthost=vpn.example.com"
    ),
    "QV-208": lambda s: vms(s, "sys-net").tags.add("anon-gateway"),
    "QV-209": lambda s: vms(s, "sys-vpn").values.update(netvm="sys-net"),
    "QV-210": lambda s: vms(s, "sys-vpn").features.update(
        {"service.network-manager": "1"}
    ),
    "QV-211": lambda s: vms(s, "work").tags.clear(),
    "QV-212": lambda s: vms(s, "vpn-dvm").values.update(netvm="sys-net"),
    "QV-213": lambda s: vms(s, "work").firewall.__setitem__(
        slice(None), ["action=accept dst4=192.0.2.1/32", "action=drop"]
    ),
    "QV-214": lambda s: (
        s.model.add(
            "disp9",
            klass="DispVM",
            template="vpn-dvm",
            values={"netvm": "sys-net"},
        ),
        vms(s, "vpn-dvm").features.update({"preload-dispvm": "disp9"}),
    ),
    "QV-215": lambda s: vms(s, "work").values.update(netvm="sys-firewall"),
    "QV-216": lambda s: s.model.values.update(default_netvm="sys-net"),
    "QV-217": lambda s: s.model.values.update(updatevm="sys-net"),
    "QV-218": lambda s: s.model.values.update(clockvm="sys-vpn"),
    "QV-219": lambda s: s.policy.clear(),
    "QV-220": lambda s: s.policy.update(
        {updates.POLICY_NAME: updates._TEXT.format("sys-net")}
    ),
}
NOTES = {
    *("QV-203", "QV-205", "QV-207", "QV-210", "QV-211", "QV-213"),
    *("QV-216", "QV-217", "QV-219"),
}


@pytest.mark.parametrize("code", sorted(BREAKS))
def test_each_break_is_found(sound, code):
    BREAKS[code](sound)
    status, output, errors = sound.run("audit")
    assert errors == ""
    found = {
        line.split(" ")[0] for line in output.splitlines() if "QV-" in line
    }
    assert code in found
    assert status == (0 if found <= NOTES else 1)
    kind = "note" if code in NOTES else "problem"
    assert f"{code} {kind}: " in output
    # nothing that has no connection with the break is reported
    assert len(found) <= 3


def test_findings_for_programs(sound):
    assert json.loads(sound.run("audit", "--json")[1]) == {
        "v": 1,
        "findings": [],
    }
    BREAKS["QV-202"](sound)
    status, output, _ = sound.run("audit", "--json")
    (found,) = json.loads(output)["findings"]
    assert (status, found["code"], found["serious"]) == (1, "QV-202", True)
    assert set(found) == {"code", "qube", "problem", "fix", "serious"}


def test_a_chain_of_net_qubes_behind_the_vpn_is_sound(sound):
    sound.model.add(
        "sys-firewall-2",
        template="fedora-43",
        values={"netvm": "sys-vpn", "provides_network": "True"},
        tags={"qubes-vpn-client"},
    )
    vms(sound, "work").values["netvm"] = "sys-firewall-2"
    assert sound.run("audit")[1] == "0 problems, 0 notes\n"
