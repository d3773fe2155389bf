"""The files that boot loads say what the package says."""

from importlib.resources import files

import pytest

from qubes_vpn.policy import firewall, routes, sysctls, uplink
from qubes_vpn.policy.phase import Blocked

LOCK = files("qubes_vpn.lockdown")


def test_the_filter_is_the_blocked_phase():
    assert (LOCK / "inet.nft").read_text() == firewall.render(Blocked())


def test_the_uplink_filter_is_the_blocked_phase():
    assert (LOCK / "netdev.nft").read_text() == uplink.render(Blocked())


def test_the_settings_are_the_same():
    expected = "".join(f"{path} {value}\n" for path, value in sysctls.SETTINGS)
    assert (LOCK / "sysctls").read_text() == expected


PROTOCOLS = {1: "icmp", 58: "ipv6-icmp"}


def as_batch(rule: routes.Rule) -> str:
    words = [f"rule add priority {rule.priority}"]
    if rule.iif:
        words.append(f"iif {rule.iif}")
    if rule.proto:
        words.append(f"ipproto {PROTOCOLS[rule.proto]}")
    words.append(f"lookup {rule.table}" if rule.table else "unreachable")
    if rule.suppress_group >= 0:
        words.append(f"suppress_ifgroup {rule.suppress_group}")
    return " ".join(words)


def test_the_rules_are_the_same():
    lines = (LOCK / "rules.batch").read_text().splitlines()
    commands = [line for line in lines if not line.startswith("#")]
    assert commands[0] == (
        f"route replace unreachable default metric {routes.METRIC_DENY}"
        f" table {routes.TABLE}"
    )
    assert sorted(commands[1:]) == sorted(map(as_batch, routes.rules()))


def test_what_denies_is_loaded_first():
    lines = (LOCK / "rules.batch").read_text().splitlines()
    found = [
        int(line.split()[3]) for line in lines if line.startswith("rule add")
    ]
    assert found == sorted(found, reverse=True)


def test_the_script_names_the_same_numbers():
    script = (LOCK / "lockdown.sh").read_text()
    assert f"fixed_gid={firewall.KEEPER_GID}\n" in script
    assert f"uplink={firewall.UPLINK}\n" in script
    assert f"metric {routes.METRIC_DENY}" in script
    for rule in routes.rules():
        assert f"'{rule.priority}:.from all" in script


@pytest.mark.parametrize("table", [firewall.STATIC, uplink.STATIC])
def test_no_drop_rests_on_a_policy_alone(table):
    """Each chain that may drop by policy ends in a drop of its own."""
    chains = table.split("\tchain ")[1:]
    dropping = [text for text in chains if "policy drop;" in text]
    assert dropping
    for text in dropping:
        body = text.split("\t}")[0].rstrip().splitlines()
        assert body[-1].strip() == "counter drop"
