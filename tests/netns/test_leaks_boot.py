"""L04, L53, L65 to L67, L69: before, after and without the lock.

What orders the units is tested in tests/packaging: see docs/security.md.
"""

import contextlib
import shutil
from pathlib import Path

from lab import Endpoint, Lab
from lab import addresses as at
from lab.appliance import Appliance
from lab.openvpn import Client, Server
from lab.traffic import Flood
from tests.netns.scene import Scene, canary, leaks, tcp, udp
from tests.netns.upstream import capture_outside, pin

SERVER = Endpoint(at.SERVER4, "udp", at.VPN_PORT)


def booted(*, locked):
    """A qube sends already when the VPN qube gets its uplink; the leaks."""
    with Lab(ipv6=True) as lab:
        lab.unplug_uplink()
        with lab.capture() as capture, Flood(lab.app(1)) as flood:
            if locked:
                # before there is a device, as the unit does
                Appliance(lab).lock()
            lab.plug_uplink()
            flood.wait_sent(40)
            return capture.report().leaks


def test_l04_between_the_uplink_and_the_lock():
    assert any(map(canary, booted(locked=False))), "void: no control"
    assert not booted(locked=True)


def test_l04_a_lock_that_fails_leaves_forwarding_off():
    """And the units that need it do not start: tests/packaging."""
    with Lab() as lab:
        lab.vpn.sysctl({"ipv4/ip_forward": 1})
        copy = lab.scratch / "lock"
        shutil.copytree("qubes_vpn/lockdown", copy)
        (copy / "inet.nft").write_text("no rules\n")
        done = lab.vpn.run(
            ["sh", str(copy / "lockdown.sh"), "apply", "--uplink", "eth0"],
            check=False,
        )
        assert done.returncode == 71
        with lab.capture() as capture, Flood(lab.app(1)) as flood:
            flood.wait_sent(20)
            assert not capture.report().canaries


def shut_down(scene):
    """Everything of ours is stopped while the qubes still send."""
    with Flood(scene.app) as flood:
        flood.wait_echoes(3)
        if scene.kind == "ours":
            scene.appliance.stop()
        else:
            scene.client.stop()
        flood.wait_sent(30)


def test_l53_the_end_of_everything_of_ours():
    with Scene("peer") as scene:
        assert any(map(canary, leaks(scene, shut_down))), "void: no control"
    with Scene("ours") as scene:
        assert not leaks(scene, shut_down)


# --- the fourth layer: a VPN qube without a lock, after a reboot


def unlocked(lab):
    """What qubes and the VPN qube send when there is no lock in it."""
    with contextlib.suppress(OSError):
        tcp(lab.app(1), at.WEB4, at.WEB_PORT)
    udp(lab.app(1), at.WEB4, at.ECHO_PORT)
    udp(lab.app(2), at.WEB6, at.ECHO_PORT)
    udp(lab.app(1), at.QUBES_DNS[0], 53, b"CANARY query")
    udp(lab.vpn, at.WEB4, 123)
    udp(lab.app(1), at.SERVER4, 53)


def test_l65_l66_l67_without_the_lock_the_net_qube_holds():
    """A lab without any lock is what each of them leaves after a reboot.

    With the service off and profiles there, the lock loads all the same; that
    is tested below. The pins do not depend on anything in the VPN qube.
    """
    with Lab(ipv6=True) as lab:
        with capture_outside(lab) as capture:
            unlocked(lab)
            assert capture.report().canaries, "void: no control"
        pin(lab, SERVER)
        with capture_outside(lab, SERVER) as capture:
            unlocked(lab)
            report = capture.report()
        assert not report.canaries, str(report)
        # and the tunnel passes the pins
        server = Server(lab.internet, lab.scratch)
        with server, capture_outside(lab, SERVER) as capture:
            client = Client(lab.vpn, lab.scratch, server.client_profile())
            with client:
                client.wait_connected()
            assert capture.report().tunnel > 5


def test_l65_the_lock_loads_with_the_service_off_while_there_are_profiles():
    """As the unit does: either path starts it, and the script asks both."""
    unit = Path("rpm/systemd/qubes-vpn-lockdown.service").read_text()
    starts = [
        line.partition("=")[2]
        for line in unit.splitlines()
        if line.startswith("ConditionPathExists=|")
    ]
    assert starts == ["|/run/qubes-service/qubes-vpn", "|/rw/config/qubes-vpn"]
    script = Path("qubes_vpn/lockdown/lockdown.sh").read_text()
    assert '[ ! -e "$service" ] && [ ! -e "$profiles" ]' in script


def test_l69_root_in_the_vpn_qube_does_not_widen_the_pins():
    """It can take down all that is in it; and ask dom0, which asks a person."""
    with Lab() as lab:
        Appliance(lab).lock()
        pin(lab, SERVER)
        lab.vpn.run(
            ["sh", "qubes_vpn/lockdown/lockdown.sh", "remove", "--open-network"]
        )
        lab.vpn.nft("flush ruleset")
        lab.vpn.nft("add table ip mine")
        with capture_outside(lab, SERVER) as capture:
            unlocked(lab)
            assert not capture.report().canaries
        wider = Endpoint(at.WEB4, "udp", at.ECHO_PORT)
        pin(lab, SERVER, wider)
        with capture_outside(lab, SERVER) as capture:
            udp(lab.vpn, at.WEB4, at.ECHO_PORT)
            assert capture.report().canaries, "void: the pins hold nothing"
