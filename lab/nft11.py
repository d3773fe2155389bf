"""The nftables of Debian 13, unpacked and not installed, and its Python.

For what nft 1.0 does not have: tables that their loader owns.
"""

import functools
from pathlib import Path

import pyroute2

from lab import backports

PACKAGES = (
    "libbsd0",
    "libc6",
    "libedit2",
    "libexpat1",
    "libffi8",
    "libgmp10",
    "libjansson4",
    "libmd0",
    "libmnl0",
    "libnftables1",
    "libnftnl11",
    "libpython3.13-minimal",
    "libpython3.13-stdlib",
    "libtinfo6",
    "libxtables12",
    "nftables",
    "python3-nftables",
    "python3.13-minimal",
    "zlib1g",
)


@functools.cache
def _tree() -> Path:
    return backports.unpacked("nft-1.1", PACKAGES)


def nft() -> tuple[str, ...]:
    """The words that start nft. Raises LabError where it cannot be had."""
    return backports.loaded(_tree(), "usr/sbin/nft")


def python() -> tuple[str, ...]:
    """The words that start a Python that has its libnftables. LabError.

    It finds the project's code in the working directory, and what the keeper
    imports of others where this Python has it.
    """
    bindings = _tree() / "usr/lib/python3/dist-packages"
    others = Path(pyroute2.__file__).parents[1]
    path = f"PYTHONPATH={bindings}:.:{others}"
    return ("env", path, *backports.loaded(_tree(), "usr/bin/python3.13"))
