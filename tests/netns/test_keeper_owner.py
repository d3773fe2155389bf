"""A filter that nobody else can change, where the system has such tables."""

import json
import os
import shutil
import signal

import pytest

from lab import LabError, nft11
from lab.traffic import Flood
from qubes_vpn.keeper import messages
from tests.netns.test_keeper_guardian import BY_NFT
from tests.netns.toy import (
    ALLOWED,
    SCRIPT,
    TIMEOUT,
    Rig,
    lock,
    wait,
    without_owners,
)

TOUCHING = [name for name, text in BY_NFT.items() if "inet qubes_vpn" in text]


@pytest.fixture
def newer(lab, tmp_path):
    """A VPN qube whose nft is the newer one, for scripts and people too."""
    program = tmp_path / "nft"
    program.write_text(f'#!/bin/sh\nexec {" ".join(nft11.nft())} "$@"\n')
    program.chmod(0o755)
    path = shutil.which("nft")
    lab.vpn.run(["mount", "--bind", str(program), path])
    yield
    lab.vpn.run(["umount", path])


@pytest.fixture
def rig(lab, newer):
    lock(lab)
    with Rig(lab, python=nft11.python()) as made:
        yield made.connect()


def flags(lab):
    (line,) = [x for x in filter_of(lab).splitlines() if "\tflags " in x]
    return line.split()[1]


def filter_of(lab):
    return lab.vpn.run(
        ["nft", "-a", "list", "table", "inet", "qubes_vpn"]
    ).stdout


def chains(lab):
    """The chains with their handles: those of a table made anew differ."""
    return [x for x in filter_of(lab).splitlines() if "chain" in x]


def test_others_cannot_change_it(lab, rig):
    """No repair: it has never been different."""
    assert flags(lab) == "owner,persist"
    before = chains(lab)
    for name in TOUCHING:
        with pytest.raises(LabError, match="Operation not permitted"):
            lab.vpn.nft(BY_NFT[name])
    rig.engine.request(messages.Heartbeat())
    assert rig.status.repairs == 0, rig.notices
    lab.vpn.nft(BY_NFT["flushed"])
    assert rig.wait_notice(messages.Repaired).layer == "uplink", rig.notices
    assert rig.status.repairs == 1, rig.notices
    assert chains(lab) == before


def test_it_outlives_its_owner_and_is_owned_again(lab, rig):
    with Flood(lab.app(1)) as flood, lab.capture(ALLOWED) as capture:
        flood.wait_echoes(3)
        rig.process.kill()
        rig.process.wait(TIMEOUT)
        assert flags(lab) == "persist"
        flood.wait_sent(20)
        rig.kill_engine()
        with Rig(lab, server=False, python=nft11.python()) as second:
            second.connect()
            assert flags(lab) == "owner,persist"
            flood.wait_echoes(3)
    assert capture.report().leaks == ()


def test_the_lock_replaces_what_an_owner_left(lab, rig):
    rig.process.kill()
    rig.process.wait(TIMEOUT)
    assert "tun-vpn" in filter_of(lab)
    lock(lab)
    assert "tun-vpn" not in filter_of(lab)
    assert "policy drop" in filter_of(lab)


def test_a_hanging_owner_is_closed_by_the_other_layers(lab, rig):
    """What a person or an upgrade does while the keeper does not answer."""
    with Flood(lab.app(1)) as flood, lab.capture(ALLOWED) as capture:
        flood.wait_echoes(3)
        rig.process.send_signal(signal.SIGSTOP)
        lock(lab)
        seen = len(flood.echoes)
        flood.wait_sent(40)
        assert len(flood.echoes) <= seen + 1  # one was on its way
        assert (
            "link4"
            not in lab.vpn.run(
                ["nft", "list", "set", "netdev", "qubes_vpn", "address4"]
            ).stdout
        )
        rig.process.send_signal(signal.SIGCONT)
        flood.wait_echoes(3)
    assert capture.report().leaks == ()


def test_it_is_not_removed_under_its_owner(lab, rig):
    done = lab.vpn.run([SCRIPT, "remove", "--open-network"], check=False)
    assert done.returncode == 71
    assert "stop qubes-vpn-keeper first" in done.stderr
    rig.agent.close()
    rig.process.wait(TIMEOUT)
    lab.vpn.run([SCRIPT, "remove", "--open-network"])
    assert "qubes_vpn" not in lab.vpn.run(["nft", "list", "tables"]).stdout


def check(lab):
    """What `lockdown check` finds amiss, with the newer nft."""
    words = [*nft11.python(), "-m", "qubes_vpn", "lockdown", "check"]
    done = lab.vpn.run([*words, "--json"], check=False)
    answer = json.loads(done.stdout)
    assert done.returncode == (os.EX_OK if answer["ok"] else os.EX_UNAVAILABLE)
    return {row["layer"] for row in answer["rows"] if not row["ok"]}


def test_an_owned_table_can_be_checked(lab, newer):
    lock(lab)
    assert check(lab) == set()
    with Rig(lab, python=nft11.python()) as rig:
        assert check(lab) == set()
        rig.connect()
        assert flags(lab) == "owner,persist"
        assert check(lab) == set()
        # who owns it may still be wrong about the other layers
        rig.process.send_signal(signal.SIGSTOP)
        lab.vpn.nft(BY_NFT["uplink-rule"])
        assert check(lab) == {"uplink"}
        rig.process.send_signal(signal.SIGCONT)
        rig.process.kill()
    assert flags(lab) == "persist"
    lab.vpn.nft(BY_NFT["accept"])
    assert "filter" in check(lab)


def test_a_second_keeper_leaves_the_first_alone(lab, rig):
    with Flood(lab.app(1)) as flood:
        flood.wait_echoes(3)
        words = [*nft11.python(), "-m", "qubes_vpn.keeper", "--agent-fd", "0"]
        done = lab.vpn.run(words, check=False)
        assert done.returncode == 69
        assert "another keeper runs" in done.stderr
        flood.wait_echoes(3)
    assert rig.status.phase == "connected"


def test_the_rest_is_guarded_as_before(lab, rig):
    lab.vpn.nft(BY_NFT["uplink"])
    assert rig.wait_notice(messages.Repaired).layer == "uplink"
    lab.vpn.ip("rule del priority 71")
    wait(lambda: rig.status.repairs == 2, "the rule")


def test_an_older_nft_does_without(lab):
    without_owners(lab)
    lock(lab)
    with Rig(lab) as rig:
        rig.connect()
        assert "owner" not in filter_of(lab)
