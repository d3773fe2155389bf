"""Our own server in the lab's internet, in the place of Debian's openvpn."""

import re
import subprocess
import sys
from pathlib import Path

from lab.namespace import LabError
from lab.openvpn import WAIT, Server

COMMAND = (sys.executable, "-m", "qubes_vpn", "server")
SERVING = "serving on"
KEYED = r"client \d+: key \d, (\S+)"


class OurServer(Server):
    """`qubes-vpn server` with the settings of a lab server.

    command: what starts it. words: of its command line, besides.
    """

    command: tuple[str, ...] = COMMAND
    words: tuple[str, ...] = ()

    def start(self) -> None:
        """Start it and wait until it listens."""
        before = self.log.count(SERVING)
        path = self.scratch / "config"
        path.write_text(self.config())
        path.chmod(0o600)
        with self.log_path.open("ab") as log:
            self._process = self.namespace.popen(
                [
                    *self.command,
                    str(path),
                    *("--control", str(self.control)),
                    *self._passwords(),
                    *self.words,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.wait_for(SERVING, count=before + 1)

    @property
    def control(self) -> Path:
        """Its status socket."""
        return self.scratch / "control.sock"

    def ciphers(self) -> list[str]:
        """The data cipher of each key so far."""
        return re.findall(KEYED, self.log)

    def wait_rekeyed(self, count: int = 1, timeout: float = 2 * WAIT) -> None:
        """Wait for so many keys more than there are now."""
        self.wait_for(KEYED, count=len(self.ciphers()) + count, timeout=timeout)

    def _authentication(self) -> list[str]:
        return [] if self.settings.certificates else ["verify-client-cert none"]

    def _passwords(self) -> list[str]:
        if not self.settings.users:
            return []
        path = self.scratch / "passwords"
        for name, password in self.settings.users:
            done = subprocess.run(
                [*COMMAND[:-1], "passwd", str(path), name],
                input=f"{password}\n",
                text=True,
                capture_output=True,
            )
            if done.returncode:
                raise LabError(done.stderr)
        return ["--passwords", str(path)]
