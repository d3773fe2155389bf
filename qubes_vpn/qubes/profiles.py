"""The profiles of a qube: a folder of folders below /rw/config/qubes-vpn.

    profiles/NAME/profile.ovpn   everything inlined
    profiles/NAME/credentials    a user name and a password, a line each
    current                      the profile that was chosen in the qube
    state.json                   resolved addresses; may be absent

All is root's, folders 0700 and files 0600. In a disposable what is written
lives as long as the qube; where nothing can be written, only what needs to be
remembered is lost.
"""

import contextlib
import os
import secrets
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qubes_vpn.errors import OsRefusedError, UnreadableError
from qubes_vpn.qubes.qubesdb import PROFILE_NAME

FOLDER: Final = Path("/rw/config/qubes-vpn")
PROFILE_MAX: Final = 256 * 1024
PROFILES_MAX: Final = 200


def checked_name(name: str) -> str:
    """Return a name that can be a profile's. Raises ValueError."""
    if PROFILE_NAME.fullmatch(name) is None:
        raise ValueError("a profile's name is 1 to 48 of A-Z a-z 0-9 _ . -")
    return name


@dataclass(frozen=True, slots=True)
class Choice:
    """Which profile is to be used, and what stands in the way.

    name: "" when none can be. missing: wanted, but not there, in order.
    """

    name: str = ""
    missing: tuple[str, ...] = ()


def choose(
    wanted: tuple[str, ...], available: tuple[str, ...], current: str
) -> Choice:
    """Choose a profile.

    wanted: the feature's list, in order of preference; empty: no preference.
    current: what was chosen in the qube; it counts if the feature allows it.
    A single profile needs no choice; of several, none is guessed.
    """
    missing = tuple(name for name in wanted if name not in available)
    usable = tuple(name for name in wanted if name in available)
    if current in (usable if wanted else available):
        return Choice(current, missing)
    if wanted:
        return Choice(usable[0] if usable else "", missing)
    return Choice(available[0] if len(available) == 1 else "")


class Profiles:
    """The folder, read and written.

    owner: the uid that must own what is read (0, but in tests).
    """

    def __init__(self, folder: Path = FOLDER, *, owner: int = 0) -> None:
        self._folder = folder
        self._owner = owner
        # of a choice that could not be written
        self._remembered = ""

    @property
    def state(self) -> Path:
        """The file of resolved addresses."""
        return self._folder / "state.json"

    def names(self) -> tuple[str, ...]:
        """Give the names of all profiles, sorted."""
        found: list[str] = []
        with contextlib.suppress(OSError):
            found = [
                path.name
                for path in (self._folder / "profiles").iterdir()
                if PROFILE_NAME.fullmatch(path.name)
                and (path / "profile.ovpn").is_file()
            ]
        return tuple(sorted(found))

    def stamp(self) -> tuple[object, ...]:
        """Give a value that differs after any file of a profile changed."""
        found: list[object] = [self.current]
        for path in sorted(self._folder.glob("profiles/[!.]*/*")):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((path, status.st_mtime_ns, status.st_ino))
        return tuple(found)

    def path(self, name: str) -> Path:
        """Give the file of a profile, which only its owner can read.

        Raises UnreadableError for any other: a key that another user could
        have changed is not used.
        """
        path = self._folder / "profiles" / checked_name(name) / "profile.ovpn"
        self._check(path)
        return path

    def credentials(self, name: str) -> Path | None:
        """Give the file with the credentials, if there is one."""
        path = self.path(name).with_name("credentials")
        if not path.exists():
            return None
        self._check(path)
        return path

    def _check(self, path: Path) -> None:
        for each in (path, path.parent):
            try:
                found = each.lstat()
            except OSError as error:
                raise UnreadableError(f"{each}: {error.strerror}") from error
            if stat.S_ISLNK(found.st_mode):
                raise UnreadableError(f"{each}: a link is not followed")
            if found.st_uid != self._owner or found.st_mode & 0o077:
                raise UnreadableError(
                    f"{each}: others than root can use it; chmod go= {each}"
                )

    @property
    def current(self) -> str:
        """The profile that was chosen in the qube, or ""."""
        try:
            word = (self._folder / "current").read_text("ascii")[:64].strip()
        except (OSError, UnicodeDecodeError):
            return self._remembered
        return word if PROFILE_NAME.fullmatch(word) else ""

    def choose(self, name: str) -> None:
        """Remember a choice; "": none. Where that fails, until the end."""
        path = self._folder / "current"
        try:
            if name:
                _write(path, f"{checked_name(name)}\n".encode())
            else:
                path.unlink(missing_ok=True)
        except OSError:
            self._remembered = name
        else:
            self._remembered = ""

    def store(self, name: str, profile: str, login: str = "") -> bool:
        """Keep a profile, whole or not at all; tell if it is a new one.

        login: two lines, or "" to keep what is there. Raises OsRefusedError.
        """
        top = self._folder / "profiles"
        target = top / checked_name(name)
        try:
            self._make(top)
            if not target.exists() and len(self.names()) >= PROFILES_MAX:
                raise OsRefusedError("there are too many profiles already")
            return self._replace(target, profile, login)
        except OSError as error:
            raise OsRefusedError(
                f"{target} cannot be written: {error.strerror}"
            ) from error

    def _replace(self, target: Path, profile: str, login: str) -> bool:
        fresh = not target.exists()
        folder = target
        if fresh:
            # it gets its name when it is complete
            folder = target.with_name(f".new-{secrets.token_hex(4)}")
            folder.mkdir(0o700)
        try:
            _write(folder / "profile.ovpn", profile.encode())
            if login:
                _write(folder / "credentials", login.encode())
            if fresh:
                folder.rename(target)
        except OSError:
            if fresh:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        return fresh

    def _make(self, top: Path) -> None:
        for folder in (self._folder, top):
            folder.mkdir(0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)

    def remove(self, name: str) -> None:
        """Forget a profile with its keys. Raises OsRefusedError."""
        target = self._folder / "profiles" / checked_name(name)
        try:
            shutil.rmtree(target)
        except OSError as error:
            raise OsRefusedError(
                f"{target} cannot be removed: {error.strerror}"
            ) from error


def _write(path: Path, content: bytes) -> None:
    """Write a file of root's that takes its place when it is complete."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600
    )
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
