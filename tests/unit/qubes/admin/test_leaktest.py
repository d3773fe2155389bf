"""`qvm-vpn leaktest` between real network namespaces: it must be able to fail.

disp1 (the disposable) -- sys-vpn -- sys-firewall, joined by veth pairs. The
same test runs with a VPN qube that forwards in clear and with one that drops.
"""

import itertools
import json
import os
import subprocess

import pytest

from qubes_vpn.qubes.admin import leaktest

pytestmark = [pytest.mark.netns, pytest.mark.slow]
QUBES = ("disp1", "sys-vpn", "sys-firewall")
_counter = itertools.count()


def run(*command):
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def chain(vpn, monkeypatch):
    """The host, whose three qubes run in namespaces; sys-vpn forwards."""
    number = next(_counter)
    names = {q: f"qvl{os.getpid()}-{number}-{q[4:7]}" for q in QUBES}
    made = []
    try:
        for qube, netns in names.items():
            run("ip", "netns", "add", netns)
            made.append(netns)
            run("ip", "-n", netns, "link", "set", "lo", "up")
            vpn.file(qube, "netns", netns)
        _join(names["disp1"], names["sys-vpn"], "10.9.1")
        _join(names["sys-vpn"], names["sys-firewall"], "10.9.2")
        inside = ("ip", "netns", "exec", names["sys-vpn"])
        run(*inside, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        vpn.netns = names
        vpn.killed = vpn.root / "sys-vpn" / "killed"
        _systemctl(vpn)
        monkeypatch.setattr(leaktest, "ROUND_S", 0.7)
        vpn.model.values["default_dispvm"] = "work"
        vpn.model.vms["sys-vpn"].state = "Running"
        yield vpn
    finally:
        for netns in made:
            run("ip", "netns", "del", netns)


def _join(inner, outer, network):
    """Join two namespaces; the inner one's default route is the outer."""
    run(
        *("ip", "-n", inner, "link", "add", "up0", "type", "veth"),
        *("peer", "name", "down0", "netns", outer),
    )
    run("ip", "-n", inner, "addr", "add", f"{network}.2/24", "dev", "up0")
    run("ip", "-n", outer, "addr", "add", f"{network}.1/24", "dev", "down0")
    run("ip", "-n", inner, "link", "set", "up0", "up")
    run("ip", "-n", outer, "link", "set", "down0", "up")
    run("ip", "-n", inner, "route", "add", "default", "via", f"{network}.1")


def _systemctl(vpn):
    path = vpn.root / "bin" / "systemctl"
    path.write_text(f'#!/bin/sh\necho "$@" >>{vpn.killed}\n')
    path.chmod(0o755)


def test_a_leaking_vpn_qube_is_found(chain):
    status, output, errors = chain.run("leaktest", "sys-vpn")
    assert (status, errors) == (1, "")
    assert "LEAK" in output
    assert chain.model.vms["sys-vpn"].state == "Running"
    assert "disp1" not in chain.model.vms


def test_a_closed_vpn_qube_passes(chain):
    inside = ("ip", "netns", "exec", chain.netns["sys-vpn"])
    run(*inside, "sysctl", "-qw", "net.ipv4.ip_forward=0")
    status, output, errors = chain.run("leaktest", "sys-vpn")
    assert (status, errors) == (0, "")
    assert "no leak; the net qube did see its own marked packet" in output
    assert chain.killed.read_text() == (
        "kill --signal=KILL qubes-vpn-engine.service\n"
    )
    assert "disp1" not in chain.model.vms


def test_a_proof_for_programs(chain):
    status, output, errors = chain.run("leaktest", "sys-vpn", "--json")
    proof = json.loads(output)
    assert (status, proof["v"], proof["conclusive"]) == (1, 1, True)
    assert proof["clear"] > 0
    assert all(count > 0 for _, count in proof["sent"])
    assert "{" not in errors, "what goes on is told beside"


def test_a_sender_that_cannot_send_proves_nothing(chain):
    run("ip", "-n", chain.netns["disp1"], "link", "set", "up0", "down")
    status, output, _ = chain.run("leaktest", "sys-vpn")
    assert status == 69
    assert "inconclusive" in output


def test_a_net_qube_that_cannot_look_is_an_error(chain):
    chain.file("sys-firewall", "denied", "qubes.VMExec")
    status, _, errors = chain.run("leaktest", "sys-vpn")
    assert status == 69
    assert "could not look at its frames" in errors
    assert "disp1" not in chain.model.vms


def test_a_halted_vpn_qube_is_not_started(vpn):
    status, _, errors = vpn.run("leaktest", "sys-vpn")
    assert status == 69
    assert "qvm-start sys-vpn" in errors
