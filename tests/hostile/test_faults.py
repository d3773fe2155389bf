"""The machine fails under us: closed meanwhile, and back afterwards.

Faults that other tests have: kills and hangs (tests/netns/test_closed.py),
suspension (test_leaks_death.py, l52), clocks and resolvers (test_path.py),
full buffers (tests/unit/dataplane/test_userspace.py), unreadable profiles
(tests/unit/runtime/test_store.py), loss and holes (tests/chaos).
"""

import os
import resource
import signal
import time
from ipaddress import ip_address

import pytest

from qubes_vpn.runtime.resolve import AddressCache
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
    assert pids(world.appliance) == before


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


def test_a_full_disk_loses_the_memory_of_addresses_and_nothing_else(tmp_path):
    path = tmp_path / "state.json"
    full = tmp_path / "state.json.new"
    full.symlink_to("/dev/full")
    cache = AddressCache(str(path))
    cache.store("vpn.example", 4, [ip_address("192.0.2.1")])
    assert cache.get("vpn.example", 4) == [ip_address("192.0.2.1")]
    assert not path.exists()
    assert not full.is_symlink()
