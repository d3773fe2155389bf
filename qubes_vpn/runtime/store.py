"""The profiles that a qube keeps, as files that only root reads.

ROOT/profiles/NAME/profile.ovpn   one self-contained profile (0600)
ROOT/profiles/NAME/credentials    user name and password, a line each (0600)
ROOT/current                      the name of the profile in use

Folders are 0700. A profile appears whole or not at all: it is written to a
folder of another name, which is then renamed.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from qubes_vpn.config.document import no_files
from qubes_vpn.config.lexer import decode_text
from qubes_vpn.config.profile import (
    ClientProfile,
    Credentials,
    parse_client_profile,
)
from qubes_vpn.config.write import write_profile
from qubes_vpn.errors import (
    OsRefusedError,
    UnavailableError,
    UnreadableError,
    printable,
)
from qubes_vpn.runtime.files import read_bounded, why

ROOT: Final = Path("/rw/config/qubes-vpn")
NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,47}", re.ASCII)
NAME_MAX: Final = 48
PROFILE: Final = "profile.ovpn"
CREDENTIALS: Final = "credentials"
NOTE: Final = "# not applied: "
_DIR_MODE: Final = 0o700
_FILE_MODE: Final = 0o600


@dataclass(frozen=True, slots=True)
class Entry:
    """One profile to keep.

    credentials: None leaves those that are there.
    """

    name: str
    profile: ClientProfile
    credentials: Credentials | None = field(repr=False, default=None)


def entry_of(name: str, profile: ClientProfile) -> Entry:
    """Split a profile's name and password from it: they have a file."""
    login = profile.auth_user_pass
    if login is None or login.username is None or login.password is None:
        return Entry(name, profile)
    bare = replace(profile, auth_user_pass=Credentials())
    return Entry(name, bare, login)


def name_for(title: str, taken: set[str]) -> str:
    """Make a name that fits from a file's, and that is not taken."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", title).lstrip(".")[:NAME_MAX]
    base = plain or "profile"
    name, number = base, 1
    while name in taken:
        number += 1
        tail = f"-{number}"
        name = base[: NAME_MAX - len(tail)] + tail
    return name


class Store:
    """The profiles under one folder."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self._profiles = root / "profiles"

    # -- reading -------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        """Give the names of all profiles, sorted."""
        with _refusals():
            try:
                found = os.listdir(self._profiles)
            except FileNotFoundError:
                return ()
            return tuple(
                sorted(
                    name
                    for name in found
                    if NAME.fullmatch(name)
                    and (self._profiles / name / PROFILE).is_file()
                )
            )

    def current(self) -> str | None:
        """Give the name of the profile in use, if there is one."""
        with _refusals():
            try:
                content = read_bounded(self.root / "current", NAME_MAX + 1)
            except FileNotFoundError:
                return None
        name = content.decode("latin-1").strip()
        return name if NAME.fullmatch(name) else None

    def text(self, name: str) -> str:
        """Give the text of a profile."""
        with _refusals():
            return decode_text(read_bounded(self._folder(name) / PROFILE))

    def load(self, name: str) -> ClientProfile:
        """Parse a profile; what its credentials file has is in it.

        Raises ConfigError when somebody changed it for the worse.
        """
        path = str(self._folder(name) / PROFILE)
        profile = parse_client_profile(self.text(name), path, no_files)
        login = self.credentials(name)
        if login is None or profile.auth_user_pass is None:
            return profile
        return replace(profile, auth_user_pass=login)

    def notes(self, name: str) -> tuple[str, ...]:
        """Say what was not applied when the profile was imported."""
        return tuple(
            line.removeprefix(NOTE)
            for line in self.text(name).split("\n")
            if line.startswith(NOTE)
        )

    def credentials(self, name: str) -> Credentials | None:
        """Give the stored user name and password, if they are."""
        with _refusals():
            try:
                content = read_bounded(self._folder(name) / CREDENTIALS)
            except FileNotFoundError:
                return None
        text = content.decode("utf-8", "surrogateescape")
        username, password = [*text.split("\n"), "", ""][:2]
        return Credentials(username, password)

    # -- changing ------------------------------------------------------------

    def add(self, entries: tuple[Entry, ...]) -> None:
        """Keep all these profiles, in place of those of the same names.

        All of them are written before the first appears.
        """
        with _refusals():
            self._prepare()
            staged: list[tuple[Path, Path]] = []
            try:
                for entry in entries:
                    place = self._profiles / entry.name
                    staged.append((self._stage(entry, place), place))
                for temporary, place in staged:
                    _take_place(temporary, place)
            finally:
                for temporary, _ in staged:
                    shutil.rmtree(temporary, ignore_errors=True)
            _sync(self._profiles)

    def use(self, name: str) -> None:
        """Make a profile the one in use."""
        folder = self._folder(name)
        with _refusals():
            _write(self.root / "current", f"{folder.name}\n".encode())

    def remove(self, name: str) -> None:
        """Forget a profile and its credentials."""
        folder = self._folder(name)
        with _refusals():
            gone = folder.with_name(f".{name}.{os.getpid()}.old")
            folder.rename(gone)
            shutil.rmtree(gone)
            if self.current() == name:
                (self.root / "current").unlink()

    def set_credentials(self, name: str, login: Credentials) -> None:
        """Keep a user name and a password for a profile."""
        folder = self._folder(name)
        with _refusals():
            _write(folder / CREDENTIALS, _login_lines(login))

    # -- files ---------------------------------------------------------------

    def _folder(self, name: str) -> Path:
        """Give a profile's folder. Raises UnavailableError if none has it."""
        if not NAME.fullmatch(name) or name not in self.names():
            raise UnavailableError(f"no profile is named {printable(name)}")
        return self._profiles / name

    def _prepare(self) -> None:
        for folder in (self.root, self._profiles):
            folder.mkdir(_DIR_MODE, parents=True, exist_ok=True)
            folder.chmod(_DIR_MODE)

    def _stage(self, entry: Entry, place: Path) -> Path:
        temporary = place.with_name(f".{entry.name}.{os.getpid()}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(_DIR_MODE)
        temporary.chmod(_DIR_MODE)
        notes = "".join(
            f"{NOTE}{printable(f'{name}: {reason}')}\n"
            for _, name, reason in entry.profile.notes
        )
        text = notes + write_profile(entry.profile)
        content = text.encode("utf-8", "surrogateescape")
        _write(temporary / PROFILE, content)
        if entry.credentials is not None:
            login = _login_lines(entry.credentials)
            _write(temporary / CREDENTIALS, login)
        elif (place / CREDENTIALS).is_file():
            login = read_bounded(place / CREDENTIALS)
            _write(temporary / CREDENTIALS, login)
        _sync(temporary)
        return temporary


def _login_lines(login: Credentials) -> bytes:
    text = f"{login.username or ''}\n{login.password or ''}\n"
    return text.encode("utf-8", "surrogateescape")


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turn what the system says into what main() knows."""
    try:
        yield
    except PermissionError as error:
        where = error.filename or "the store"
        raise UnreadableError(f"{where}: {why(error)}") from error
    except OSError as error:
        where = error.filename or "the store"
        raise OsRefusedError(f"{where}: {why(error)}") from error


def _take_place(temporary: Path, place: Path) -> None:
    """Put a folder in place of another, which is removed then."""
    if not place.exists():
        temporary.rename(place)
        return
    old = place.with_name(f".{place.name}.{os.getpid()}.old")
    place.rename(old)
    temporary.rename(place)
    shutil.rmtree(old)


def _write(path: Path, content: bytes) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, _FILE_MODE)
    with os.fdopen(descriptor, "wb") as stream:
        os.fchmod(descriptor, _FILE_MODE)
        stream.write(content)
        stream.flush()
        os.fsync(descriptor)
    temporary.rename(path)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
