"""The shipped script locks, by capture; each layer alone stops forwarding."""

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import addresses as at
from lab.traffic import Flood, ping
from tests.netns.toy import ALLOWED, SCRIPT, lock, silent

FILTER = "delete table inet qubes_vpn"
UPLINK = "delete table netdev qubes_vpn"


def unroute(lab):
    for family in ("-4", "-6"):
        for priority in ["71", "70", "60", "60", "50", "46", "46", "45", "45"]:
            lab.vpn.run(["ip", family, "rule", "del", "priority", priority])
        lab.vpn.run(
            ["ip", family, "route", "flush", "table", "7078"], check=False
        )


REMOVE = {
    "filter": lambda lab: lab.vpn.nft(FILTER),
    "routing": unroute,
    "uplink": lambda lab: lab.vpn.nft(UPLINK),
}
LAYERS = tuple(REMOVE)


def local_datagrams(lab, count=5):
    """A process of the VPN qube itself, such as NTP."""
    code = (
        "import socket\n"
        "s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"for _ in range({count}):\n"
        f"  try: s.sendto(b'CANARY', ('{at.WEB4}', 123))\n"
        "  except OSError: pass\n"
    )
    with lab.capture(ALLOWED) as capture:
        lab.vpn.run([sys.executable, "-c", code])
        time.sleep(0.1)
    return len(capture.report().leaks)


def raw_frames(lab, count=5):
    """A process of the VPN qube that writes frames, past the IP stack."""
    code = (
        "import socket\n"
        "s=socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n"
        "s.bind(('eth0', 0x800))\n"
        "frame=bytes.fromhex('feffffffffff')+"
        "s.getsockname()[4]+b'\\x08\\0E\\0'+b'CANARY'*10\n"
        f"for _ in range({count}):\n"
        "  try: s.send(frame)\n"
        "  except OSError: pass\n"
    )
    with lab.capture(ALLOWED) as capture:
        lab.vpn.run([sys.executable, "-c", code])
        time.sleep(0.1)
    return len(capture.report().leaks)


def ipv6_again(lab):
    """Undo what the lock does to IPv6 on the uplink, to test the layers."""
    lab.vpn.sysctl({"ipv6/conf/eth0/disable_ipv6": 0})
    mac = at.BACKEND_MAC
    lab.vpn.ip(f"""
        addr add {at.VPN.ip6}/128 dev eth0 nodad
        neigh replace {at.NET.ip6} lladdr {mac} dev eth0 nud permanent
        route add {at.NET.ip6} dev eth0
        route add default via {at.NET.ip6} dev eth0 onlink
    """)


# --- the layers


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("alone", LAYERS)
def test_each_layer_alone_stops_what_is_forwarded(request, alone, ipv6):
    lab = request.getfixturevalue("lab6" if ipv6 else "lab")
    to = at.WEB6 if ipv6 else at.WEB4
    with Flood(lab.app(1), to=to) as flood:
        flood.wait_echoes()
        assert silent(lab, flood).canaries
    lock(lab)
    if ipv6:
        ipv6_again(lab)
    for name in LAYERS:
        if name != alone:
            REMOVE[name](lab)
    with Flood(lab.app(1), to=to) as flood:
        assert silent(lab, flood).canaries == ()


def test_ipv6_leaves_when_only_the_setting_is_undone(lab6):
    """The control of the IPv6 half above: layers stop it, not the setting."""
    lock(lab6)
    ipv6_again(lab6)
    for name in LAYERS:
        REMOVE[name](lab6)
    with Flood(lab6.app(1), to=at.WEB6) as flood:
        assert silent(lab6, flood).canaries


def test_a_flow_that_was_there_before_is_stopped_too(lab):
    with Flood(lab.app(1)) as flood:
        flood.wait_echoes(3)
        lock(lab)
        assert silent(lab, flood).leaks == ()


def test_all_layers_stop_the_qube_itself(lab):
    assert local_datagrams(lab)
    assert raw_frames(lab)
    lock(lab)
    assert local_datagrams(lab) == 0
    assert raw_frames(lab) == 0


def test_only_the_uplink_layer_sees_raw_frames(lab):
    """Why there is a third layer."""
    lock(lab)
    REMOVE["uplink"](lab)
    assert raw_frames(lab)
    assert local_datagrams(lab) == 0


def test_flushing_every_rule_leaves_routing(lab):
    lock(lab)
    lab.vpn.nft("flush ruleset")
    with Flood(lab.app(1)) as flood:
        assert silent(lab, flood).canaries == ()


def test_a_hostile_route_is_not_looked_at(lab):
    lock(lab)
    REMOVE["filter"](lab)
    REMOVE["uplink"](lab)
    lab.vpn.ip(f"""
        route add 0.0.0.0/1 via {at.NET.ip4} dev eth0 onlink
        route add 128.0.0.0/1 via {at.NET.ip4} dev eth0 onlink
    """)
    with Flood(lab.app(1)) as flood:
        assert silent(lab, flood).canaries == ()


def test_a_link_that_comes_up_says_nothing(lab6):
    def flap():
        with lab6.capture(ALLOWED) as capture:
            lab6.vpn.ip("""
                link set eth0 down
                link set eth0 up
            """)
            time.sleep(1)
        return capture.report().outbound

    assert flap()
    lock(lab6)
    assert flap() == 0


def test_the_uplink_layer_comes_back_with_its_device(lab):
    lock(lab)
    REMOVE["filter"](lab)
    lab.unplug_uplink()
    lab.plug_uplink()
    assert raw_frames(lab) == 0
    assert local_datagrams(lab) == 0


# --- the script


def test_it_may_be_repeated_under_traffic(lab):
    lock(lab)
    with Flood(lab.app(1), rate=500) as flood, lab.capture(ALLOWED) as capture:
        for _ in range(10):
            lock(lab)
        flood.wait_sent(50)
    assert capture.report().leaks == ()
    rules = lab.vpn.run(["ip", "rule"]).stdout
    assert rules.count("from all lookup 7078") == 1


def test_only_the_stated_word_removes_it(lab):
    lock(lab)
    refused = lab.vpn.run([SCRIPT, "remove"], check=False)
    assert refused.returncode == os.EX_USAGE
    assert ping(lab.app(1), count=1, wait=0.2) == 0
    lab.vpn.run([SCRIPT, "remove", "--open-network"])
    assert ping(lab.app(1)) == 3


def test_it_locks_no_machine_by_accident(lab):
    done = lab.vpn.run([SCRIPT, "apply"], check=False)
    assert done.returncode == os.EX_UNAVAILABLE
    assert "--uplink" in done.stderr
    assert ping(lab.app(1)) == 3


def test_the_service_file_locks(lab):
    lab.vpn.run(["touch", "/run/qubes-service/qubes-vpn"])
    lab.vpn.run([SCRIPT, "apply"])
    assert ping(lab.app(1), count=1, wait=0.2) == 0


@pytest.mark.parametrize("device", ["", "a/b", "x" * 16, '";accept', ".."])
def test_it_takes_no_odd_device(lab, device):
    done = lab.vpn.run([SCRIPT, "apply", "--uplink", device], check=False)
    assert done.returncode == os.EX_USAGE


@pytest.mark.parametrize("broken", ["inet.nft", "netdev.nft", "rules.batch"])
def test_what_does_not_load_turns_forwarding_off(lab, broken):
    copy = lab.scratch / "lockdown"
    shutil.copytree(Path(SCRIPT).parent, copy)
    (copy / broken).write_text("nonsense\n")
    assert ping(lab.app(1)) == 3
    done = lab.vpn.run(
        [str(copy / "lockdown.sh"), "apply", "--uplink", "eth0"], check=False
    )
    assert done.returncode == os.EX_OSERR
    assert ping(lab.app(1), count=1, wait=0.2) == 0
    names = ("net.ipv4.ip_forward", "net.ipv4.conf.all.accept_redirects")
    values = lab.vpn.run(["sysctl", "-n", *names]).stdout.split()
    assert values == ["0", "0"]


def test_it_is_a_plain_shell_script():
    assert Path(SCRIPT).stat().st_mode & stat.S_IXUSR
    assert Path(SCRIPT).read_text().startswith("#!/bin/sh\n")
    subprocess.run(["dash", "-n", SCRIPT], check=True)
