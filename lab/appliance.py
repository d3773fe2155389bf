"""The product in the lab's VPN qube: locked, connected, killed, asked.

Everything is done as a person or systemd does it, by the commands that are
shipped; nothing here reaches into the program.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from lab.namespace import LabError, kill
from lab.topology import Lab

COMMAND = (sys.executable, "-m", "qubes_vpn")
CONTROL = "/run/qubes-vpn/control.sock"
MODULES = {
    "keeper": b"qubes_vpn.keeper",
    "engine": b"qubes_vpn.runtime.engine",
}
POLL = 0.02


class Appliance:
    """`qubes-vpn` in the VPN qube of a lab, from lock() to stop()."""

    def __init__(self, lab: Lab, device: str = "tun-vpn") -> None:
        self.lab = lab
        self.device = device
        self._client: subprocess.Popen[bytes] | None = None
        self._runs = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def command(
        self, *words: str, check: bool = True, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run `qubes-vpn WORDS` in the VPN qube to its end."""
        return self.lab.vpn.run([*COMMAND, *words], check=check, text=text)

    def lock(self) -> Self:
        """Load the static lock, as the unit does at boot."""
        self.lab.vpn.run(
            [
                "sh",
                "qubes_vpn/lockdown/lockdown.sh",
                "apply",
                "--uplink",
                "eth0",
            ]
        )
        return self

    @property
    def log_file(self) -> Path:
        """Where the client of this run writes."""
        return self.lab.scratch / f"client-{id(self):x}-{self._runs}.log"

    def log(self) -> str:
        """What the client said so far."""
        return self.log_file.read_text(errors="replace")

    def connect(self, profile: str, *words: str) -> Self:
        """Start the client with the text of a profile; do not wait."""
        self._runs += 1
        path = self.lab.scratch / f"profile-{id(self):x}-{self._runs}.ovpn"
        path.write_text(profile)
        path.chmod(0o600)
        return self.connect_file(path, *words)

    def connect_file(self, path: Path, *words: str) -> Self:
        """Start the client with a profile's file; do not wait."""
        options = ["--dev", self.device, "--control", CONTROL, *words]
        with self.log_file.open("wb") as log:
            self._client = self.lab.vpn.popen(
                [*COMMAND, "client", str(path), *options],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self

    @property
    def client(self) -> "subprocess.Popen[bytes]":
        """The agent's process of this run."""
        assert self._client is not None
        return self._client

    def status(self) -> dict[str, Any]:
        """Ask the client how it is. Raises LabError when it does not say."""
        done = self.command("status", "--json", "--control", CONTROL)
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def wait_connected(self, timeout: float = 90, count: int = 1) -> Self:
        """Wait until the client has said `connected` so many times."""
        self.wait_log("connected ", timeout, count)
        return self

    def wait_log(self, words: str, timeout: float = 30, count: int = 1) -> None:
        """Wait for a line with these words, or the count-th of them."""
        self.wait(
            lambda: self.log().count(words) >= count, timeout, repr(words)
        )

    def wait_phase(self, phase: str, timeout: float = 30) -> None:
        """Wait until the status says this phase."""

        def reached() -> bool:
            with contextlib.suppress(LabError):
                return bool(self.status()["phase"] == phase)
            return False

        self.wait(reached, timeout, phase)

    def wait(self, done: Callable[[], bool], timeout: float, what: str) -> None:
        """Wait for anything, while the client lives."""
        limit = time.monotonic() + timeout
        while not done():
            if self.client.poll() is not None and not done():
                raise LabError(
                    f"client exited {self.client.returncode} before {what}:"
                    f"\n{self.log()}"
                )
            if time.monotonic() > limit:
                raise LabError(f"no {what} in {timeout} s:\n{self.log()}")
            time.sleep(POLL)

    def exit_status(self, timeout: float = 30) -> int:
        """Wait for the client to end by itself."""
        return self.client.wait(timeout)

    def pid(self, role: str) -> int:
        """The process of the keeper or the engine that runs now."""
        for pid in self.lab.vpn.pids():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if MODULES[role] in words:
                    return pid
        raise LabError(f"no {role} runs")

    def signal(self, role: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to agent, keeper or engine; give its pid."""
        pid = self.client.pid if role == "agent" else self.pid(role)
        os.kill(pid, number)
        return pid

    def kill_all(self, roles: Sequence[str] = ("agent", *MODULES)) -> None:
        """SIGKILL every process at once, as the kernel short of memory."""
        for role in roles:
            with contextlib.suppress(LabError, ProcessLookupError):
                self.signal(role)
        self.client.wait(10)

    def stop(self) -> int | None:
        """End the client politely; the lock stays. Give its status."""
        if self._client is None:
            return None
        client, self._client = self._client, None
        kill(client)
        return client.returncode
