"""Who may come in: passwords, PAM, and the files of client-config-dir.

Files are read anew for each decision, so that a change holds from the next
connection on. Whatever cannot be read or parsed refuses the client: what the
file would have said is not known.
"""

import concurrent.futures
import logging
import os
import re
import threading
from collections import deque
from pathlib import Path
from typing import Final

from qubes_vpn.config.server_profile import (
    ClientConfig,
    ServerProfile,
    parse_client_config,
)
from qubes_vpn.crypto.passwords import NOBODY, verify_password
from qubes_vpn.engine.server_effects import Authenticate, Decision
from qubes_vpn.errors import (
    ConfigError,
    OsRefusedError,
    UnavailableError,
)
from qubes_vpn.system import pam

_LOG: Final = logging.getLogger(__name__)
# what may be a file name in client-config-dir; never a dot first
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_@-][A-Za-z0-9_.@-]{0,63}")
_FILE_MAX: Final = 64 * 1024
_WORKERS: Final = 2
# Questions that may wait; each costs a tenth of a second of one processor.
PENDING_MAX: Final = 512
_REFUSED: Final = Decision(allowed=False)
_BUSY: Final = Decision(
    allowed=False, reason="busy", temporary=True, backoff=10
)


class Authenticator:
    """Decides in threads of its own: a password costs 0.1 s to check.

    fileno: readable when `answers` has something. Close it at the end.
    """

    def __init__(self, profile: ServerProfile) -> None:
        self._profile = profile
        self._pool = concurrent.futures.ThreadPoolExecutor(
            _WORKERS, thread_name_prefix="auth"
        )
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._answers: deque[tuple[int, int, Decision]] = deque()
        self._pending = 0

    def fileno(self) -> int:
        """Give the descriptor to watch."""
        return self._event

    def ask(self, client: int, question: Authenticate) -> None:
        """Have a question answered; see `answers`."""
        with self._lock:
            self._pending += 1
            busy = self._pending > PENDING_MAX
        if busy:
            self._answer(client, question.number, _BUSY)
        else:
            self._pool.submit(self._work, client, question)

    def answers(self) -> list[tuple[int, int, Decision]]:
        """Give (client, number, decision) of what is decided."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return []
        with self._lock:
            found = list(self._answers)
            self._answers.clear()
            self._pending -= len(found)
        return found

    def close(self) -> None:
        """Stop deciding."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        os.close(self._event)

    def _work(self, client: int, question: Authenticate) -> None:
        decision = _REFUSED
        try:
            decision = self.decide(question)
        except (OSError, ConfigError, OsRefusedError, ValueError) as error:
            _LOG.error("client %s refused: %s", question.common_name, error)
        finally:
            self._answer(client, question.number, decision)

    def _answer(self, client: int, number: int, decision: Decision) -> None:
        with self._lock:
            self._answers.append((client, number, decision))
        os.eventfd_write(self._event, 1)

    def decide(self, question: Authenticate) -> Decision:
        """Decide now.

        OSError, OsRefusedError, ConfigError and ValueError mean: refuse.
        """
        config = self._client_config(question.common_name)
        if config.disable:
            return _REFUSED
        if not question.trusted and not self._password_fits(question):
            return _REFUSED
        return Decision(allowed=True, config=config)

    def _client_config(self, name: str) -> ClientConfig:
        directory = self._profile.client_config_dir
        if not directory:
            return ClientConfig()
        if _FILE_NAME.fullmatch(name) is None:
            raise ValueError("its name cannot be that of a file")
        for candidate in (name, "DEFAULT"):
            text = _read(Path(directory) / candidate)
            if text is not None:
                return parse_client_config(text, candidate)
            if self._profile.ccd_exclusive:
                raise ValueError("it has no file in client-config-dir")
        return ClientConfig()

    def _password_fits(self, question: Authenticate) -> bool:
        if not question.username and self._profile.auth_user_pass_optional:
            return True
        if self._profile.password_file and _in_file(
            self._profile.password_file, question.username, question.password
        ):
            return True
        return bool(self._profile.pam_service) and pam.authenticate(
            self._profile.pam_service, question.username, question.password
        )


def _read(path: Path) -> str | None:
    """Read a small file; None when there is none."""
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(_FILE_MAX + 1)
    except FileNotFoundError:
        return None
    if len(text) > _FILE_MAX:
        raise ValueError(f"{path} is too long")
    return text


def _in_file(path: str, user: str, password: str) -> bool:
    """Look in lines `user:hash`; takes as long when the user is not there."""
    stored = NOBODY
    with Path(path).open(encoding="utf-8") as stream:
        for line in stream:
            name, colon, value = line.rstrip("\n").partition(":")
            if colon and name == user:
                stored = value
    return verify_password(password, stored)


def check_backends(profile: ServerProfile) -> None:
    """See that what decides is there. Raises UnavailableError."""
    if profile.pam_service and not pam.available():
        raise UnavailableError("--pam needs libpam, which is not here")
    if profile.password_file and not Path(profile.password_file).is_file():
        raise UnavailableError(f"{profile.password_file}: no such file")
    directory = profile.client_config_dir
    if directory and not Path(directory).is_dir():
        raise UnavailableError(f"{directory}: no such directory")
