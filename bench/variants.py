"""The clients that are compared."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bench.rig import TUN, Rig
from lab.namespace import LabError, kill
from lab.openvpn import OPENVPN, STARTED, Server

WAIT = 30.0
CPU_CLIENT, CPU_SERVER = "0", "1"


def environment() -> dict[str, str]:
    """With compiled modules, as the packages have them."""
    root = str(Path(__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": root}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    return env


class Running:
    """A client that is connected.

    began: when it was started. started: seconds from there to connected.
    argv: for people, without the places of this run.
    """

    def __init__(self, rig: Rig, argv: list[str], sign: str) -> None:
        self.log = rig.scratch / f"client-{time.monotonic_ns()}"
        self.argv = shown(argv, rig)
        self.began = begin = time.monotonic()
        with self.log.open("wb") as log:
            self.process = rig.vpn.popen(
                ["taskset", "-c", CPU_CLIENT, *argv],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(),
            )
        while sign not in self.text():
            if self.process.poll() is not None or (
                time.monotonic() > begin + WAIT
            ):
                raise LabError(f"not connected:\n{self.text()[-2000:]}")
            time.sleep(0.005)
        self.started = time.monotonic() - begin

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        kill(self.process)


class Plain:
    """No client: forwarding alone."""

    process = None
    argv = ""
    began = started = 0.0

    def __init__(self, rig: Rig, server: Server) -> None:
        del rig, server

    def stop(self) -> None:
        pass


def shown(argv: list[str], rig: Rig) -> str:
    """A command line as a reader would type it."""
    text = " ".join(["python", *argv[1:]] if argv[0] == rig.python else argv)
    return text.replace(f"{rig.scratch}/", "")


def profile(rig: Rig, server: Server) -> str:
    path = rig.scratch / "client.ovpn"
    path.write_text(server.client_profile())
    return str(path)


def openvpn(rig: Rig, server: Server) -> Running:
    argv = [OPENVPN, "--config", profile(rig, server), "--dev", TUN]
    argv += ["--dev-type", "tun", "--disable-dco"]
    return Running(rig, argv, STARTED)


def product(rig: Rig, server: Server) -> Running:
    argv = [rig.python, "-m", "qubes_vpn", "client", "--unlocked"]
    argv += ["--uplink", "uplink", "--dev", TUN, "--plane", "userspace"]
    argv += ["--control", str(rig.scratch / "control")]
    argv += ["--state", str(rig.scratch / "state")]
    return Running(rig, [*argv, profile(rig, server)], "\nconnected ")


def plane(kind: str) -> Callable[[Rig, Server], Running]:
    def start(rig: Rig, server: Server) -> Running:
        argv = [rig.python, "-m", "bench.client", profile(rig, server)]
        return Running(rig, [*argv, "--plane", kind], "\nconnected")

    return start


VARIANTS: dict[str, Callable[[Rig, Server], Running | Plain]] = {
    "openvpn": openvpn,
    "qubes-vpn": product,
    "offload": plane("offload"),
    "scalar": plane("scalar"),
    "plain": Plain,
}
MEANING = {
    "openvpn": "OpenVPN's client",
    "qubes-vpn": "the product: agent, keeper and engine, with offloads",
    "offload": "its engine and data plane alone, with offloads",
    "scalar": "its engine and data plane alone, one packet a call",
    "plain": "forwarding without a tunnel",
}
