"""A server and a client that run, and what is measured between them."""

import contextlib
import functools
import json
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.process import cpu_seconds
from bench.rig import INSIDE, OUTSIDE, PUSH, Rig
from bench.variants import CPU_SERVER, VARIANTS, Plain, Running, environment
from lab.addresses import VPN_PORT
from lab.openvpn import Server, Wrap

GIB = 1 << 30
MIB = 1 << 20
ROOT = Path(__file__).parent.parent
LIMIT = 150.0
ETH_P_IP, SO_TIMESTAMPNS = 0x0800, 35


class MismatchError(Exception):
    """What was received is not what was sent: there is nothing to report."""


@dataclass(frozen=True)
class Transfer:
    """One transfer. cpu, server_cpu: seconds of the process trees.

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
        return self.received * 8 / self.seconds / 1e6

    def cost(self, *, server: bool = False) -> float:
        """CPU seconds per GiB; microseconds per datagram for small."""
        cpu = self.cpu + self.server_cpu * server
        if self.kind == "small":
            return cpu / max(self.received, 1) * 1e6
        return cpu / (self.received / GIB)


@dataclass
class Session:
    """A client that is connected to a server.

    first_packet: seconds from the client's start to the first answer from
    inside the tunnel. shake: from its first packet on the link to there.
    """

    rig: Rig
    server: Server
    client: Running | Plain
    target: str
    first_packet: float = 0.0
    shake: float = 0.0

    @property
    def pid(self) -> int:
        assert self.client.process is not None
        return self.client.process.pid

    def cpu(self) -> tuple[float, float]:
        own = cpu_seconds(self.pid) if self.client.process else 0.0
        return own, cpu_seconds(self.server.process.pid)

    def transfer(
        self, kind: str, size: int, *, flows: int = 1, seconds: float = 2.0
    ) -> Transfer:
        """Move that many bytes (small: datagrams of that, for seconds)."""
        words = ["--flows", str(flows), "--seconds", str(seconds)]
        words += ["--size" if kind == "small" else "--bytes", str(size)]
        with load(self, kind, *words) as process:
            before = self.cpu()
            output = begin(process)
            after = self.cpu()
        if not output:
            raise MismatchError(f"{kind}: no result")
        found = json.loads(output)
        sent, received = found["sent"], found["received"]
        wanted = size // flows * flows * (2 if kind == "both" else 1)
        if kind != "small" and not sent == received == wanted:
            raise MismatchError(f"{kind}: {found}, not {wanted}")
        return Transfer(
            kind,
            found["seconds"],
            sent,
            received,
            after[0] - before[0],
            after[1] - before[1],
        )

    def ping(self, count: int) -> list[float]:
        """Round trips in ms, 10 ms apart; a lost one counts as a second."""
        words = ["-i", "0.01", "-c", str(count), "-W", "1", self.target]
        done = self.rig.app.run(["ping", "-n", *words], check=False)
        times = re.findall(r"time=([\d.]+)", done.stdout)
        return [*map(float, times)] + [1000.0] * (count - len(times))

    def ping_under(self, kind: str, count: int) -> list[float]:
        """The same, while more is moved than can be in that time."""
        with load(self, kind, "--bytes", str(100 * GIB)) as process:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            time.sleep(0.5)
            times = self.ping(count)
            if process.poll() is not None:
                raise MismatchError(f"{kind} ended during the pings")
        return times


@contextlib.contextmanager
def load(
    session: Session, kind: str, *words: str
) -> Iterator["subprocess.Popen[str]"]:
    """The app's end of a transfer, connected and waiting for a line."""
    argv = [sys.executable, "-m", "bench.load", kind, session.target, *words]
    with subprocess.Popen(
        session.rig.app.argv(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise MismatchError(f"{kind}: no connection")
            yield process
        finally:
            process.kill()


def begin(process: "subprocess.Popen[str]") -> str:
    return process.communicate("\n", timeout=LIMIT)[0]


@contextlib.contextmanager
def session(
    rig: Rig,
    variant: str,
    *,
    proto: str = "udp",
    cipher: str = "AES-256-GCM",
    ours: bool = False,
    push: tuple[str, ...] = PUSH,
    extra: tuple[str, ...] = (),
    wrap: Wrap = Wrap.TLS_CRYPT,
) -> Iterator[Session]:
    """A fresh server and a fresh client; traffic flows."""
    server = rig.server(
        proto, cipher, ours=ours, push=push, extra=extra, wrap=wrap
    )
    plain = variant == "plain"
    target = OUTSIDE if plain else INSIDE
    with server, contextlib.closing(FirstPacket(rig)) as link:
        pin(server.process.pid)
        waiting = first_answer(rig, target)
        client = VARIANTS[variant](rig, server)
        try:
            waiting.wait(40)
            now = time.monotonic()
            running = Session(rig, server, client, target)
            if not plain:
                running.first_packet = now - client.began
                running.shake = now - link.seen()
            time.sleep(0.3)
            yield running
        finally:
            client.stop()


class FirstPacket:
    """When the VPN server's machine first got a packet for its port."""

    def __init__(self, rig: Rig) -> None:
        with rig.internet.enter():
            self._sock = socket.socket(
                socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP)
            )
        self._sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._sock.bind(("downlink", ETH_P_IP))

    def seen(self) -> float:
        """In monotonic seconds. It watches no longer: that costs time."""
        self._sock.setblocking(False)
        packet, extra, _, _ = self._sock.recvmsg(100, 100)
        # something else may be seen first
        while packet[22:24] != VPN_PORT.to_bytes(2, "big"):
            packet, extra, _, _ = self._sock.recvmsg(100, 100)
        self.close()
        seconds, nanoseconds = struct.unpack("=qq", extra[0][2])
        ago: float = time.time() - seconds - nanoseconds / 1e9
        return time.monotonic() - ago

    def close(self) -> None:
        self._sock.close()


def first_answer(rig: Rig, target: str) -> "subprocess.Popen[bytes]":
    """A process that ends with the first answer; it asks every 10 ms.

    ping ends with an error, too, such as that there is no way: not this.
    """
    ask = f"until ping -n -i 0.01 -w 30 -c 1 {target}; do sleep 0.01; done"
    return rig.app.popen(["sh", "-c", ask])


def start_load(rig: Rig) -> None:
    """Start the far end of the traffic, and compile what clients import."""
    compile_all(rig.python)
    process = rig.internet.popen(
        [
            *("taskset", "-c", CPU_SERVER, sys.executable),
            *("-m", "bench.load", "serve"),
        ],
        stdout=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    process.stdout.readline()


@functools.cache
def compile_all(python: str) -> None:
    """As the packages do."""

    def run(*words: str) -> None:
        command = [python, *words]
        subprocess.run(command, env=environment(), cwd=ROOT, check=True)

    run("-m", "compileall", "-q", "qubes_vpn", "bench", "lab")
    for module in ("qubes_vpn.cli.client", "bench.client", "numpy"):
        run("-c", f"import {module}")


def pin(pid: int) -> None:
    subprocess.run(
        ["taskset", "-p", "-c", CPU_SERVER, str(pid)],
        stdout=subprocess.DEVNULL,
        check=True,
    )


def flags(server: Server) -> str:
    """A server's configuration without its keys, in one line."""
    text = re.sub(r"<(\S+)>.*?</\1>", "", server.config(), flags=re.DOTALL)
    text = text.replace(server.device, "tun-server")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    program = "openvpn" if type(server) is Server else "qubes-vpn server"
    return f"{program}; {'; '.join(lines)}".replace(f"{server.scratch}/", "")
