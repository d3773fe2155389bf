"""A stand-in for qubesadmin's public interface, where Qubes' own is absent.

Only what `qvm-vpn` uses. It speaks qubesd's wire protocol, so the tests go
through the same bytes with either.
"""

DEFAULT = object()

from qubesadmin import app, config, events, exc, firewall, utils, vm  # noqa: E402

Qubes = app.QubesLocal

__all__ = [
    "DEFAULT",
    "Qubes",
    "app",
    "config",
    "events",
    "exc",
    "firewall",
    "utils",
    "vm",
]
