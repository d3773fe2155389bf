"""Packages of a newer Debian, unpacked below build/ and not installed.

They come through an apt with a root, a source and a state of its own, from
the mirror that this machine's apt uses. Who needs the same thing at the same
time waits: one fetches, the others find it there.
"""

import fcntl
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.namespace import LabError

BUILD: Final = Path(__file__).parents[1] / "build"
SUITES: Final = ("trixie", "trixie-backports")
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_SECONDS: Final = 600


@dataclass(frozen=True, slots=True)
class Archive:
    """An apt that knows one mirror's suites and no installed package."""

    root: Path

    def update(self) -> None:
        """Fetch the lists of the packages. LabError."""
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        (self.root / "status").touch()
        mirror = _mirror()
        lines = (f"deb [signed-by={KEYRING}] {mirror} {s} main" for s in SUITES)
        (self.root / "sources.list").write_text("\n".join(lines) + "\n")
        self._apt("apt-get", "update")

    def names(self, prefix: str) -> list[str]:
        """Name the packages that begin so. LabError."""
        return self._apt("apt-cache", "pkgnames", prefix).split()

    def unpack(self, packages: Sequence[str], into: Path) -> None:
        """Fetch packages (NAME or NAME/SUITE) and unpack them. LabError."""
        debs = self.root / "debs"
        shutil.rmtree(debs, ignore_errors=True)
        debs.mkdir(parents=True)
        self._apt("apt-get", "download", *packages, directory=debs)
        for deb in sorted(debs.iterdir()):
            _run(["dpkg-deb", "-x", str(deb), str(into)])
        shutil.rmtree(debs)

    def _apt(
        self, program: str, *words: str, directory: Path | None = None
    ) -> str:
        options = {
            "Dir::State": f"{self.root}/state",
            "Dir::State::status": f"{self.root}/status",
            "Dir::Cache": f"{self.root}/cache",
            "Dir::Etc::SourceList": f"{self.root}/sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "APT::Sandbox::User": "root",
        }
        settings = [f"-o{name}={value}" for name, value in options.items()]
        return _run([program, "-q", *settings, *words], directory)


def once(name: str, make: Callable[[Path], None]) -> Path:
    """Give the folder build/NAME that `make` fills, the first time only."""
    folder = BUILD / name
    if folder.exists():  # whole: it got its name at the end
        return folder
    with _alone(folder):
        if not folder.exists():
            fresh = BUILD / f"{name}.new"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            make(fresh)
            fresh.rename(folder)
    return folder


def unpacked(name: str, packages: Sequence[str]) -> Path:
    """Give the folder build/NAME with these packages in it. LabError."""

    def make(folder: Path) -> None:
        with archive() as source:
            source.unpack(packages, folder)

    return once(name, make)


@contextmanager
def archive() -> Iterator[Archive]:
    """Give an archive, its lists fetched, to one process at a time."""
    root = BUILD / "apt"
    with _alone(root):
        source = Archive(root)
        source.update()
        yield source


def loaded(tree: Path, program: str) -> tuple[str, ...]:
    """Give the words that start a program with the tree's own libraries."""
    (libraries,) = tree.glob("usr/lib/*-linux-gnu")
    loader = next(libraries.glob("ld-linux*.so.*"), None)
    if loader is None:
        loader = next(tree.glob("usr/lib*/ld-linux*.so.*"))
    return (
        str(loader), "--library-path", str(libraries), str(tree / program),
    )  # fmt: skip


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _mirror() -> str:
    """Give the address of the mirror that Debian's packages come from."""
    # (.sources) also says which release: Debian's own, not its security fixes
    line = "$(SITE)|$(RELEASE)|$(COMPONENT)"
    for index in _run(["apt-get", "indextargets", "--format", line]).split():
        site, release, component = index.split("|")
        if component == "main" and not release.endswith("-security"):
            return site
    raise LabError("apt knows no mirror of Debian (is this Debian?)")


def _run(argv: Sequence[str], directory: Path | None = None) -> str:
    try:
        done = subprocess.run(
            argv,
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"{argv[0]}: {error}") from error
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-2000:]
        raise LabError(f"{argv[0]}: {said}")
    return done.stdout
