"""Where profiles are imported from: a file, a folder, or a zip archive.

What is read is untrusted. A profile may name files of its own folder and
below, and nothing else: not an absolute path, not one with `..`, no link.
For one that does, as providers' profiles do, the file of that name beside
the profile is taken, if there is one.
"""

import lzma
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from qubes_vpn.config.lexer import decode_text
from qubes_vpn.errors import ConfigError, Problem, UnreadableError
from qubes_vpn.runtime.files import FILE_MAX, read_bounded, read_named, why

ARCHIVE_MAX: Final = 64 * 1024 * 1024  # bytes, packed and unpacked
MEMBERS_MAX: Final = 8192
SHOWN_MAX: Final = 300  # characters of a message
DEPTH_MAX: Final = 8  # folders below the one that is named
SUFFIXES: Final = (".ovpn", ".conf")
_CHUNK: Final = 64 * 1024
_ENCRYPTED: Final = 0x1
# What zipfile raises for archives that are not as they should be.
_DAMAGED: Final = (
    zipfile.BadZipFile,
    ValueError,
    struct.error,
    lzma.LZMAError,
    NotImplementedError,
    EOFError,
    RuntimeError,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class Source:
    """One profile to import. title: what its name is made from."""

    title: str
    path: str
    text: str = field(repr=False)
    read_file: Callable[[str], bytes] = field(repr=False)


def sources(path: Path) -> Iterator[Source]:
    """Give every profile of a file, a folder or an archive.

    Raises UnreadableError, and ConfigError when there is none or when an
    archive is not harmless.
    """
    found: Iterator[Source]
    if path.is_dir():
        found = _folder(path)
    elif zipfile.is_zipfile(path) if path.is_file() else False:
        found = _archive(path)
    else:
        found = iter((_file(path, path.parent),))
    empty = True
    for source in found:
        empty = False
        yield source
    if empty:
        what = f"holds no profile ({', '.join(SUFFIXES)})"
        raise _wrong(str(path), what)


def _wrong(path: str, message: str) -> ConfigError:
    """Say it in a line: what an archive calls its files may be anything."""
    shown = message if message.isprintable() else ascii(message)[1:-1]
    return ConfigError([Problem(path, 0, 0, shown[:SHOWN_MAX], "QV-111")])


def _inside(name: str) -> PurePosixPath:
    """Check that a name leads to its own folder or below.

    Raises ValueError.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        message = "leads out of the profile's folder; copy the file beside it"
        raise ValueError(message)
    if not path.parts or "\0" in name:
        message = "not a file name"
        raise ValueError(message)
    return path


def _beside(
    name: str, exists: Callable[[PurePosixPath], bool]
) -> PurePosixPath:
    """Give the path below the profile's folder that a name stands for.

    Raises ValueError.
    """
    try:
        return _inside(name)
    except ValueError:
        bare = name.replace("\\", "/").rsplit("/", 1)[-1]
        if bare in {"", ".", ".."} or not exists(PurePosixPath(bare)):
            raise
        return PurePosixPath(bare)


# -- on disk -------------------------------------------------------------------


def _file(path: Path, folder: Path) -> Source:
    try:
        text = decode_text(read_bounded(path))
    except OSError as error:
        raise UnreadableError(f"{path}: {why(error)}") from error

    def read_file(name: str) -> bytes:
        wanted = folder / _beside(name, lambda one: (folder / one).exists())
        if not wanted.resolve().is_relative_to(folder.resolve()):
            message = "is a link out of the profile's folder"
            raise ValueError(message)
        return read_named(wanted, name)

    return Source(path.stem, str(path), text, read_file)


def _folder(path: Path) -> Iterator[Source]:
    for place, folders, files in os.walk(path):
        here = Path(place)
        folders.sort()
        if len(here.relative_to(path).parts) >= DEPTH_MAX:
            folders.clear()
        for name in sorted(files):
            one = here / name
            if one.suffix.lower() in SUFFIXES and not one.is_symlink():
                yield _file(one, here)


# -- in an archive ------------------------------------------------------------


def _archive(path: Path) -> Iterator[Source]:
    if path.stat().st_size > ARCHIVE_MAX:
        raise _wrong(str(path), f"is larger than {ARCHIVE_MAX} bytes")
    try:
        with zipfile.ZipFile(path) as archive:
            members = _unpack(path, archive)
    except _DAMAGED as error:
        raise _wrong(str(path), f"is damaged: {error}") from None
    except OSError as error:
        raise UnreadableError(f"{path}: {why(error)}") from error
    for name, content in members.items():
        if name.suffix.lower() in SUFFIXES:
            yield Source(
                name.stem,
                f"{path}:{name}",
                decode_text(content),
                _member_reader(members, name.parent),
            )


def _unpack(path: Path, archive: zipfile.ZipFile) -> dict[PurePosixPath, bytes]:
    """Read every member, in memory; nothing is believed of their sizes."""
    infos = archive.infolist()
    if len(infos) > MEMBERS_MAX:
        raise _wrong(str(path), f"holds more than {MEMBERS_MAX} files")
    members: dict[PurePosixPath, bytes] = {}
    left = ARCHIVE_MAX
    for info in infos:
        name = _member_name(path, info)
        if info.is_dir():
            continue
        content = _unpack_one(archive, info, min(left, FILE_MAX))
        if content is None:
            what = f"unpacks to more than is reasonable ({name})"
            raise _wrong(str(path), what)
        left -= len(content)
        members[name] = content
    return members


def _member_name(path: Path, info: zipfile.ZipInfo) -> PurePosixPath:
    try:
        name = _inside(info.filename)
    except ValueError as error:
        shown = info.filename[:64]
        raise _wrong(str(path), f"holds {shown}, which {error}") from None
    mode = info.external_attr >> 16
    if mode and stat.S_IFMT(mode) not in {0, stat.S_IFREG, stat.S_IFDIR}:
        what = f"holds {name}, which is a link or a device"
        raise _wrong(str(path), what)
    if info.flag_bits & _ENCRYPTED:
        raise _wrong(str(path), "is encrypted; unpack it first")
    return name


def _unpack_one(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int
) -> bytes | None:
    content = bytearray()
    with archive.open(info) as stream:
        while chunk := stream.read(_CHUNK):
            content += chunk
            if len(content) > limit:
                return None
    return bytes(content)


def _member_reader(
    members: dict[PurePosixPath, bytes], folder: PurePosixPath
) -> Callable[[str], bytes]:
    def read_file(name: str) -> bytes:
        wanted = folder / _beside(name, lambda one: folder / one in members)
        names = [one.name for one in members if one.parent == wanted]
        if name.endswith("/") and names:
            return "\n".join(names).encode()
        if wanted not in members:
            message = "not in the archive"
            raise ValueError(message)
        return members[wanted]

    return read_file
