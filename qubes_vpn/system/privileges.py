"""Giving up privileges, for good.

The kernel's own calls through ctypes: Python has no capset, and a child
process (setpriv) cannot change its parent.
Source: capabilities(7), linux/capability.h version 3.
"""

import contextlib
import ctypes
import os
import resource
from collections.abc import Collection
from typing import Final

from qubes_vpn.errors import OsRefusedError

CAP_NET_ADMIN: Final = 12
_CAP_LAST: Final = 63
_VERSION_3: Final = 0x20080522
_PR_SET_DUMPABLE: Final = 4
_PR_SET_KEEPCAPS: Final = 8
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
# everything, from now on too, as soon as it is used
_MCL_ALL: Final = 1 | 2 | 4
_UNLIMITED: Final = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def drop_privileges(
    uid: int | None, gid: int | None, keep: Collection[int] = ()
) -> None:
    """Become `uid` and `gid` (None: stay), with the capabilities `keep` only.

    No supplementary groups, no new privileges by exec, no core dump, no
    ptrace by others of the same user, and nothing in a swap area where that
    may be had. Raises OsRefusedError; then some of it may have been done, and
    the caller must end.
    """
    try:
        if os.geteuid() == 0:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        lock_memory()
        if os.geteuid() == 0:
            _shrink_bounding_set(keep)
        if gid is not None:
            _become_group(gid)
        _prctl(_PR_SET_KEEPCAPS, 1)
        if uid is not None and os.getresuid() != (uid, uid, uid):
            os.setresuid(uid, uid, uid)
        _set_capabilities(keep)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _prctl(_PR_SET_DUMPABLE, 0)
    except OSError as error:
        raise OsRefusedError(
            f"cannot give up privileges: {error.strerror}"
        ) from error


def lock_memory() -> None:
    """Keep keys out of swap, what is there and what comes, where it may be.

    Where root cannot raise the limit, or the unit has one, nothing is done:
    the process would end at the limit.
    """
    if os.geteuid() == 0:
        with contextlib.suppress(ValueError):  # root of a container
            resource.setrlimit(resource.RLIMIT_MEMLOCK, _UNLIMITED)
    if resource.getrlimit(resource.RLIMIT_MEMLOCK) == _UNLIMITED:
        _LIBC.mlockall(_MCL_ALL)


def capabilities() -> int:
    """Give this process's effective capabilities, as a bit mask."""
    sets = (_Sets * 2)()
    header = _Header(_VERSION_3, 0)
    if _LIBC.capget(ctypes.byref(header), sets):
        _raise()
    return int(sets[0].effective) | int(sets[1].effective) << 32


def _become_group(gid: int) -> None:
    if os.getgroups():
        os.setgroups([])
    if os.getresgid() != (gid, gid, gid):
        os.setresgid(gid, gid, gid)


def _shrink_bounding_set(keep: Collection[int]) -> None:
    for capability in range(_CAP_LAST + 1):
        if capability not in keep:
            # past the kernel's last, or without CAP_SETPCAP: the sets of
            # the process itself are what counts
            _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def _set_capabilities(keep: Collection[int]) -> None:
    mask = sum(1 << capability for capability in keep)
    sets = (_Sets * 2)()
    for index in (0, 1):
        part = mask >> (32 * index) & 0xFFFFFFFF
        sets[index] = _Sets(part, part, 0)
    header = _Header(_VERSION_3, 0)
    if _LIBC.capset(ctypes.byref(header), sets):
        _raise()


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0):
        _raise()


def _raise() -> None:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))
