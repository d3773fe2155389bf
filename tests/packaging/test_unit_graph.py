"""No unit raises eth0 or sets ip_forward before the lock, or after it failed.

A static analysis of the graph of units: ours as installed, with their
drop-ins, and the Qubes agent's as the facts have them (its [Unit] and
[Install] sections; qubes-core-agent-linux 4.3, vm-systemd/). A unit is guarded
when it requires the lock and is ordered after it, by itself or by a unit that
it requires and comes after: only then does a lock that failed stop it.
"""

import re

import pytest

pytestmark = pytest.mark.slow
UNITS = "usr/lib/systemd/system"
LOCK = "qubes-vpn-lockdown.service"
# who can give the qube an uplink, or forward
OPENERS = {
    "qubes-network.service": "sets ip_forward",
    "qubes-network-uplink@eth0.service": "gives eth0 its address",
    "NetworkManager.service": "gives eth0 its address, if it is on",
    "systemd-networkd.service": "gives eth0 its address, if it is on",
}
AGENT = {
    "qubes-sysinit.service": "Before=sysinit.target",
    "qubes-mount-dirs.service": "After=qubes-sysinit.service\n"
    "Before=local-fs.target",
    "qubes-antispoof.service": "Before=network-pre.target\n"
    "RequiredBy=network-pre.target",
    "qubes-iptables.service": "Requires=qubes-antispoof.service\n"
    "After=qubes-antispoof.service\nBefore=network-pre.target\n"
    "RequiredBy=network-pre.target",
    "qubes-firewall.service": "After=qubes-iptables.service\n"
    "Before=qubes-network.service",
    "qubes-network.service": "Before=network.target\n"
    "After=network-pre.target qubes-iptables.service",
    "qubes-network-uplink@eth0.service": "After=network-pre.target\n"
    "Requires=network-pre.target\nBefore=network.target\n"
    "Wants=network.target",
    "qubes-misc-post.service": "After=network-pre.target "
    "qubes-network.service qubes-firewall.service",
    "NetworkManager.service": "After=network-pre.target\n"
    "Wants=network.target\nBefore=network.target",
    "systemd-networkd.service": "After=network-pre.target\n"
    "Wants=network.target\nBefore=network.target",
    "network-pre.target": "",
    "network.target": "",
}


class Graph:
    def __init__(self):
        self.requires = {}
        self.after = {}

    def add(self, unit, text):
        instance = re.search(r"@(.*)\.", unit)
        text = text.replace("%i", instance[1] if instance else "")
        for key, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
            for other in value.split():
                self._add(unit, key, other)

    def _add(self, unit, key, other):
        if key in ("Requires", "Requisite", "BindsTo"):
            self.requires.setdefault(unit, set()).add(other)
        elif key == "RequiredBy":
            self.requires.setdefault(other, set()).add(unit)
        elif key == "After":
            self.after.setdefault(unit, set()).add(other)
        elif key == "Before":
            self.after.setdefault(other, set()).add(unit)

    def strictly_after(self, unit):
        """What this unit requires and waits for: its failure stops it."""
        return self.requires.get(unit, set()) & self.after.get(unit, set())

    def guarded(self, unit, by=LOCK, seen=()):
        nearest = self.strictly_after(unit)
        return by in nearest or any(
            self.guarded(other, by, (*seen, unit))
            for other in nearest - set(seen)
        )

    def cycle(self):
        """Return a cycle of the ordering, or nothing."""
        done = set()

        def walk(unit, path):
            if unit in path:
                return path[path.index(unit) :]
            if unit in done:
                return None
            for other in self.after.get(unit, ()):
                if found := walk(other, [*path, unit]):
                    return found
            done.add(unit)
            return None

        return next(
            (found for unit in list(self.after) if (found := walk(unit, []))),
            None,
        )


def graph_of(root, without=()):
    graph = Graph()
    for unit, text in AGENT.items():
        graph.add(unit, text)
    folder = root.path / UNITS
    for path in folder.glob("qubes-vpn-*.service"):
        graph.add(path.name.replace("@.", "@eth0."), path.read_text())
    for path in folder.glob("*.service.d/*.conf"):
        unit = path.parent.name.removesuffix(".d").replace("@.", "@eth0.")
        if unit not in without:
            graph.add(unit, path.read_text())
    return graph


@pytest.mark.parametrize("opener", OPENERS)
def test_nothing_opens_before_the_lock_or_without_it(qube_root, opener):
    assert graph_of(qube_root).guarded(opener), OPENERS[opener]


def test_the_agent_alone_is_not_guarded():
    graph = Graph()
    for unit, text in AGENT.items():
        graph.add(unit, text)
    assert not any(graph.guarded(opener) for opener in OPENERS)


def test_without_its_drop_in_an_opener_is_caught(qube_root):
    for opener in ("NetworkManager.service", "systemd-networkd.service"):
        assert not graph_of(qube_root, without=(opener,)).guarded(opener)


def test_the_lock_guards_network_pre_too(qube_root):
    # so that an uplink of another name, or a unit of the user's, waits
    assert graph_of(qube_root).guarded("network-pre.target")


def test_our_services_wait_for_the_lock(qube_root):
    graph = graph_of(qube_root)
    for name in ("keeper", "engine", "agent"):
        assert graph.guarded(f"qubes-vpn-{name}.service")


def test_the_filter_of_the_uplink_comes_before_its_address(qube_root):
    graph = graph_of(qube_root)
    assert "qubes-vpn-lockdown-uplink@eth0.service" in graph.strictly_after(
        "qubes-network-uplink@eth0.service"
    )


def test_the_order_has_no_cycle(qube_root):
    assert graph_of(qube_root).cycle() is None


def test_a_cycle_would_be_found():
    graph = Graph()
    graph.add("a.service", "After=b.service")
    graph.add("b.service", "After=c.service")
    graph.add("c.service", "After=a.service")
    assert graph.cycle()


def test_none_of_ours_turns_forwarding_on(qube_root):
    lock = qube_root.path / "usr/lib/qubes-vpn"
    for path in (*qube_root.site.rglob("*.py"), *lock.iterdir()):
        text = path.read_text()
        for line in text.splitlines():
            if re.search(r"ip_forward|conf/all/forwarding", line):
                assert not re.search(r"ip_forward.*\b1\b", line), (path, line)
