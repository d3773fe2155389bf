# ruff: noqa: T201 -- the console is where it reports
"""Leak rows that need a whole machine: its modules, its limits, its clock.

Run as a program in the machine (tests/kernel/machine.py); each says how it
went. The scenes are those of tests/netns.
"""

import sys
import time
import traceback
from pathlib import Path

from lab import addresses as at
from lab.traffic import Flood
from tests.netns.scene import Scene, canary, leaks, udp
from tests.netns.toy import SCRIPT

PATIENCE = 60
TABLE = Path("/proc/sys/net/netfilter/nf_conntrack_max")

# What vif-route-qubes adds for every new vif.
ACCELERATE = """
    add table inet qubes-nat-accel
    add flowtable inet qubes-nat-accel fast {
        hook ingress priority filter; devices = { eth0, vif1.0 };
    }
    add chain inet qubes-nat-accel forward {
        type filter hook forward priority filter + 5;
    }
    add rule inet qubes-nat-accel forward meta l4proto { tcp, udp } \
iifgroup 2 oifgroup 1 flow offload @fast
    add rule inet qubes-nat-accel forward counter
"""


def l10_a_flow_in_the_flowtable():
    """A flow that skips every forward chain is stopped by the lock."""
    for locked in (False, True):
        with Scene("bare") as scene:
            scene.lab.vpn.nft(ACCELERATE)
            with Flood(scene.app, rate=50) as flood:
                flood.wait_echoes(30, timeout=PATIENCE)
                tracked = scene.lab.vpn.run(["conntrack", "-L"]).stdout
                assert "OFFLOAD" in tracked, f"void: no offload: {tracked}"
                if locked:
                    scene.lab.vpn.run([SCRIPT, "apply", "--uplink", "eth0"])
                else:
                    # a drop in the forward hook is what does not help
                    scene.lab.vpn.nft("""
                        add table inet naive
                        add chain inet naive f {
                            type filter hook forward priority -10; policy drop;
                        }
                    """)
                found = leaks(scene, lambda _: flood.wait_sent(30))
        assert any(map(canary, found)) != locked, (locked, len(found))


def l49_a_full_table_of_connections():
    """Qubes fill it; the tunnel is not in it, and goes on."""
    with Scene("ours") as scene:
        before = TABLE.read_text()
        TABLE.write_text("64")
        try:
            for port in range(10_000, 10_400):
                udp(scene.app, at.WEB4, port, b"CANARY fill", count=1)
            # the server's keepalives arrive, and ours are answered
            time.sleep(12)
            status = scene.appliance.status()
            assert status["phase"] == "connected"
            assert status["attempt"] == 0
            assert "next try" not in scene.appliance.log()
            with scene.capture() as capture:
                for port in range(10_400, 10_500):
                    udp(scene.app, at.WEB4, port, b"CANARY more", count=1)
                report = capture.report()
            assert not report.leaks
        finally:
            TABLE.write_text(before)
        scene.alive()


def l52_the_clock_jumps():
    """Two hours forward and back under traffic: nothing, and it goes on."""
    with Scene("ours") as scene, Flood(scene.app) as flood:
        flood.wait_echoes(5, timeout=PATIENCE)

        def jump(scene):
            for seconds in (7200, -7200, -86400, 86400):
                now = time.clock_gettime(time.CLOCK_REALTIME)
                time.clock_settime(time.CLOCK_REALTIME, now + seconds)
                flood.wait_echoes(5, timeout=PATIENCE)

        assert not leaks(scene, jump)
        scene.alive()


CHECKS = (
    l10_a_flow_in_the_flowtable,
    l49_a_full_table_of_connections,
    l52_the_clock_jumps,
)


def main():
    for check in CHECKS:
        began = time.monotonic()
        how = "ok"
        try:
            check()
        except BaseException:  # noqa: BLE001 it is shown, and fails its test
            traceback.print_exc(file=sys.stdout)
            how = "FAILED"
        seconds = time.monotonic() - began
        print(f"LEAK {check.__name__} {how} {seconds:.1f} s", flush=True)
    print("LEAKS CHECKED", flush=True)


if __name__ == "__main__":
    main()
