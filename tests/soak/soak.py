"""One soak: what is measured while two qubes never stop, and what must hold.

The server makes new keys every minute. Faults are those of tests/chaos that
leave our processes alive: what grows in them would be seen. After a warm-up
memory, descriptors, threads and tracked connections stay where they are, no
key is late, and traffic comes back within the timers.
"""

import dataclasses
import random
import statistics
import time
from pathlib import Path

from tests.chaos import events
from tests.chaos import world as chaos

REKEY_S = 60
# ping-restart 4, a new session, and a machine that is busy
GAP_MAX_S = 20.0
EVERY_S = 2.0
FAULTS = (
    events.pause_engine,
    events.pause_keeper,
    events.hostile_route,
    events.delete_rule,
    events.uplink_flap,
    events.qube_replugged,
    events.redirects_on,
    events.flush_table,
    events.server_restarts,
)
ROLES = ("agent", "keeper", "engine")
# What may be added between the first and the last third of the run.
GROWTH = {"memory": 1536, "descriptors": 2, "threads": 1, "conntrack": 64}


@dataclasses.dataclass
class Sample:
    """Of one process, or of the qube: names to numbers."""

    at: float
    numbers: dict


@dataclasses.dataclass
class Result:
    """What a soak saw."""

    seconds: float
    faults: int = 0
    rekeys: int = 0
    slowest: float = 0.0
    silence: float = 0.0
    samples: list = dataclasses.field(default_factory=list)
    growth: dict = dataclasses.field(default_factory=dict)

    def __str__(self):
        lines = [
            f"{name:20} {first:9.0f} -> {last:9.0f}"
            for name, (first, last) in self.growth.items()
        ]
        lines.append(
            f"{self.seconds:.0f} s, {self.faults} faults, {self.rekeys} new"
            f" keys, slowest recovery {self.slowest:.1f} s, longest silence"
            f" {self.silence:.1f} s"
        )
        return "\n".join(lines)


def measure(world):
    """Give the numbers of now: KiB, descriptors, threads, connections."""
    numbers = {}
    for role in ROLES:
        pid = (
            world.appliance.client.pid
            if role == "agent"
            else world.appliance.pid(role)
        )
        status = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        # what the process alone has: PSS without what is shared
        numbers[f"{role} memory"] = int(status["RssAnon"].split()[0])
        numbers[f"{role} threads"] = int(status["Threads"])
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        numbers[f"{role} descriptors"] = descriptors
        numbers[f"{role} pid"] = pid
    count = world.lab.vpn.run(
        ["cat", "/proc/sys/net/netfilter/nf_conntrack_count"]
    )
    numbers["conntrack"] = int(count.stdout)
    return numbers


def grown(samples):
    """Give (median of the first third, of the last) of each number."""
    third = max(len(samples) // 3, 1)
    found = {}
    for name in samples[0].numbers:
        if not name.endswith("pid"):
            first, last = (
                statistics.median(one.numbers[name] for one in part)
                for part in (samples[:third], samples[-third:])
            )
            found[name] = (first, last)
    return found


def silence(flood, first):
    """Give the longest time in s without an answer, from probe `first` on."""
    answered = sorted(
        echo.number for echo in flood.echoes if echo.number >= first
    )
    ends = [first, *answered], [*answered, flood.sent]
    return max(b - a for a, b in zip(*ends, strict=True)) / chaos.RATE


def judge(result):
    """Assert that nothing grew, and that no process was another."""
    for role in ROLES:
        pids = {one.numbers[f"{role} pid"] for one in result.samples}
        assert len(pids) == 1, f"the {role} did not live through it"
    for name, (first, last) in result.growth.items():
        most = GROWTH[name.split()[-1]]
        assert last - first <= most, f"{name}: {first} -> {last}\n{result}"
    assert max(result.slowest, result.silence) <= GAP_MAX_S, str(result)
    assert result.rekeys >= result.seconds / REKEY_S / 2 - 2, str(result)


def soak(seconds, *, seed=1, fault_every=60.0, say=None):
    """Run for so long. Raises AssertionError."""
    dice = random.Random(seed)
    result = Result(seconds)
    settings = [
        dataclasses.replace(one, reneg=REKEY_S)
        for one in (chaos.SETTINGS, chaos.OTHER)
    ]
    with chaos.World() as world:
        for server, changed in zip(world.servers, settings, strict=True):
            server.stop()
            server.settings = changed
            server.start()
        world.control()
        world.begin()
        begin = time.monotonic()
        warm = begin + seconds / 5
        fault_at = begin + fault_every / 3
        keys = world.appliance.status().get("rekeys", 0)
        marks = [flood.sent for flood in world.floods]
        while time.monotonic() < begin + seconds:
            now = time.monotonic()
            if now >= fault_at:
                fault = dice.choice(FAULTS)
                fault(world, dice)
                took = world.recovered()
                result.slowest = max(result.slowest, took)
                result.faults += 1
                fault_at = now + fault_every
                if say:
                    say(f"{now - begin:5.0f} s {fault.__name__} {took:.1f} s")
            world.window()
            if now >= warm:
                result.samples.append(Sample(now - begin, measure(world)))
            status = world.appliance.status()
            if status.get("rekeys", 0) != keys:
                result.rekeys += status.get("rekeys", 0) > keys
                keys = status.get("rekeys", 0)
            time.sleep(EVERY_S)
        result.silence = max(map(silence, world.floods, marks))
        world.finish()
        result.growth = grown(result.samples)
    judge(result)
    return result
