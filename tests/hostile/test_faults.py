"""The machine fails under us: closed meanwhile, and back afterwards.

docs/security.md has the table of all faults and the test of each.
"""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from ipaddress import ip_address

import pytest

from lab import addresses as at
from lab.topology import UPLINK_DOMID
from qubes_vpn.runtime.resolve import AddressCache
from tests.hostile.rows import ROOT
from tests.netns.test_closed import World, world  # noqa: F401  (a fixture)

ROLES = ("keeper", "agent", "engine")


def pids(appliance):
    return {
        role: appliance.client.pid if role == "agent" else appliance.pid(role)
        for role in ROLES
    }


@pytest.mark.netns
def test_every_send_is_refused_by_the_kernel(world: World):  # noqa: F811
    """EPERM: somebody's filter is in the way for a while."""
    before = pids(world.appliance)
    world.lab.vpn.nft("""
        table inet foreign {
            chain out {
                type filter hook output priority 50;
                oifname "eth0" udp dport 1194 drop
            }
        }
    """)
    world.stopped()
    world.lab.vpn.nft("delete table inet foreign")
    world.recovered()
    world.nothing_leaked()
    assert pids(world.appliance) == before, world.appliance.log()


@pytest.mark.netns
@pytest.mark.slow
def test_descriptors_run_out(world: World):  # noqa: F811
    """EMFILE for the agent, which needs some for a new engine."""
    pid = world.appliance.client.pid
    used = max(map(int, os.listdir(f"/proc/{pid}/fd"))) + 1
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, before[1]))
    world.appliance.signal("engine", signal.SIGKILL)
    world.stopped()
    time.sleep(2)
    assert world.appliance.client.poll() is None, world.appliance.log()
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    world.recovered()
    world.nothing_leaked()
    assert "Traceback" not in world.appliance.log()


NONE_LEFT = """
import resource
import socket
from ipaddress import ip_address
from qubes_vpn.errors import OsRefusedError
from qubes_vpn.keeper.codec import MessageError, receive_record, send_record
from qubes_vpn.system.sockets import open_link
here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
send_record(here, b"a link", [here.fileno()])
resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
try:
    receive_record(there)
except MessageError as error:
    print(error)
try:
    open_link(ip_address("127.0.0.1"), 9, stream=False, mark=0)
except OsRefusedError as error:
    print(error)
"""


def test_no_descriptor_is_left_for_a_link():
    """EMFILE for the engine, which is handed one, and for who opens it."""
    done = subprocess.run(
        [sys.executable, "-c", NONE_LEFT],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout.splitlines() == [
        "record or descriptors cut short",
        "socket: Too many open files",
    ], done.stderr


QUEUE = ("qdisc", "replace", "dev", "eth0", "root")


@pytest.mark.netns
def test_the_uplink_has_no_room(world: World):  # noqa: F811
    """ENOBUFS: the queue of the device drops nearly all that is sent."""
    before = pids(world.appliance)
    narrow = ("tbf", "rate", "8kbit", "burst", "1600", "limit", "1600")
    world.lab.vpn.run(["tc", *QUEUE, *narrow])
    for flood in world.floods:
        flood.wait_sent(150)
    world.lab.vpn.run(["tc", *QUEUE, "pfifo", "limit", "1000"])
    world.recovered()
    world.nothing_leaked()
    assert pids(world.appliance) == before, world.appliance.log()
    assert "Traceback" not in world.appliance.log()


@pytest.mark.netns
@pytest.mark.long
@pytest.mark.parametrize("role", ROLES)
def test_a_process_that_is_stopped_for_a_minute(world: World, role):  # noqa: F811
    """SIGSTOP, as a debugger or a suspended machine does it."""
    pid = pids(world.appliance)[role]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(60)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    world.recovered()
    world.nothing_leaked()
    assert "Traceback" not in world.appliance.log()


@pytest.mark.netns
@pytest.mark.slow
def test_a_link_that_corrupts(world: World):  # noqa: F811
    """Each datagram comes again with a bit flipped, and its sum is right."""
    raw = bender(world)
    with raw:
        end = time.monotonic() + 5
        bent = 0
        while time.monotonic() < end:
            frame = bytearray(raw.recv(1 << 16))
            if frame[26:30] != at.SERVER4.packed or len(frame) < 60:
                continue
            frame[40:42] = b"\0\0"
            frame[42 + bent % (len(frame) - 42)] ^= 1 << bent % 8
            raw.send(frame)
            bent += 1
    assert bent > 200
    world.recovered()
    world.nothing_leaked()
    log = world.appliance.log()
    assert log.count("connected ") == 1
    assert "Traceback" not in log


def bender(world):  # noqa: F811
    """The upstream's end of the uplink: sees every frame, and may add."""
    with world.lab.net.enter():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    raw.bind((f"vif{UPLINK_DOMID}.0", 3))
    raw.settimeout(2)
    return raw


def test_a_full_disk_loses_the_memory_of_addresses_and_nothing_else(tmp_path):
    path = tmp_path / "state.json"
    full = tmp_path / "state.json.new"
    full.symlink_to("/dev/full")
    cache = AddressCache(str(path))
    cache.store("vpn.example", 4, [ip_address("192.0.2.1")])
    assert cache.get("vpn.example", 4) == [ip_address("192.0.2.1")]
    assert not path.exists()
    assert not full.is_symlink()
