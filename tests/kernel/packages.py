"""Debian packages that the machine needs and this system must not have.

They come from trixie and its backports through an apt of its own, below
build/kernel, and are only unpacked: a kernel with the `ovpn` driver, of the
series that Qubes' virtual machines run; OpenVPN 2.7, which speaks to that
driver; a newer nft. What is there already is not fetched again.
"""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "kernel"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR = "http://deb.debian.org/debian"
KERNEL = r"linux-image-6\.18\.(\d+)\+deb13-cloud-amd64"
FETCH_SECONDS = 300


class NotFetchedError(Exception):
    """A package could not be had: the tests cannot run, and fail."""


def _run(*words: str | Path) -> str:
    """Run a program to its end; NotFetchedError with what it said."""
    try:
        done = subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            timeout=FETCH_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotFetchedError(f"{words[0]}: {error}") from error
    if done.returncode:
        raise NotFetchedError(
            f"{words[0]}: {(done.stdout + done.stderr)[-2000:]}"
        )
    return done.stdout


class Apt:
    """An apt that knows trixie alone, and no installed package."""

    def __init__(self, root: Path) -> None:
        self._debs = root / "cache" / "archives"
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        status, sources = root / "state/status", root / "sources.list"
        status.touch()
        sources.write_text(
            "".join(
                f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n"
                for suite in ("trixie", "trixie-backports")
            )
        )
        settings = {
            "Dir::State": root / "state",
            "Dir::State::status": status,
            "Dir::Cache": root / "cache",
            "Dir::Etc::SourceList": sources,
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
        }
        self._options = [
            f"-o{name}={value}" for name, value in settings.items()
        ]
        _run("apt-get", *self._options, "-q", "update")

    def names(self, prefix: str) -> list[str]:
        """Give the packages whose names begin so."""
        return _run("apt-cache", *self._options, "pkgnames", prefix).split()

    def unpack(self, into: Path, *packages: str, alone: bool = False) -> None:
        """Unpack packages, and what they need unless `alone`."""
        for deb in self._debs.glob("*.deb"):
            deb.unlink()
        if alone:
            for package in packages:
                self._download(package)
        else:
            _run("apt-get", *self._options, "-qyd", "install", *packages)
        into.mkdir(parents=True)
        for deb in self._debs.glob("*.deb"):
            _run("dpkg-deb", "-x", deb, into)
            deb.unlink()

    def _download(self, package: str) -> None:
        options = [*self._options, "-q", "--print-uris"]
        found = _run("apt-get", *options, "download", package)
        words = found.split()
        if not words:
            raise NotFetchedError(f"no {package} at {MIRROR}")
        script = 'cd "$1" && shift && exec apt-get "$@"'
        _run(
            "sh",
            "-c",
            script,
            "sh",
            self._debs,
            *self._options,
            "download",
            package,
        )


@cache
def _apt() -> Apt:
    return Apt(CACHE / "apt")


def _unpacked(name: str, *packages: str) -> Path:
    """Give the folder with these packages unpacked, made once."""
    folder = CACHE / name
    if not folder.exists():
        fresh = CACHE / f"{name}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        _apt().unpack(fresh, *packages)
        fresh.rename(folder)
    return folder


def kernel() -> tuple[Path, str]:
    """Give a folder with lib/modules/VERSION, and VERSION.

    The kernel itself is lib/modules/VERSION/vmlinuz there.
    """
    folder = CACHE / "modules"
    if not folder.exists():
        found = [
            re.fullmatch(KERNEL, name)
            for name in _apt().names("linux-image-6.18.")
        ]
        best = max(
            (match for match in found if match),
            key=lambda m: int(m[1]),
            default=None,
        )
        if best is None:
            raise NotFetchedError(f"no kernel 6.18 at {MIRROR}")
        fresh = CACHE / "modules.new"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(CACHE / "image", ignore_errors=True)
        _apt().unpack(CACHE / "image", best[0], alone=True)
        version = best[0].removeprefix("linux-image-")
        image = CACHE / "image"
        modules = fresh / "lib" / "modules"
        modules.mkdir(parents=True)
        (image / "usr/lib/modules" / version).rename(modules / version)
        (image / f"boot/vmlinuz-{version}").rename(
            modules / version / "vmlinuz"
        )
        _run("depmod", "-b", fresh, version)
        shutil.rmtree(image)
        fresh.rename(folder)
    return folder, next((folder / "lib/modules").iterdir()).name


def openvpn27() -> list[str]:
    """Give the command of OpenVPN 2.7, with the libraries it wants."""
    root = _unpacked("openvpn", "openvpn/trixie-backports")
    return [*loader(root), str(root / "usr/sbin/openvpn")]


def nft_new() -> list[str]:
    """Give the command of nft 1.1, with the libraries it wants."""
    root = _unpacked("nft", "nftables")
    return [*loader(root), str(root / "usr/sbin/nft")]


def loader(root: Path) -> list[str]:
    """Give the words that start a program with the libraries in `root`."""
    return [
        str(root / "usr/lib64/ld-linux-x86-64.so.2"),
        "--library-path",
        str(root / "usr/lib/x86_64-linux-gnu"),
    ]
