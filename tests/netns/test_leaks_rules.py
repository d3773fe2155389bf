"""L06 to L09, L11: what is done to the rules; and a way round each of them."""

import pytest

from lab import Lab
from lab import addresses as at
from lab.appliance import Appliance
from lab.traffic import Flood
from tests.netns.scene import Scene, canary, flooded, holds
from tests.netns.test_lockdown import REMOVE
from tests.netns.toy import silent

ATTACKS = {
    "l06": "delete table inet qubes_vpn",
    "l07": "flush ruleset",
    "l08": "add table inet qubes_vpn { flags dormant; }",
}


POLICIES = {
    "inet qubes_vpn": ("forward", "input", "output"),
    "netdev qubes_vpn": ("egress", "ingress"),
}


def alone(layer):
    """A locked lab with one layer, and nobody who repairs it."""
    lab = Lab().start()
    Appliance(lab).lock()
    for name in REMOVE:
        if name != layer:
            REMOVE[name](lab)
    return lab


def under(scene, rules):
    flooded(lambda s: s.lab.vpn.nft(rules), probes=40)(scene)


def held(rules, *, uplink=""):
    """The attack is the control's undoing, and not ours."""
    lab = alone("filter")
    try:
        with Flood(lab.app(1)) as flood:
            assert not silent(lab, flood).leaks
            lab.vpn.nft(rules)
            assert any(map(canary, silent(lab, flood).leaks)), "void"
    finally:
        lab.close()
    assert not holds(
        "ours", lambda scene: under(scene, rules + uplink), owners=False
    )
    # the lock alone, with no process of ours
    with Scene("ours", connect=False) as scene, Flood(scene.app) as flood:
        scene.lab.vpn.nft(rules)
        assert not silent(scene.lab, flood).canaries


def test_l06_the_table_is_deleted():
    held(ATTACKS["l06"], uplink="\ndelete table netdev qubes_vpn")


def test_l07_the_ruleset_is_flushed():
    held(ATTACKS["l07"])


def test_l08_the_table_sleeps():
    held(
        ATTACKS["l08"],
        uplink="\nadd table netdev qubes_vpn { flags dormant; }",
    )


def test_l09_a_policy_is_flipped():
    """A drop that rests on a policy is undone by one command."""
    naive = """
        add table inet naive
        add chain inet naive f {
            type filter hook forward priority -10; policy drop;
        }
    """
    flip = "add chain inet {} {} {{ policy accept; }}"
    with Lab() as lab:
        lab.vpn.nft(naive)
        with Flood(lab.app(1)) as flood:
            assert not silent(lab, flood).canaries
            lab.vpn.nft(flip.format("naive", "f"))
            assert silent(lab, flood).canaries, "void: no control"
    lab = alone("filter")
    try:
        with Flood(lab.app(1)) as flood:
            for chain in ("forward", "input", "output"):
                lab.vpn.nft(flip.format("qubes_vpn", chain))
            assert not silent(lab, flood).leaks
    finally:
        lab.close()

    def flipped(scene):
        for table, chains in POLICIES.items():
            for chain in chains:
                scene.lab.vpn.nft(
                    f"add chain {table} {chain} {{ policy accept; }}"
                )

    assert not holds("ours", flooded(flipped), owners=False)


@pytest.mark.parametrize("layer", REMOVE)
def test_l11_a_connection_from_before(layer):
    """The drop is asked before what is established is accepted."""
    late = f"""
        add table inet naive
        add chain inet naive f {{ type filter hook forward priority -10; }}
        add rule inet naive f ct state established accept
        add rule inet naive f ip daddr {at.WEB4} drop
    """
    with Lab() as lab, Flood(lab.app(1)) as flood:
        flood.wait_echoes(3)
        lab.vpn.nft(late)
        assert silent(lab, flood).canaries, "void: no control"
        Appliance(lab).lock()
        for name in REMOVE:
            if name != layer:
                REMOVE[name](lab)
        assert not silent(lab, flood).canaries
