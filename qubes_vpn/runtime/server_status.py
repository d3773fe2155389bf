"""What a server tells of its clients: JSON, OpenVPN's status file, metrics."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

# Clients in one answer of the control socket, whose lines have 64 KiB.
PAGE: Final = 64
TITLE: Final = "OpenVPN 2.6 compatible, qubes-vpn"
_CLIENT_COLUMNS: Final = (
    "Common Name",
    "Real Address",
    "Virtual Address",
    "Virtual IPv6 Address",
    "Bytes Received",
    "Bytes Sent",
    "Connected Since",
    "Connected Since (time_t)",
    "Username",
    "Client ID",
    "Peer ID",
    "Data Channel Cipher",
)
_ROUTE_COLUMNS: Final = (
    "Virtual Address",
    "Common Name",
    "Real Address",
    "Last Ref",
    "Last Ref (time_t)",
)


@dataclass(frozen=True, slots=True)
class ClientStatus:
    """One client, as of now. since, last: unix seconds. Bytes are inner."""

    number: int
    name: str
    username: str
    remote: str
    transport: str
    address4: str
    address6: str
    networks: tuple[str, ...]
    rx_bytes: int
    tx_bytes: int
    since: int
    last: int
    cipher: str
    tls: str
    version: str
    floated: int


def describe(
    clients: Iterable[ClientStatus],
    half_open: int,
    drops: Mapping[str, int],
    device: str,
    after: int = -1,
) -> dict[str, Any]:
    """Give the status as the control socket tells it.

    At most PAGE clients, those with numbers above `after`; "more" says that
    there are others.
    """
    rows = sorted(
        (client for client in clients if client.number > after),
        key=lambda client: client.number,
    )
    return {
        "ok": True,
        "role": "server",
        "device": device,
        "clients": [asdict(client) for client in rows[:PAGE]],
        "more": len(rows) > PAGE,
        "half_open": half_open,
        "drops": dict(drops),
    }


def status_file(
    version: int, clients: Iterable[ClientStatus], now: float
) -> str:
    """Give OpenVPN's status file: version 1, 2 (commas) or 3 (tabs)."""
    rows = list(clients)
    if version == 1:
        return _version1(rows, now)
    return _table(rows, now, "\t" if version == 3 else ",")


def _version1(clients: list[ClientStatus], now: float) -> str:
    lines = [
        "OpenVPN CLIENT LIST",
        f"Updated,{_when(now)}",
        "Common Name,Real Address,Bytes Received,Bytes Sent,Connected Since",
    ]
    lines += [
        f"{_name(c)},{c.remote},{c.rx_bytes},{c.tx_bytes},{_when(c.since)}"
        for c in clients
    ]
    lines += [
        "ROUTING TABLE",
        "Virtual Address,Common Name,Real Address,Last Ref",
    ]
    lines += [
        f"{address},{_name(c)},{c.remote},{_when(c.last)}"
        for c in clients
        for address in _addresses(c)
    ]
    lines += ["GLOBAL STATS", "Max bcast/mcast queue length,0", "END", ""]
    return "\n".join(lines)


def _table(clients: list[ClientStatus], now: float, comma: str) -> str:
    rows: list[tuple[object, ...]] = [
        ("TITLE", TITLE),
        ("TIME", _when(now), int(now)),
        ("HEADER", "CLIENT_LIST", *_CLIENT_COLUMNS),
    ]
    rows += [
        (
            "CLIENT_LIST",
            _name(c),
            c.remote,
            c.address4,
            c.address6,
            c.rx_bytes,
            c.tx_bytes,
            _when(c.since),
            c.since,
            c.username or "UNDEF",
            c.number,
            c.number,
            c.cipher,
        )
        for c in clients
    ]
    rows.append(("HEADER", "ROUTING_TABLE", *_ROUTE_COLUMNS))
    rows += [
        ("ROUTING_TABLE", address, _name(c), c.remote, _when(c.last), c.last)
        for c in clients
        for address in _addresses(c)
    ]
    rows += [("GLOBAL_STATS", "Max bcast/mcast queue length", 0), ("END",)]
    return "".join(comma.join(map(str, row)) + "\n" for row in rows)


def metrics(
    clients: Iterable[ClientStatus], half_open: int, drops: Mapping[str, int]
) -> str:
    """Give metrics in Prometheus' text format."""
    rows = list(clients)
    lines = [
        "# TYPE qubes_vpn_clients gauge",
        f"qubes_vpn_clients {len(rows)}",
        "# TYPE qubes_vpn_half_open gauge",
        f"qubes_vpn_half_open {half_open}",
        "# TYPE qubes_vpn_client_bytes_total counter",
    ]
    for client in rows:
        label = f'client="{_escape(client.name)}",peer_id="{client.number}"'
        for way, count in (("rx", client.rx_bytes), ("tx", client.tx_bytes)):
            lines.append(
                f'qubes_vpn_client_bytes_total{{{label},way="{way}"}} {count}'
            )
    lines.append("# TYPE qubes_vpn_drops_total counter")
    lines += [
        f'qubes_vpn_drops_total{{reason="{_escape(reason)}"}} {count}'
        for reason, count in sorted(drops.items())
    ]
    return "\n".join(lines) + "\n"


def _addresses(client: ClientStatus) -> tuple[str, ...]:
    own = (client.address4, client.address6)
    return (*filter(None, own), *client.networks)


def _name(client: ClientStatus) -> str:
    # a comma or a line end would make two fields or two clients
    printable = "".join(c if c.isprintable() else "_" for c in client.name)
    return printable.replace(",", "_").replace("\t", "_") or "UNDEF"


def _when(unix: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix))


def _escape(text: str) -> str:
    for mark, replacement in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        text = text.replace(mark, replacement)
    return text
