"""One measurement: a server, a client, and each kind of traffic in turn."""

import json
import re
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.load import SMALL_SIZE
from bench.process import cpu_seconds, pss_mib
from bench.rig import INSIDE, OUTSIDE, Rig
from bench.variants import CPU_SERVER, VARIANTS, environment

GIB = 1 << 30
ROOT = Path(__file__).parent.parent
KINDS = ("up", "down", "both", "small")


class MismatchError(Exception):
    """What was received is not what was sent: there is nothing to report."""


@dataclass
class Transfer:
    """One transfer. cpu and server_cpu: seconds of the process trees.

    For kind small, sent and received count datagrams, else bytes.
    """

    kind: str
    seconds: float
    sent: int
    received: int
    cpu: float
    server_cpu: float

    @property
    def mbit(self) -> float:
        size = SMALL_SIZE if self.kind == "small" else 1
        return self.received * size * 8 / self.seconds / 1e6

    @property
    def cost(self) -> float:
        """CPU seconds per GiB; microseconds per datagram for small."""
        if self.kind == "small":
            return self.cpu / max(self.received, 1) * 1e6
        return self.cpu / (self.received / GIB)


@dataclass
class Measurement:
    """All about one client in one round."""

    variant: str
    scenario: str
    transfers: dict[str, Transfer] = field(default_factory=dict)
    started: float = 0.0
    first_packet: float = 0.0
    pss: float = 0.0
    ping_idle: float = 0.0
    ping_loaded: float = 0.0
    ping_loaded_max: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def start_load(rig: Rig) -> None:
    """Start the far end of the traffic, and compile what clients import."""
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "qubes_vpn", "bench", "lab"],
        env=environment(rig),
        cwd=ROOT,
        check=True,
    )
    for module in ("qubes_vpn.cli.client", "bench.client", "numpy"):
        subprocess.run(
            [sys.executable, "-c", f"import {module}"],
            env=environment(rig),
            check=True,
        )
    process = rig.internet.popen(
        [
            *("taskset", "-c", CPU_SERVER, sys.executable),
            *("-m", "bench.load", "serve", "0.0.0.0"),
        ],
        stdout=subprocess.PIPE,
        env=environment(rig),
    )
    assert process.stdout is not None
    process.stdout.readline()


def load(rig: Rig, kind: str, seconds: float, target: str) -> dict[str, Any]:
    words = [sys.executable, "-m", "bench.load", kind, str(seconds), target]
    done = subprocess.run(
        rig.app.argv(words),
        capture_output=True,
        text=True,
        timeout=seconds + 90,
        env=environment(rig),
    )
    if done.returncode:
        raise MismatchError(f"{kind}: {done.stderr.strip()[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    if kind != "small" and result["sent"] != result["received"]:
        raise MismatchError(f"{kind}: {result}")
    return result


def ping(rig: Rig, target: str, count: int) -> list[float]:
    """Round trips in ms, 10 ms apart; what is lost counts as a second."""
    done = rig.app.run(
        ["ping", "-n", "-i", "0.01", "-c", str(count), "-W", "1", target],
        check=False,
    )
    times = [float(each) for each in re.findall(r"time=([\d.]+)", done.stdout)]
    return times + [1000.0] * (count - len(times))


def measure(
    rig: Rig,
    name: str,
    *,
    proto: str,
    cipher: str,
    seconds: float,
    kinds: tuple[str, ...],
) -> Measurement:
    """Run one client through everything."""
    found = Measurement(name, f"{proto} {cipher}")
    with rig.server(proto, cipher) as server:
        pin(server.process.pid)
        waiting = None
        if name != "plain":
            begin = time.monotonic()
            waiting = rig.app.popen(
                ["ping", "-n", "-i", "0.01", "-w", "30", "-c", "1", INSIDE]
            )
        client = VARIANTS[name](rig, server)
        try:
            found.started = client.started
            if waiting is not None:
                waiting.wait(40)
                found.first_packet = time.monotonic() - begin
            time.sleep(0.3)
            target = OUTSIDE if name == "plain" else INSIDE
            for kind in kinds:
                found.transfers[kind] = transfer(
                    rig, kind, seconds, target, client, server.process.pid
                )
            if "down" in kinds:
                latency(rig, found, target, seconds)
            if client.process is not None:
                found.pss = pss_mib(client.process.pid)
        finally:
            client.stop()
    return found


def transfer(
    rig: Rig, kind: str, seconds: float, target: str, client: Any, server: int
) -> Transfer:
    def cpu() -> tuple[float, float]:
        own = cpu_seconds(client.process.pid) if client.process else 0.0
        return own, cpu_seconds(server)

    before = cpu()
    result = load(rig, kind, seconds, target)
    after = cpu()
    return Transfer(
        kind,
        result["seconds"],
        result["sent"],
        result["received"],
        after[0] - before[0],
        after[1] - before[1],
    )


def latency(rig: Rig, found: Measurement, target: str, seconds: float) -> None:
    """Ping with nothing else, then while a download runs."""
    found.ping_idle = statistics.median(ping(rig, target, 30))
    words = [sys.executable, "-m", "bench.load", "down", str(seconds), target]
    busy = rig.app.popen(words, env=environment(rig))
    time.sleep(0.5)
    times = ping(rig, target, max(10, int((seconds - 0.8) / 0.012)))
    busy.wait(60)
    found.ping_loaded = statistics.median(times)
    found.ping_loaded_max = max(times)


def pin(pid: int) -> None:
    subprocess.run(
        ["taskset", "-p", "-c", CPU_SERVER, str(pid)],
        stdout=subprocess.DEVNULL,
        check=True,
    )


def save(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
