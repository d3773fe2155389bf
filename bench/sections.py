"""What is measured: a section a question, all clients in turn each round."""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench import floor, guardian, kernel
from bench.flood import (
    OTHER_WRAPS,
    STRANGER,
    Ear,
    datagrams,
    flooded,
    strange,
)
from bench.micro import micro
from bench.process import pss_mib, wakeups
from bench.rig import OUTSIDE, Rig
from bench.run import (
    MIB,
    MismatchError,
    Session,
    compile_all,
    first_answer,
    flags,
    session,
    start_load,
)

OURS, THEIRS = "qubes-vpn", "openvpn"


@dataclass
class Run:
    """One section's run: its options, and the figures as they come.

    figures: metric -> variant -> a value a round. flags: how each program
    was started. console: what a machine has printed already, for `kernel`.
    """

    name: str
    rounds: int
    mib: int
    seconds: float
    python: str = sys.executable
    console: str = ""
    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)

    def add(self, metric: str, variant: str, value: float) -> None:
        of_metric = self.figures.setdefault(metric, {})
        of_metric.setdefault(variant, []).append(value)

    def turns(self, variants: tuple[str, ...]) -> Iterator[str]:
        """Every variant in every round, with word of it."""
        for number, each in itertools.product(range(self.rounds), variants):
            now = time.strftime("%H:%M:%S")
            print(
                f"{now} {self.name} {number + 1}/{self.rounds}: {each}",
                file=sys.stderr,
                flush=True,
            )
            yield each

    def rig(self) -> "_Rig":
        return _Rig(self.python)

    def note(self, running: Session, variant: str) -> None:
        text = flags(running.server)
        if text != self.flags.setdefault("server", text):
            self.flags[f"server of {variant}"] = text
        self.flags[variant] = running.client.argv

    def move(
        self,
        running: Session,
        variant: str,
        kinds: tuple[str, ...] = ("up", "down"),
        *,
        label: str = "",
        flows: int = 1,
        server: bool = False,
    ) -> None:
        """Transfers, with what they cost and how fast they were."""
        self.note(running, variant)
        for kind in kinds:
            found = running.transfer(kind, self.mib * MIB, flows=flows)
            name = label + kind
            if running.client.process:
                self.add(
                    f"{name}, CPU s/GiB", variant, found.cost(server=server)
                )
            self.add(f"{name}, Mbit/s", variant, found.mbit)


class _Rig(Rig):
    """With the far end of the traffic running."""

    def __enter__(self) -> "_Rig":
        super().__enter__()
        start_load(self)
        return self


def udp(run: Run) -> None:
    """AES-256-GCM over UDP: bulk, small datagrams, latency, memory"""
    with run.rig() as rig:
        for each in run.turns((THEIRS, OURS, "scalar", "plain")):
            with session(rig, each) as running:
                run.move(running, each, ("up", "down", "both"))
                _small(run, running, each)
                _latency(run, running, each)
                _memory(run, running, each)


def _small(
    run: Run, running: Session, variant: str, size: int = 64, flows: int = 1
) -> None:
    found = running.transfer("small", size, flows=flows, seconds=run.seconds)
    name = f"{size:,} bytes UDP"
    if running.client.process:
        run.add(f"{name}, CPU us/datagram", variant, found.cost())
    share = 100 * found.received / found.sent
    run.add(f"{name}, delivered %", variant, share)


def _latency(run: Run, running: Session, variant: str) -> None:
    count = max(10, int(run.seconds / 0.012))
    run.add("ping, idle, ms", variant, statistics.median(running.ping(count)))
    for way in ("up", "down"):
        times = running.ping_under(way, count)
        name = f"ping, bulk {way}, ms"
        run.add(name, variant, statistics.median(times))
        run.add(f"{name}, longest", variant, max(times))


def _memory(run: Run, running: Session, variant: str) -> None:
    if running.client.process is None:
        return
    found = pss_mib(running.pid)
    run.add("memory, PSS MiB", variant, sum(found.values()))
    if variant == OURS:
        for role, size in found.items():
            run.add(f"memory of the {role}, PSS MiB", variant, size)


def chacha(run: Run) -> None:
    """CHACHA20-POLY1305 over UDP"""
    with run.rig() as rig:
        for each in run.turns((THEIRS, OURS)):
            with session(rig, each, cipher="CHACHA20-POLY1305") as running:
                run.move(running, each)


def tcp(run: Run) -> None:
    """AES-256-GCM over TCP"""
    with run.rig() as rig:
        for each in run.turns((THEIRS, OURS)):
            with session(rig, each, proto="tcp") as running:
                run.move(running, each)


def gro(run: Run) -> None:
    """UDP where the client's link merges datagrams, as a network card does"""
    with run.rig() as rig:
        rig.gro()
        for each in run.turns((THEIRS, OURS)):
            with session(rig, each) as running:
                run.move(running, each)


def pair(run: Run) -> None:
    """Our client and server against OpenVPN's: CPU of both together"""
    with run.rig() as rig:
        for each in run.turns((THEIRS, OURS)):
            with session(rig, each, ours=each == OURS) as running:
                run.move(running, each, server=True)


def routes(run: Run) -> None:
    """1, 10 and 100 pushed routes"""
    names = {f"{OURS}, {n} route{'s' * (n > 1)}": n for n in (1, 10, 100)}
    with run.rig() as rig:
        for each in run.turns(tuple(names)):
            push = tuple(
                f"route 172.16.{number}.0 255.255.255.0"
                for number in range(names[each])
            )
            with session(rig, OURS, push=("ping 10", *push)) as running:
                run.move(running, each)


def flows(run: Run) -> None:
    """One flow against a thousand at once, TCP and UDP"""
    counts = {"1 flow": 1, "1,000 flows": 1000}
    names = tuple(f"{who}, {n}" for who in (THEIRS, OURS) for n in counts)
    with run.rig() as rig:
        for each in run.turns(names):
            who, number = each.split(", ", 1)
            with session(rig, who) as running:
                run.move(running, each, flows=counts[number])
                _small(run, running, each, 1200, counts[number])


def start(run: Run) -> None:
    """From the client's start to the first answer through the tunnel"""
    with run.rig() as rig:
        for each in run.turns((THEIRS, OURS)):
            with session(rig, each) as running:
                run.note(running, each)
                run.add("first packet, s", each, running.first_packet)
                run.add("of it the handshake, s", each, running.shake)


def reconnect(run: Run) -> None:
    """A server is killed and started at once: until the first answer

    Over UDP nobody tells the client: `ping-restart 4` is most of it.
    """
    quick = ("keepalive 1 4",)
    with run.rig() as rig:
        for each in run.turns((THEIRS, OURS)):
            for proto in ("udp", "tcp"):
                with session(rig, each, proto=proto, extra=quick) as running:
                    run.note(running, each)
                    took = _server_back(running)
                    run.add(f"server back, {proto}, s", each, took)


def _server_back(running: Session) -> float:
    running.server.process.kill()
    running.server.process.wait()
    began = time.monotonic()
    running.server.start()
    first_answer(running.rig, running.target).wait(60)
    return time.monotonic() - began


def idle(run: Run) -> None:
    """Nothing to do: wakeups and CPU, keepalive included"""
    seconds = 4 * run.seconds
    with run.rig() as rig:
        for each in run.turns((THEIRS, OURS)):
            with session(rig, each) as running:
                run.note(running, each)
                time.sleep(run.seconds)
                before, spent = wakeups(running.pid), running.cpu()[0]
                time.sleep(seconds)
                spent = running.cpu()[0] - spent
                run.add("CPU ms a second", each, spent / seconds * 1000)
                after = wakeups(running.pid)
                woken = {role: after[role] - before[role] for role in after}
                total = sum(woken.values()) / seconds
                run.add("wakeups a second", each, total)
                if each == OURS:
                    for role, times in woken.items():
                        name = f"wakeups a second of the {role}"
                        run.add(name, each, times / seconds)


def strangers(run: Run) -> None:
    """Packets that nobody asked for, alone and beside bulk traffic"""
    with run.rig() as rig:
        rig.internet.ip(f"addr add {STRANGER}/24 dev downlink")
        for each in run.turns((THEIRS, OURS)):
            ear = Ear(rig)
            with session(rig, each) as running:
                run.note(running, each)
                known = ("--session", ear.session_id().hex())
                for name, words in (
                    ("data packet", ("--kind", "data")),
                    ("control packet", ("--kind", "control", *known)),
                    ("control packet, other session", ("--kind", "control")),
                ):
                    cost = _stranger_cost(run, running, each, *words)
                    run.add(f"spoofed {name}, CPU us", each, cost)
                cost = _stranger_cost(run, running, each, source=STRANGER)
                run.add("wrong source, CPU us", each, cost)
                for kind in ("up", "down"):
                    _flooded(run, running, each, kind)
            _wraps(run, rig, each)


def _wraps(run: Run, rig: Rig, variant: str) -> None:
    """What a control packet costs where they are wrapped otherwise."""
    for wrap in OTHER_WRAPS:
        ear = Ear(rig)
        with session(rig, variant, wrap=wrap) as running:
            known = ("--session", ear.session_id().hex())
            cost = _stranger_cost(
                run, running, variant, "--kind", "control", *known
            )
            name = f"spoofed control packet, {wrap.value}"
            run.add(f"{name}, CPU us", variant, cost)


def _stranger_cost(
    run: Run, running: Session, variant: str, *words: str, source: str = OUTSIDE
) -> float:
    """The client's microseconds a packet, with no other traffic."""
    cpu, (taken, refused) = running.cpu()[0], datagrams(running)
    process = strange(running, source, "--seconds", str(run.seconds), *words)
    sent: int = json.loads(process.communicate(timeout=60)[0])["sent"]
    time.sleep(0.2)
    spent, (taken_then, refused_then) = running.cpu()[0], datagrams(running)
    # the server's own pings are among those that were taken
    reached = min(taken_then - taken, sent - (refused_then - refused))
    if source == OUTSIDE and not 0.9 < reached / sent < 1.1:
        raise MismatchError(f"{reached} of {sent} arrived")
    if source != OUTSIDE:
        share = 100 * reached / sent
        run.add("wrong source, reached the socket %", variant, share)
    return (spent - cpu) / sent * 1e6


def _flooded(run: Run, running: Session, variant: str, kind: str) -> None:
    clean = running.transfer(kind, run.mib * MIB)
    with flooded(running):
        under = running.transfer(kind, run.mib * MIB)
    run.add(f"{kind} without the flood, Mbit/s", variant, clean.mbit)
    run.add(f"{kind} under the flood, Mbit/s", variant, under.mbit)
    share = 100 * under.mbit / clean.mbit
    run.add(f"{kind} kept under the flood, %", variant, share)


def floors(run: Run) -> None:
    """The oldest cryptography, pyOpenSSL and pyroute2 that are supported"""
    old = floor.python()
    run.flags["the floor"] = floor.versions(old)
    variants = {THEIRS: "", OURS: run.python, f"{OURS}, floor": old}
    with run.rig() as rig:
        compile_all(old)
        for each in run.turns(tuple(variants)):
            rig.python = variants[each]
            with session(rig, each.split(",")[0]) as running:
                run.move(running, each)
                _small(run, running, each)


def guard(run: Run) -> None:
    """The lock is changed: until the guardian has repaired it"""
    found = guardian.measure(
        5 * run.rounds,
        lambda name: print(f"{run.name}: {name}", file=sys.stderr),
    )
    for name, values in found.items():
        for value in values:
            run.add(f"{name}, ms", OURS, value)


def inside(run: Run) -> None:
    """Microseconds of our own functions, without any I/O"""
    for number in range(run.rounds):
        print(f"{run.name} {number + 1}/{run.rounds}", file=sys.stderr)
        for name, value in micro().items():
            run.add(f"{name}, us", OURS, value)


def in_kernel(run: Run) -> None:
    """The ovpn driver in a virtual machine (some minutes; not by default)"""
    if run.console:
        text = Path(run.console).read_text(errors="replace")
    else:
        print("kernel: a machine boots: some minutes", file=sys.stderr)
        text = kernel.console()
    run.figures = kernel.figures(text)


Section = Callable[[Run], None]
SECTIONS: dict[str, Section] = {
    "udp": udp,
    "chacha": chacha,
    "tcp": tcp,
    "gro": gro,
    "pair": pair,
    "routes": routes,
    "flows": flows,
    "start": start,
    "reconnect": reconnect,
    "idle": idle,
    "strangers": strangers,
    "guardian": guard,
    "floor": floors,
    "micro": inside,
    "kernel": in_kernel,
}
# `make bench` leaves out what boots a virtual machine.
USUAL = tuple(name for name in SECTIONS if name != "kernel")
