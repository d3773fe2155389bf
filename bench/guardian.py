"""How long a hole in the lock is open: from a change to its repair.

Both times are the kernel's own events, heard on netlink sockets in the VPN
qube: the change is the transaction of somebody else, or a rule or route that
goes; the repair is the keeper's last transaction after it, or the last rule or
route that comes. Changes keep a distance: more than 20 repairs in 10 s are a
fight, after which it looks once a second, and one change may take three.
"""

import re
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.run import MismatchError
from lab import Lab, netlink
from lab.appliance import Appliance
from lab.openvpn import Server

PAUSE, PATIENCE = 1.5, 8
CHANGES = {
    "a rule deleted": "nft delete rule inet qubes_vpn forward handle {rule}",
    "a policy flipped": (
        "nft add chain inet qubes_vpn forward {{ policy accept; }}"
    ),
    "the table deleted": "nft delete table inet qubes_vpn",
    "the ruleset flushed": "nft flush ruleset",
    "the uplink's table deleted": "nft delete table netdev qubes_vpn",
    "a policy rule deleted": "ip rule del priority 70",
    "the routing table flushed": "ip route flush table 7078",
}


@dataclass(frozen=True)
class Event:
    """A change (False) or what repairs it (True), and when it was heard."""

    when: float
    repair: bool


class Watch:
    """Hears of the ruleset and of routing in a namespace."""

    def __init__(self, lab: Lab, keeper: int) -> None:
        self._keeper = keeper
        self._sockets = {
            netlink.listener(
                lab.vpn, netlink.ROUTE, netlink.ROUTING
            ): self._routing,
            netlink.listener(
                lab.vpn, netlink.NETFILTER, netlink.RULESET
            ): self._ruleset,
        }

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()

    def listen(self, seconds: float) -> list[Event]:
        """What is heard for a while."""
        found, end = [], time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for sock in select.select(list(self._sockets), [], [], left)[0]:
                now = time.monotonic()
                found += [
                    Event(now, repair) for repair in self._sockets[sock](sock)
                ]
        return found

    def _ruleset(self, sock: socket.socket) -> Iterator[bool]:
        for kind, payload in netlink.receive(sock):
            if kind == netlink.NEWGEN:
                pid = netlink.attributes(payload)[netlink.GEN_PID]
                yield int.from_bytes(pid, "big") == self._keeper

    @staticmethod
    def _routing(sock: socket.socket) -> Iterator[bool]:
        for kind, _ in netlink.receive(sock):
            if kind in (*netlink.CAME, *netlink.GONE):
                yield kind in netlink.CAME


def lock_of(lab: Lab) -> list[str]:
    """Everything of ours in force, without counters."""
    words = (
        "nft -s list table inet qubes_vpn",
        "nft -s list table netdev qubes_vpn",
        "ip rule",
        "ip route show table 7078",
    )
    return [
        lab.vpn.run(line.split(), check=False).stdout.strip() for line in words
    ]


def _start(lab: Lab, command: str) -> "subprocess.Popen[bytes]":
    """Start a change; who listens meanwhile hears it when it is made."""
    listing = lab.vpn.run(
        ["nft", "-a", "list", "chain", "inet", "qubes_vpn", "forward"]
    )
    handle = re.findall(r"drop # handle (\d+)", listing.stdout)[0]
    program, words = command.format_map({"rule": handle}).split(" ", 1)
    return lab.vpn.popen(
        [program, *(words.split() if program == "ip" else [words])]
    )


@contextmanager
def connected() -> Iterator[tuple[Lab, Watch]]:
    """The shipped client, locked and connected, and what watches it."""
    with (
        Lab() as lab,
        Server(lab.internet, lab.scratch) as server,
        Appliance(lab).lock() as appliance,
    ):
        appliance.connect(server.client_profile()).wait_connected()
        time.sleep(1)
        watch = Watch(lab, appliance.pid("keeper"))
        try:
            yield lab, watch
        finally:
            watch.close()


def measure(
    times: int, say: Callable[[str], None] = lambda _: None
) -> dict[str, list[float]]:
    """Make every change so many times; give the milliseconds of each repair.

    Raises MismatchError when the lock is not afterwards as it was.
    """
    found: dict[str, list[float]] = {name: [] for name in CHANGES}
    with connected() as (lab, watch):
        before = lock_of(lab)
        for name, command in CHANGES.items():
            say(name)
            for _ in range(times):
                watch.listen(0.01)
                changing = _start(lab, command)
                heard = watch.listen(PAUSE)
                changing.wait()
                for _ in range(PATIENCE):
                    if lock_of(lab) == before:
                        break
                    heard += watch.listen(PAUSE)
                else:
                    raise MismatchError(f"{name}: it is not as it was")
                found[name].append(reaction(heard))
    return found


def reaction(events: list[Event]) -> float:
    """Milliseconds from the first change to the last repair."""
    changes = [event.when for event in events if not event.repair]
    repairs = [event.when for event in events if event.repair]
    if not changes or not repairs:
        raise MismatchError("no change, or no repair, was heard of")
    return (max(repairs) - changes[0]) * 1000
