"""The parts of pyroute2 that are used here, without the rest of it.

`import pyroute2` loads every protocol that it knows, with a database: for
the keeper twice the memory and twice the time of these parts. Its package is
therefore not run when they are loaded; who asks for all of it later gets it.
"""

import contextlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec, module_from_spec


@contextlib.contextmanager
def _parts_alone(package: str) -> Iterator[None]:
    spec = find_spec(package)
    if spec is None or package in sys.modules:
        yield
        return
    sys.modules[package] = module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[package]


with _parts_alone("pyroute2"):
    from pyroute2 import netlink
    from pyroute2.netlink import exceptions, nfnetlink, rtnl
    from pyroute2.netlink.nfnetlink import nfctsocket, nftsocket
    from pyroute2.netlink.nlsocket import NetlinkSocket
    from pyroute2.netlink.rtnl import fibmsg, ifaddrmsg, ifinfmsg, rtmsg

__all__ = [
    "NetlinkSocket",
    "exceptions",
    "fibmsg",
    "ifaddrmsg",
    "ifinfmsg",
    "netlink",
    "nfctsocket",
    "nfnetlink",
    "nftsocket",
    "rtmsg",
    "rtnl",
]
