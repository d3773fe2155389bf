"""The main job, shown: a tunnel, a crash under traffic, nothing in clear.

Every step prints what it does; the table at the end says what was proved, with
counts of packets, and the exit status is 1 if a row fails.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lab import addresses as at
from lab.appliance import Appliance
from lab.capture import Report
from lab.frames import Address
from lab.namespace import LabError
from lab.openvpn import Server, Settings
from lab.ours import OurServer
from lab.topology import Lab
from lab.traffic import Flood, fetch, resolve

REFUSED_WAIT = 1.5
DEAD_PROBES = 300
RATE = 200


@dataclass(frozen=True, slots=True)
class Row:
    """One thing shown: what, whether it holds, and the counts."""

    what: str
    passed: bool
    counts: str


@dataclass(slots=True)
class Demo:
    """The steps, in order; `rows` is what they proved."""

    lab: Lab
    server: Server
    appliance: Appliance
    rows: list[Row] = field(default_factory=list)

    def note(self, what: str, counts: str, *, passed: bool) -> None:
        """Add a row."""
        self.rows.append(Row(what, passed, counts))
        print(f"      {'ok' if passed else 'FAILED'}: {counts}", flush=True)

    def run(self) -> None:
        """All steps; the first that cannot go on ends it with a failed row."""
        steps: tuple[tuple[str, Callable[[], None]], ...] = (
            ("app1 without us: the lab leaks", self.unprotected),
            ("locked, no tunnel: nothing leaves", self.locked),
            ("connected: a page through the tunnel", self.page),
            ("connected: a name from the tunnel's resolver", self.name),
            ("SIGKILL under traffic: nothing in clear", self.crash),
            ("restarted: it recovers", self.recover),
            ("SIGTERM: exit 0, and still closed", self.end),
        )
        for number, (what, step) in enumerate(steps, 1):
            print(f"[{number}/{len(steps)}] {what}", flush=True)
            try:
                step()
            except (LabError, OSError) as error:
                self.note(what, f"could not be shown: {error}", passed=False)
                return

    def unprotected(self) -> None:
        """The control: what a capture sees when nothing protects the qube."""
        with self.lab.capture(self.server.settings.endpoint) as capture:
            seen = fetch(self.lab.app(1)).seen
        report = capture.report()
        self.note(
            "control: without the lock it leaks",
            f"web saw {seen}; {len(report.canaries)} canaries in clear",
            passed=bool(report.canaries) and seen == at.NET_OUTSIDE4,
        )

    def locked(self) -> None:
        """The static lock alone."""
        self.appliance.lock()
        with self.lab.capture(self.server.settings.endpoint) as capture:
            page, name = self._tries()
        report = capture.report()
        self.note(
            "lock, no tunnel: page and name refused",
            _counts(report),
            passed=not page and not name and not report.leaks,
        )

    def page(self) -> None:
        """Connect, and fetch a page from app1."""
        start = time.monotonic()
        self.appliance.connect(self.server.client_profile())
        self.appliance.wait_connected()
        took = time.monotonic() - start
        status = self.appliance.status()
        print(f"      {status['phase']}, {status.get('cipher')}, {took:.2f} s")
        with self.lab.capture(self.server.settings.endpoint) as capture:
            seen = fetch(self.lab.app(1)).seen
        report = capture.report()
        self.note(
            "page through the tunnel",
            f"web saw {seen}; {_counts(report)}",
            passed=self._inside(seen) and _clean(report),
        )

    def name(self) -> None:
        """Ask Qubes' resolver address from app1; the tunnel's answers."""
        before = len(self.lab.outside_dns.asked)
        with self.lab.capture(self.server.settings.endpoint) as capture:
            found = resolve(self.lab.app(1))
        report = capture.report()
        outside = len(self.lab.outside_dns.asked) - before
        asked = len(self.lab.tunnel_dns.asked)
        self.note(
            "name from the tunnel's resolver",
            f"{asked} asked inside, {outside} outside; {_counts(report)}",
            passed=found == [at.WEB4] and not outside and _clean(report),
        )

    def crash(self) -> None:
        """Kill every process of ours while both qubes send."""
        endpoint = self.server.settings.endpoint
        with self.lab.capture(endpoint) as capture, self._floods() as floods:
            floods.alive()
            self.appliance.kill_all()
            time.sleep(0.2)
            before = floods.echoes
            floods.dead(DEAD_PROBES)
            answered = floods.echoes - before
        report = capture.report()
        self.note(
            "killed under traffic: nothing in clear",
            f"{DEAD_PROBES} probes while dead, {answered} answered; "
            f"{_counts(report)}",
            passed=not answered and _clean(report),
        )

    def recover(self) -> None:
        """Start the client again; what the qubes send flows again."""
        endpoint = self.server.settings.endpoint
        with self.lab.capture(endpoint) as capture, self._floods() as floods:
            self.appliance.connect(self.server.client_profile())
            self.appliance.wait_connected()
            seen = floods.alive()
        report = capture.report()
        self.note(
            "restarted: traffic flows again",
            f"web saw {seen}; {_counts(report)}",
            passed=self._inside(seen) and _clean(report),
        )

    def end(self) -> None:
        """A polite end does not open anything."""
        with self.lab.capture(self.server.settings.endpoint) as capture:
            status = self.appliance.stop()
            page, name = self._tries()
        report = capture.report()
        self.note(
            "ended by SIGTERM: closed",
            f"exit {status}; {_counts(report)}",
            passed=status == 0 and not page and not name and not report.leaks,
        )

    def _inside(self, seen: Address) -> bool:
        """Is it an address of the server's tunnel network?"""
        return seen.packed[:3] == self.server.settings.network4.packed[:3]

    def _tries(self) -> tuple[bool, bool]:
        """Can app1 get a page, or a name?"""
        page = name = True
        try:
            fetch(self.lab.app(1), timeout=REFUSED_WAIT)
        except OSError:
            page = False
        try:
            resolve(self.lab.app(1), timeout=REFUSED_WAIT)
        except OSError:
            name = False
        return page, name

    def _floods(self) -> "_Floods":
        return _Floods(self.lab)


class _Floods:
    """Canaries of both app qubes at once."""

    def __init__(self, lab: Lab) -> None:
        self.floods = [Flood(lab.app(n), rate=RATE) for n in (1, 2)]

    def __enter__(self) -> "_Floods":
        for flood in self.floods:
            flood.start()
        return self

    def __exit__(self, *_: object) -> None:
        for flood in self.floods:
            flood.stop()

    @property
    def echoes(self) -> int:
        return sum(len(flood.echoes) for flood in self.floods)

    def alive(self) -> Address:
        last = [flood.wait_echoes(20)[-1] for flood in self.floods]
        return last[0].seen

    def dead(self, probes: int) -> None:
        for flood in self.floods:
            flood.wait_sent(probes // len(self.floods))


def _clean(report: Report) -> bool:
    return not report.leaks and report.tunnel > 0


def _counts(report: Report) -> str:
    return f"{report.tunnel} tunnel packets, {len(report.leaks)} leaked"


def show(rows: list[Row]) -> bool:
    """Print the table; does every row hold?"""
    width = max(len(row.what) for row in rows)
    print(f"\n{'what was proved':{width}}  result  packets")
    for row in rows:
        word = "pass" if row.passed else "FAIL"
        first = row.counts.splitlines()[0]
        print(f"{row.what:{width}}  {word:6}  {first}")
    return all(row.passed for row in rows)


def main(server_kind: str = "ours") -> int:
    """Run the demo in a lab of its own; 0 if every row holds.

    server_kind: ours, or openvpn for Debian's.
    """
    start = time.monotonic()
    kind = OurServer if server_kind == "ours" else Server
    with Lab() as lab:
        server = kind(lab.internet, lab.scratch, Settings())
        with server, Appliance(lab) as appliance:
            demo = Demo(lab, server, appliance)
            demo.run()
    holds = show(demo.rows)
    print(f"{time.monotonic() - start:.1f} s, the lab is gone")
    return 0 if holds else 1
