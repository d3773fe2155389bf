"""`lockdown check` says what is wrong, from the kernel's own state."""

import json
import os
import sys

import pytest

from lab import addresses as at
from tests.netns.test_keeper_guardian import BY_IP, BY_NFT
from tests.netns.toy import Rig, lock

COMMAND = [sys.executable, "-m", "qubes_vpn", "lockdown", "check"]


def check(lab):
    done = lab.vpn.run([*COMMAND, "--json"], check=False)
    answer = json.loads(done.stdout)
    assert done.returncode == (os.EX_OK if answer["ok"] else os.EX_UNAVAILABLE)
    return {
        (row["layer"], row["what"]) for row in answer["rows"] if not row["ok"]
    }


def layers(failed):
    return {layer for layer, _ in failed}


def test_without_the_lock_every_layer_fails(lab):
    failed = check(lab)
    assert layers(failed) == {"filter", "routing", "uplink", "settings"}
    shown = lab.vpn.run(COMMAND, check=False).stdout
    # nothing is said of what is not there
    assert "dormant" not in shown
    assert "missing: 45, 45, 46" in shown
    assert f"{len(failed)} of {shown.count('pass') + len(failed)} do not" in (
        shown
    )
    assert "`sudo qubes-vpn lockdown apply`" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_with_the_lock_all_is_well_in_every_phase(lab):
    lock(lab)
    assert check(lab) == set()
    with Rig(lab) as rig:
        assert check(lab) == set()
        rig.adopt().dial()
        assert check(lab) == set()
        rig.forward()
        assert check(lab) == set()
        done = lab.vpn.run(COMMAND)
        assert done.stdout.endswith("\nThe lock is in force.\n")
        assert f"{at.SERVER4} udp {at.VPN_PORT}" in done.stdout
        assert all(len(line) <= 80 for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", sorted(set(BY_NFT) - {"agents", "resolver"}))
def test_a_changed_ruleset_is_seen(lab, name):
    lock(lab)
    lab.vpn.nft(BY_NFT[name])
    if name == "endpoint":  # it cannot know the profile: it shows it
        done = lab.vpn.run(COMMAND)
        assert "198.51.100.80 udp 7" in done.stdout
        return
    expected = "uplink" if name.startswith("uplink") else "filter"
    assert expected in layers(check(lab))


@pytest.mark.parametrize("name", sorted(set(BY_IP) - {"addresses", "down"}))
def test_changed_routing_is_seen(lab, name):
    lock(lab)
    lab.vpn.ip(BY_IP[name])
    assert layers(check(lab)) == {"routing"}


def test_an_accept_in_a_chain_of_phases_is_seen(lab):
    lock(lab)
    lab.vpn.nft("add rule inet qubes_vpn phase accept")
    assert layers(check(lab)) == {"filter"}


def test_a_changed_setting_is_seen(lab):
    lock(lab)
    lab.vpn.sysctl({"ipv4/conf/all/accept_redirects": 1})
    assert layers(check(lab)) == {"settings"}
