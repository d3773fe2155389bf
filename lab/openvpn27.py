"""OpenVPN 2.7 of Debian's backports, unpacked and not installed.

Its packages come through apt with a root of its own below build/, once; the
libraries of the next Debian release are used by it alone.
"""

import functools
import subprocess
from pathlib import Path

from lab.namespace import LabError

ROOT = Path("build/openvpn-2.7")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR = "http://deb.debian.org/debian"
SUITES = ("trixie", "trixie-backports")
PACKAGES = (
    "openvpn/trixie-backports",
    "libaudit1",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libgcc-s1",
    "liblz4-1",
    "liblzma5",
    "liblzo2-2",
    "libnl-3-200",
    "libnl-genl-3-200",
    "libp11-kit0",
    "libffi8",
    "libpam0g",
    "libpkcs11-helper1t64",
    "libssl3t64",
    "libsystemd0",
    "libzstd1",
    "zlib1g",
)


@functools.cache
def command() -> tuple[str, ...]:
    """The words that start it. Raises LabError where it cannot be had."""
    tree = ROOT.resolve() / "tree"
    if not (tree / "usr/sbin/openvpn").exists():
        _fetch(tree)
    (libraries,) = tree.glob("usr/lib/*-linux-gnu")
    loader = next(libraries.glob("ld-linux*.so.*"), None)
    if loader is None:
        loader = next(tree.glob("usr/lib*/ld-linux*.so.*"))
    return (
        str(loader),
        "--library-path",
        str(libraries),
        str(tree / "usr/sbin/openvpn"),
    )


def _fetch(tree: Path) -> None:
    root = ROOT.resolve()
    for name in ("state/lists/partial", "cache/archives/partial", "packages"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "status").touch()
    lines = [f"deb [signed-by={KEYRING}] {MIRROR} {s} main\n" for s in SUITES]
    (root / "sources.list").write_text("".join(lines))
    options = [
        f"Dir::State={root}/state",
        f"Dir::State::status={root}/status",
        f"Dir::Cache={root}/cache",
        f"Dir::Etc::SourceList={root}/sources.list",
        f"Dir::Etc::SourceParts={root}/none",
        "APT::Sandbox::User=root",
    ]
    apt = ["apt-get", "-q", *(f"-o{option}" for option in options)]
    _run([*apt, "update"], root)
    _run([*apt, "download", *PACKAGES], root / "packages")
    for package in sorted((root / "packages").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), f"{tree}.new"], root)
    Path(f"{tree}.new").rename(tree)


def _run(argv: list[str], directory: Path) -> None:
    done = subprocess.run(
        argv, cwd=directory, capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip()[-2000:]}")
