"""What can happen. Each is done once; then the world has to come back.

An event is one of these functions: one fault and, where the lab stands in for
Qubes or systemd, what those would do next (start a client that was killed,
give the uplink its routes). A jump of the clock is not among them: the time of
day is the whole machine's (tests/kernel).
"""

import random
import signal
import time
from ipaddress import IPv4Address

from lab import addresses as at
from qubes_vpn.policy.routes import TABLE

OURS = ("inet qubes_vpn", "netdev qubes_vpn")
HOSTILE = f"via {at.NET.ip4} dev eth0 onlink"


def kill_engine(world, draw):
    world.appliance.signal("engine", signal.SIGKILL)


def kill_keeper(world, draw):
    world.appliance.signal("keeper", signal.SIGKILL)


def kill_agent(world, draw):
    world.appliance.signal("agent", signal.SIGKILL)
    world.appliance.client.wait(10)
    world.start()


def kill_all(world, draw):
    world.appliance.kill_all()
    world.start()


def pause_engine(world, draw):
    """Shorter than what counts as a hang."""
    world.appliance.signal("engine", signal.SIGSTOP)
    time.sleep(draw.uniform(0.05, 0.5))
    world.appliance.signal("engine", signal.SIGCONT)


def pause_keeper(world, draw):
    world.appliance.signal("keeper", signal.SIGSTOP)
    time.sleep(draw.uniform(0.05, 0.5))
    world.appliance.signal("keeper", signal.SIGCONT)


def hang_engine(world, draw):
    """It does not wake up: somebody else notices."""
    world.appliance.signal("engine", signal.SIGSTOP)


def stop_and_start(world, draw):
    world.appliance.stop()
    time.sleep(draw.uniform(0, 0.2))
    world.start()


def switch_profile(world, draw):
    """As another profile's client: the other server, another address."""
    world.appliance.stop()
    world.profile = 1 - world.profile
    world.start()


def lock_again(world, draw):
    """What an upgrade of the package does."""
    world.appliance.lock()


def flush_ruleset(world, draw):
    world.lab.vpn.nft("flush ruleset")
    time.sleep(draw.uniform(0, 0.2))
    world.agent_again()


def delete_table(world, draw):
    world.lab.vpn.nft(f"delete table {draw.choice(OURS)}")


def sleeping_table(world, draw):
    world.lab.vpn.nft(f"add table {draw.choice(OURS)} {{ flags dormant; }}")


def delete_rule(world, draw):
    """Any one rule of ours."""
    table = draw.choice(OURS)
    listing = world.lab.vpn.run(["nft", "-a", "list", "table", *table.split()])
    rules, chain = [], ""
    for line in listing.stdout.splitlines():
        words = line.split()
        if words[:1] == ["chain"]:
            chain = words[1]
        elif "# handle" in line and chain and words[0] not in {"set", "table"}:
            rules.append((chain, words[-1]))
    chain, handle = draw.choice(rules)
    world.lab.vpn.run(
        ["nft", "delete", "rule", *table.split(), chain, "handle", handle],
        check=False,  # a repair may have been faster
    )


def flip_policy(world, draw):
    table, chain = draw.choice(
        (
            *((OURS[0], name) for name in ("forward", "input", "output")),
            *((OURS[1], name) for name in ("egress", "ingress")),
        )
    )
    world.lab.vpn.nft(f"add chain {table} {chain} {{ policy accept; }}")


def accept_rule(world, draw):
    world.lab.vpn.nft("insert rule inet qubes_vpn forward accept")


def delete_policy_rule(world, draw):
    family = draw.choice(("-4", "-6"))
    priority = draw.choice(("45", "46", "50", "60", "70", "71"))
    world.lab.vpn.run(
        ["ip", family, "rule", "del", "priority", priority], check=False
    )


def flush_table(world, draw):
    family = draw.choice(("-4", "-6"))
    world.lab.vpn.run(
        ["ip", family, "route", "flush", "table", str(TABLE)], check=False
    )


def foreign_rule(world, draw):
    world.lab.vpn.ip("rule add priority 10 lookup main")


def hostile_route(world, draw):
    net = draw.choice(("0.0.0.0/1", "128.0.0.0/1", "198.51.100.0/25"))
    world.lab.vpn.ip(f"route replace {net} {HOSTILE}")
    time.sleep(draw.uniform(0, 0.2))
    world.lab.vpn.ip(f"route del {net}")


def tunnel_down(world, draw):
    world.lab.vpn.run(["ip", "link", "set", "tun-vpn", "down"], check=False)


def tunnel_deleted(world, draw):
    world.lab.vpn.run(["ip", "link", "del", "tun-vpn"], check=False)


def tunnel_addresses(world, draw):
    world.lab.vpn.run(["ip", "addr", "flush", "dev", "tun-vpn"], check=False)


def uplink_flap(world, draw):
    world.lab.vpn.ip("link set eth0 down")
    time.sleep(draw.uniform(0, 0.3))
    world.lab.vpn.ip("link set eth0 up")
    world.uplink_routes()


def uplink_replaced(world, draw):
    """Another net qube: another eth0, often with another address."""
    world.lab.unplug_uplink()
    time.sleep(draw.uniform(0, 0.3))
    last = draw.choice((20, 77, 78))
    world.lab.plug_uplink(IPv4Address(f"10.137.0.{last}"))


def qube_replugged(world, draw):
    number = draw.choice((1, 2))
    world.lab.detach_app(number)
    time.sleep(draw.uniform(0, 0.2))
    world.lab.attach_app(number)


def redirects_on(world, draw):
    world.lab.vpn.sysctl({"ipv4/conf/all/accept_redirects": 1})


def server_restarts(world, draw):
    """It forgets us, and does not say so."""
    server = world.servers[world.profile]
    server.signal(signal.SIGKILL)
    server.process.wait(10)
    server.stop()
    server.start()


# event: (how often, how many repairs of the guardian it may take)
EVENTS = {
    kill_engine: (8, 0),
    kill_keeper: (5, 0),
    kill_agent: (4, 0),
    kill_all: (4, 0),
    pause_engine: (8, 0),
    pause_keeper: (8, 0),
    hang_engine: (0.5, 0),
    stop_and_start: (4, 0),
    switch_profile: (4, 0),
    lock_again: (3, 3),
    flush_ruleset: (4, 3),
    delete_table: (4, 1),
    sleeping_table: (4, 1),
    delete_rule: (8, 1),
    flip_policy: (4, 1),
    accept_rule: (3, 1),
    delete_policy_rule: (4, 1),
    flush_table: (4, 1),
    foreign_rule: (3, 1),
    hostile_route: (8, 0),
    tunnel_down: (3, 2),
    tunnel_deleted: (3, 0),
    tunnel_addresses: (3, 2),
    uplink_flap: (8, 0),
    uplink_replaced: (2, 0),
    qube_replugged: (8, 0),
    redirects_on: (2, 1),
    server_restarts: (0.5, 0),
}


class Chooser:
    """Draws events by a seed.

    The guardian takes 20 repairs in 10 s for a fight and stops forwarding,
    which is a test of its own (tests/netns/test_keeper_guardian.py): past half
    of that, the next is an event that needs none.
    """

    LIMIT, SPAN = 10, 10.0

    def __init__(self, seed):
        self.draw = random.Random(seed)
        self._spent = []

    def next(self):
        """Give the next event."""
        names = list(EVENTS)
        event = self.draw.choices(names, [EVENTS[name][0] for name in names])[0]
        now = time.monotonic()
        self._spent = [at for at in self._spent if at > now - self.SPAN]
        cost = EVENTS[event][1]
        if cost and len(self._spent) + cost > self.LIMIT:
            calm = [name for name in names if not EVENTS[name][1]]
            often = [EVENTS[name][0] for name in calm]
            return self.draw.choices(calm, often)[0]
        self._spent += [now] * cost
        return event
