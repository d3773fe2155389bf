"""The profiles of a qube: a folder of folders below /rw/config/qubes-vpn.

    profiles/NAME/profile.ovpn   everything inlined
    profiles/NAME/credentials    a user name and a password, a line each
    current                      the profile that was chosen in the qube
    state.json                   resolved addresses; may be absent

All is root's, folders 0700 and files 0600. A profile appears whole or not at
all: it is written to a folder of another name, which is then renamed. In a
disposable what is written lives as long as the qube; where nothing can be
written, only what needs to be remembered is lost.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from qubes_vpn.errors import (
    OsRefusedError,
    UnavailableError,
    UnreadableError,
    VpnError,
    printable,
)
from qubes_vpn.qubes.qubesdb import PROFILE_NAME

FOLDER: Final = Path("/rw/config/qubes-vpn")
PROFILE_MAX: Final = 256 * 1024
PROFILES_MAX: Final = 4096
PROFILE: Final = "profile.ovpn"
CREDENTIALS: Final = "credentials"


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


@dataclass(frozen=True, slots=True)
class Kept:
    """A profile to keep. login: two lines; b"" leaves those that are there."""

    name: str
    text: bytes = field(repr=False)
    login: bytes = field(repr=False, default=b"")


class Profiles:
    """The folder, read and written.

    owner: the uid that must own what is read (0, but in tests).
    """

    def __init__(self, folder: Path = FOLDER, *, owner: int = 0) -> None:
        self.folder = folder
        self._profiles = folder / "profiles"
        self._owner = owner
        # of a choice that could not be written
        self._remembered = ""

    @property
    def state(self) -> Path:
        """The file of resolved addresses."""
        return self.folder / "state.json"

    def names(self) -> tuple[str, ...]:
        """Give the names of all profiles, sorted; none that cannot be read."""
        with contextlib.suppress(VpnError):
            return self.listed()
        return ()

    def listed(self) -> tuple[str, ...]:
        """Give the same, or raise UnreadableError or OsRefusedError."""
        with _refusals():
            try:
                found = os.listdir(self._profiles)
            except FileNotFoundError:
                return ()
            return tuple(sorted(filter(self._has, found)))

    def _has(self, name: str) -> bool:
        return PROFILE_NAME.fullmatch(name) is not None and (
            (self._profiles / name / PROFILE).is_file()
        )

    def followed(self, name: str) -> tuple[Path, ...]:
        """Give a place in each folder whose changes `stamp` may show."""
        return (
            self.folder / "current",
            self._profiles / "*",
            *([self._profiles / name / PROFILE] if name else []),
        )

    def stamp(self, name: str = "") -> tuple[object, ...]:
        """Give a value that differs after a change of what is looked at.

        That is the choice, and which profiles there are; or the files of one.
        """
        found: list[object] = [self.current]
        for path in sorted(
            self._profiles.glob(f"{name}/*" if name else "[!.]*")
        ):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((path, status.st_mtime_ns, status.st_ino))
        return tuple(found)

    def path(self, name: str) -> Path:
        """Give the file of a profile, which only its owner can read.

        Raises UnavailableError if there is none, and UnreadableError for any
        other: a key that another user could have changed is not used.
        """
        path = self._place(name) / PROFILE
        self._check(path)
        return path

    def credentials(self, name: str) -> Path | None:
        """Give the file with the credentials, if there is one."""
        path = self.path(name).with_name(CREDENTIALS)
        if not path.exists():
            return None
        self._check(path)
        return path

    def _place(self, name: str) -> Path:
        with _refusals():
            if not self._has(name):
                raise UnavailableError(f"no profile is named {printable(name)}")
        return self._profiles / name

    def _check(self, path: Path) -> None:
        for each in (path, path.parent):
            with _refusals():
                found = each.lstat()
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
            word = (self.folder / "current").read_text("ascii")[:64].strip()
        except (OSError, UnicodeDecodeError):
            return self._remembered
        return word if PROFILE_NAME.fullmatch(word) else ""

    def choose(self, name: str) -> None:
        """Remember a choice; "": none. Where that fails, until the end."""
        try:
            self._put_current(name)
        except OSError:
            self._remembered = name
        else:
            self._remembered = ""

    def use(self, name: str) -> None:
        """Make a profile the one in use, or raise why it is not."""
        self._place(name)
        with _refusals():
            self._put_current(name)

    def _put_current(self, name: str) -> None:
        path = self.folder / "current"
        if name:
            _write(path, f"{checked_name(name)}\n".encode())
        else:
            path.unlink(missing_ok=True)

    def store(self, name: str, profile: str, login: str = "") -> bool:
        """Keep one profile; tell if it is a new one. As `add`."""
        fresh = name not in self.names()
        self.add([Kept(name, profile.encode(), login.encode())])
        return fresh

    def add(self, kept: Sequence[Kept]) -> None:
        """Keep all these profiles, in place of those of the same names.

        All of them are written before the first appears. Raises ValueError
        for a name that is none, OsRefusedError or UnreadableError.
        """
        names = {checked_name(each.name) for each in kept} | set(self.names())
        if len(names) > PROFILES_MAX:
            raise OsRefusedError(
                f"that would be {len(names):,} profiles, and {PROFILES_MAX:,}"
                " is the most: nothing was kept"
            )
        with _refusals():
            for folder in (self.folder, self._profiles):
                folder.mkdir(0o700, parents=True, exist_ok=True)
                folder.chmod(0o700)
            staged: list[tuple[Path, Path]] = []
            try:
                for each in kept:
                    place = self._profiles / each.name
                    staged.append((_beside(place, "new"), place))
                    _stage(each, *staged[-1])
                for temporary, place in staged:
                    _take_place(temporary, place)
            finally:
                for temporary, _ in staged:
                    shutil.rmtree(temporary, ignore_errors=True)
            _sync(self._profiles)

    def set_credentials(self, name: str, login: bytes) -> None:
        """Keep a user name and a password for a profile: two lines."""
        place = self._place(name)
        with _refusals():
            _write(place / CREDENTIALS, login)

    def remove(self, name: str) -> None:
        """Forget a profile with its keys, and that it was chosen."""
        place = self._place(name)
        with _refusals():
            gone = _beside(place, "old")
            place.rename(gone)
            shutil.rmtree(gone)
            if self.current == name:
                self._put_current("")


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turn what the system says into errors of ours."""
    try:
        yield
    except OSError as error:
        where = error.filename or "the profiles"
        text = f"{where}: {error.strerror or error}"
        if isinstance(error, PermissionError):
            raise UnreadableError(text) from error
        raise OsRefusedError(text) from error


def _beside(path: Path, end: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{end}")


def _stage(kept: Kept, temporary: Path, place: Path) -> None:
    """Write a profile to a folder of another name."""
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(0o700)
    temporary.chmod(0o700)
    _write(temporary / PROFILE, kept.text)
    old = place / CREDENTIALS
    login = kept.login or (old.read_bytes() if old.is_file() else b"")
    if login:
        _write(temporary / CREDENTIALS, login)
    _sync(temporary)


def _take_place(temporary: Path, place: Path) -> None:
    """Put a folder in place of another, which is removed then."""
    if not place.exists():
        temporary.rename(place)
        return
    old = _beside(place, "old")
    place.rename(old)
    temporary.rename(place)
    shutil.rmtree(old)


def _write(path: Path, content: bytes) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    temporary = _beside(path, "new")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(descriptor, 0o600)
            stream.write(content)
            stream.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
