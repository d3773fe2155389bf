"""`qubes-vpn leaktest` in a VPN qube: open, locked, connected."""

import json

from tests.netns.scene import Scene
from tests.netns.toy import SCRIPT


def leaktest(scene):
    from lab.appliance import Appliance

    appliance = scene.appliance or Appliance(scene.lab)
    return appliance.command("leaktest", check=False)


def test_it_sees_every_way_out_of_an_open_qube():
    with Scene("bare") as scene:
        done = leaktest(scene)
    assert done.returncode == 69, done.stderr
    lines = [x for x in done.stdout.splitlines() if "qube  " in x]
    stopped = [line for line in lines if "LEAKED" not in line]
    # the lab has no IPv6 here
    assert [line for line in stopped if "IPv6" not in line] == []
    assert "LEAK:" in done.stdout


def test_a_locked_qube_passes():
    with Scene("ours", connect=False) as scene:
        done = leaktest(scene)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LEAKED" not in done.stdout
    assert "the client does not run" in done.stdout
    assert "dropped" in done.stdout
    assert "in the tunnel" not in done.stdout


def test_the_same_for_programs():
    with Scene("ours", connect=False) as scene:
        done = scene.appliance.command("leaktest", "--json")
        answer = json.loads(done.stdout)
        assert answer["ok"]
        assert {row["result"] for row in answer["rows"]} == {
            "dropped",
            "refused",
        }
        scene.lab.vpn.nft("delete table netdev qubes_vpn")
        done = scene.appliance.command("leaktest", "--json", check=False)
        answer = json.loads(done.stdout)
    assert (done.returncode, answer["ok"]) == (69, False)
    assert sum(row["clear"] > 0 for row in answer["rows"]) == 1


def test_a_connected_qube_passes_and_says_where_it_went():
    with Scene("ours") as scene:
        done = leaktest(scene)
        # nothing of it is left
        assert "leaktest" not in scene.lab.vpn.run(["ip", "link"]).stdout
        assert (
            "leaktest"
            not in scene.lab.vpn.run(["nft", "list", "ruleset"]).stdout
        )
        scene.alive()
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {
        line[11:].rsplit("  ", 1)[0].strip(): line.rsplit("  ", 1)[-1]
        for line in done.stdout.splitlines()
        if line.startswith("a qube ")
    }
    assert rows["UDP to the internet"] == "in the tunnel"
    assert rows["UDP to the VPN server's own port"] == "in the tunnel"
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_one_layer_less_is_found():
    """The rules of a fool: everything of ours, and one accept before."""
    with Scene("bare") as scene:
        scene.lab.vpn.run([SCRIPT, "apply", "--uplink", "eth0"])
        scene.lab.vpn.nft("delete table netdev qubes_vpn")
        done = leaktest(scene)
    assert done.returncode == 69
    leaked = [x for x in done.stdout.splitlines() if x.endswith("LEAKED")]
    assert len(leaked) == 1
    assert "raw frames, past the IP stack" in leaked[0]
