"""OpenVPN 2.7 of Debian's backports, unpacked and not installed.

The libraries of the next Debian release are used by it alone.
"""

import functools

from lab import backports

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
    tree = backports.unpacked("openvpn-2.7", PACKAGES)
    return backports.loaded(tree, "usr/sbin/openvpn")
