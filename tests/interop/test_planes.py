"""Which data plane a session gets where the kernel has no ovpn driver.

Where it has: tests/kernel, in a machine.
"""

from lab import addresses as at
from lab.appliance import Appliance
from lab.traffic import fetch
from qubes_vpn.errors import UnavailableError
from qubes_vpn.system.ovpn import Ovpn

# What the server knows us by.
OURS = str(at.NET_OUTSIDE4)


def has_driver():
    try:
        Ovpn().close()
    except UnavailableError:
        return False
    return True


def test_userspace_says_why_it_is_used(lab, start_server):
    server = start_server()
    with Appliance(lab).lock() as appliance:
        appliance.connect(server.client_profile()).wait_connected()
        assert fetch(lab.app(1)).status == 200
        plane = appliance.status()["plane"]
    assert OURS in server.log
    if has_driver():
        assert plane == {"name": "kernel", "why": ""}
    else:
        why = "this kernel has no ovpn"
        assert plane == {"name": "userspace", "why": why}


def test_userspace_is_used_when_asked_for(lab, start_server):
    server = start_server()
    with Appliance(lab).lock() as appliance:
        appliance.connect(server.client_profile(), "--plane", "userspace")
        appliance.wait_connected()
        plane = appliance.status()["plane"]
    assert plane == {"name": "userspace", "why": "asked for"}


def test_nothing_else_will_do_when_the_kernels_is_asked_for(lab, start_server):
    server = start_server()
    with Appliance(lab).lock() as appliance:
        appliance.connect(server.client_profile(), "--plane", "kernel")
        if has_driver():
            appliance.wait_connected()
            return
        appliance.wait_log("no kernel plane: this kernel has no ovpn")
        assert appliance.status()["phase"] == "blocked"
    assert OURS not in server.log
