"""The journal, the user's screen, and programs of Qubes' own."""

import contextlib
import pwd
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from qubes_vpn.qubes import agent as qube
from qubes_vpn.runtime import messages

QREXEC: Final = "/usr/bin/qrexec-client-vm"
RUN_MAX_S: Final = 20.0

_KIND_OF_CODE: Final = (
    ("QV-320", "authentication needed"),
    ("QV-404", "leak attempt undone"),
    ("QV-405", "forwarding"),
    ("QV-54", "the server's certificate"),
    ("QV-51", "authentication"),
    ("QV-50", "the server"),
    ("QV-310", "the server"),
    ("QV-33", "closed"),
    ("QV-4", "closed"),
)


def notice_kind(code: str) -> str:
    """Give the kind of notification that a code is; "": none."""
    kinds = (kind for start, kind in _KIND_OF_CODE if code.startswith(start))
    return next(kinds, "")


def run_command(command: Sequence[str]) -> int:
    """Run one of Qubes' programs. Raises OSError if it does not run."""
    try:
        return subprocess.run(  # noqa: S603  fixed programs, no shell
            list(command),
            stdin=subprocess.DEVNULL,
            timeout=RUN_MAX_S,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{command[0]} does not end") from error


class Screen:
    """The journal, and the user's screen; a People."""

    def __init__(self, user: str) -> None:
        self._user = user
        self._shown: list[subprocess.Popen[bytes]] = []

    def line(self, text: str) -> None:
        """Write a line to the journal."""
        with contextlib.suppress(OSError):
            print(qube.printable(text), flush=True)  # noqa: T201

    def ask(
        self,
        prompt: messages.Prompt,
        done: Callable[[str, str], None],
    ) -> None:
        """Leave it to `qubes-vpn answer`: a notice has been shown."""

    def open_url(self, url: str) -> None:
        """Have another qube open an address; the policy asks which one."""
        self._reap()
        with contextlib.suppress(OSError):
            child = subprocess.Popen(  # noqa: S603  fixed program, no shell
                [QREXEC, "@dispvm", "qubes.OpenURL"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            )
            self._shown.append(child)
            assert child.stdin is not None
            with child.stdin as pipe:
                pipe.write(f"{url}\n".encode())

    def _reap(self) -> None:
        self._shown = [each for each in self._shown if each.poll() is None]

    def notice(self, title: str, text: str) -> None:
        """Show a notification, where there is a session."""
        self._reap()
        try:
            uid = pwd.getpwnam(self._user).pw_uid
            command = qube.notify_command(self._user, uid, title, text)
            if Path(f"/run/user/{uid}/bus").exists():
                self._shown.append(
                    subprocess.Popen(  # noqa: S603  fixed program, no shell
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                    )
                )
        except (KeyError, OSError):
            # a minimal template has no session: the journal has it
            pass
