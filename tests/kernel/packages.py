"""A Debian kernel with the `ovpn` driver, of the series that Qubes runs.

It comes from trixie's backports through an apt of its own below build/kernel,
and is only unpacked. What is there already is not fetched again.
"""

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "kernel"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SOURCE = "http://deb.debian.org/debian trixie-backports main"
KERNEL = r"linux-image-(6\.18\.(\d+)\+deb13-cloud-amd64)"
FETCH_SECONDS = 300


class NotFetchedError(Exception):
    """Something could not be had: the tests cannot run, and fail."""


def kernel() -> tuple[Path, str]:
    """Give a folder with lib/modules/VERSION, and VERSION.

    The kernel itself is lib/modules/VERSION/vmlinuz there.
    """
    folder = CACHE / "modules"
    if not folder.exists():
        fresh = CACHE / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        _fetch(fresh)
        fresh.rename(folder)
    return folder, next((folder / "lib/modules").iterdir()).name


def _fetch(into: Path) -> None:
    apt = _apt(CACHE / "apt")
    _run("apt-get", *apt, "-q", "update")
    names = _run("apt-cache", *apt, "pkgnames", "linux-image-6.18.").split()
    found = filter(None, (re.fullmatch(KERNEL, name) for name in names))
    best = max(found, key=lambda match: int(match[2]), default=None)
    if best is None:
        raise NotFetchedError(f"no kernel 6.18 in {SOURCE}")
    package, version = best[0], best[1]
    debs = into / "debs"
    debs.mkdir(parents=True)
    _run("apt-get", *apt, "-q", "download", package, directory=debs)
    for deb in debs.iterdir():
        _run("dpkg-deb", "-x", deb, into / "image")
    modules = into / "lib" / "modules"
    modules.mkdir(parents=True)
    (into / "image/usr/lib/modules" / version).rename(modules / version)
    image = into / f"image/boot/vmlinuz-{version}"
    image.rename(modules / version / "vmlinuz")
    _run("depmod", "-b", into, version)
    shutil.rmtree(into / "image")
    shutil.rmtree(debs)


def _apt(root: Path) -> list[str]:
    """Give the options of an apt that knows one source and no package."""
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    status, sources = root / "state/status", root / "sources.list"
    status.touch()
    sources.write_text(f"deb [signed-by={KEYRING}] {SOURCE}\n")
    settings = {
        "Dir::State": root / "state",
        "Dir::State::status": status,
        "Dir::Cache": root / "cache",
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "APT::Sandbox::User": "root",
    }
    return [f"-o{name}={value}" for name, value in settings.items()]


def _run(*words: str | Path, directory: Path | None = None) -> str:
    """Run a program to its end; NotFetchedError with what it said."""
    try:
        done = subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            timeout=FETCH_SECONDS,
            cwd=directory,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotFetchedError(f"{words[0]}: {error}") from error
    if done.returncode:
        said = (done.stdout + done.stderr)[-2000:]
        raise NotFetchedError(f"{words[0]}: {said}")
    return done.stdout
