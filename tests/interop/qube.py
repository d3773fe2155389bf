"""The product in the lab's VPN qube as its units start it.

The keeper listens, the engine runs as its own user and is started again when
it ends, the agent reads a stand-in of QubesDB. What systemd does is done by a
loop of the shell.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import qubes_vpn
from lab.namespace import LabError, kill

TOP = Path(qubes_vpn.__file__).resolve().parents[1]
STANDIN = TOP / "tests/dom0/standin"
KEEPER = "/run/qubes-vpn/keeper.sock"
ENGINE = "/run/qubes-vpn/agent.sock"
ENGINE_ID = "7079"


def again(*command):
    """A command that is started again whenever it ends."""
    words = " ".join(command)
    return ["sh", "-c", f"while :; do {words}; sleep 0.2; done"]


class Qube:
    """Keeper, engine and agent; a QubesDB that dom0 (the test) writes."""

    def __init__(self, lab, folder):
        sys.path.insert(0, str(STANDIN))
        import qubesdb

        self.lab = lab
        self.folder = folder
        self.profiles = folder / "config"
        self.log_file = folder / "agent.log"
        self.database = qubesdb.QubesDB(folder / "qubesdb")
        self.database.write("/qubes-service/qubes-vpn", "1")
        self._children = []
        self.agent = None

    def store(self, name, text, login=""):
        from qubes_vpn.qubes.profiles import Profiles

        Profiles(self.profiles).store(name, text, login)

    def lock(self):
        lock = TOP / "qubes_vpn/lockdown/lockdown.sh"
        self.lab.vpn.run(["sh", str(lock), "apply", "--uplink", "eth0"])

    def start(self):
        python = sys.executable
        self._spawn(again(python, "-m", "qubes_vpn.keeper", "--listen", KEEPER))
        self._spawn(
            again(
                # as its unit has it: no network of its own (PrivateNetwork=)
                *("unshare", "--net"),
                *("setpriv", f"--reuid={ENGINE_ID}", f"--regid={ENGINE_ID}"),
                *("--clear-groups", "--", python, "-m"),
                *("qubes_vpn.runtime.engine", "--keeper", KEEPER),
                *("--agent", ENGINE),
            )
        )
        self.start_agent()
        return self

    def start_agent(self):
        command = [
            *(sys.executable, "-m", "qubes_vpn", "agent"),
            *("--folder", str(self.profiles)),
        ]
        self.agent = self._spawn(command)

    def make_read_only(self):
        """Have nothing written to the configuration, as in a disposable."""
        folder = str(self.profiles)
        self.lab.vpn.run(["mount", "--bind", folder, folder])
        options = "remount,bind,ro"
        self.lab.vpn.run(["mount", "-o", options, folder])

    def _spawn(self, command):
        environment = {
            **os.environ,
            "FAKE_QUBESDB": str(self.folder / "qubesdb"),
            "PYTHONPATH": f"{TOP}:{STANDIN}",
        }
        with self.log_file.open("ab") as log:
            child = self.lab.vpn.popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        self._children.append(child)
        return child

    def command(self, *words, text="", check=True):
        return self.lab.vpn.run(
            [sys.executable, "-m", "qubes_vpn", *words], check=check, text=text
        )

    def status(self):
        return json.loads(self.command("status", "--json").stdout)

    def wait(self, done, what, timeout=30):
        limit = time.monotonic() + timeout
        while True:
            with contextlib.suppress(LabError):
                status = self.status()
                if done(status):
                    return status
            if time.monotonic() > limit:
                log = self.log_file.read_text(errors="replace")
                raise LabError(f"no {what} in {timeout} s:\n{log}")
            time.sleep(0.05)

    def wait_connected(self, name):
        return self.wait(
            lambda s: (
                (s["phase"], s["stage"], s["profile"])
                == ("connected", "connected", name)
            ),
            f"connection by {name}",
        )

    def wait_reason(self, code):
        return self.wait(lambda s: s["reason"]["code"] == code, code)

    def shut_down(self):
        """End every program of the qube, but not the qube."""
        for child in reversed(self._children):
            kill(child)
        self._children.clear()
        for pid in self.lab.vpn.pids():
            words = Path(f"/proc/{pid}/cmdline")
            with contextlib.suppress(OSError):
                if b"qubes_vpn" in words.read_bytes():
                    os.kill(pid, signal.SIGKILL)

    def stop(self):
        # what the loops of the shell started ends with the lab
        for child in reversed(self._children):
            kill(child)
        self.database.close()
