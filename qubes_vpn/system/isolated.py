"""Running a function in a network namespace of its own, for a comparison.

What nftables makes of a text depends on its version and the kernel's: the
one way to know what a ruleset has to look like is to load it somewhere else.
"""

import ctypes
import json
import os
from collections.abc import Callable
from typing import Any, Final

from qubes_vpn.errors import OsRefusedError

_CLONE_NEWNET: Final = 0x40000000


def run_isolated(function: Callable[[], Any]) -> Any:  # noqa: ANN401 what JSON can hold
    """Give what `function` returns, as JSON holds it, from an empty network.

    It runs in a child process. Needs root. Raises OsRefusedError.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _in_child(function, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    if not answer:
        raise OsRefusedError("no network namespace for the comparison")
    return json.loads(answer)


def _in_child(function: Callable[[], Any], writer: int) -> None:
    """Never return: nothing of the parent may run twice."""
    status = 1
    try:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) == 0:
            answer = json.dumps(function()).encode()
            with os.fdopen(writer, "wb") as stream:
                stream.write(answer)
            status = 0
    finally:
        os._exit(status)
