"""How `qubes-vpn status` shows a server: its clients, one a line."""

import time
from collections.abc import Iterator
from typing import Any

from qubes_vpn.runtime.control import ControlClient

_UNITS = ("B", "kB", "MB", "GB", "TB")


def whole(path: str, status: dict[str, Any]) -> dict[str, Any]:
    """Ask for the pages of clients that did not fit into one answer."""
    clients = list(status["clients"])
    more = status["more"]
    while more:
        client = ControlClient(path)
        try:
            page = client.ask("status", after=clients[-1]["number"])
        finally:
            client.close()
        clients += page["clients"]
        more = page["more"] and page["clients"]
    return {**status, "clients": clients, "more": False}


def describe(status: dict[str, Any]) -> Iterator[str]:
    """Give the lines of a server's status, for a person."""
    clients = status["clients"]
    yield (
        f"server     device {status['device']}, {len(clients)} clients,"
        f" {status['half_open']} on the way in"
    )
    for one in clients:
        since = time.strftime("%m-%d %H:%M", time.localtime(one["since"]))
        inside = " ".join(filter(None, (one["address4"], one["address6"])))
        moved = f", moved {one['floated']} times" if one["floated"] else ""
        yield f"{_plain(one['name'])}  {inside}  from {one['remote']}"
        yield (
            f"  since {since}, in {_size(one['rx_bytes'])},"
            f" out {_size(one['tx_bytes'])}, {one['transport']},"
            f" {one['cipher']}{moved}"
        )
    drops = sorted(status["drops"].items(), key=lambda drop: -drop[1])
    for reason, count in drops[:8]:
        yield f"dropped    {count} {reason}"


def _plain(untrusted: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in untrusted)


def _size(count: int) -> str:
    value = float(count)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            break
        value /= 1000
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
