"""Whether the lock is in force, from the kernel's own state.

Nothing that runs of ours is asked. What the tables have to be is found by
loading the shipped text in an empty network namespace beside.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from qubes_vpn.errors import OsRefusedError
from qubes_vpn.keeper.layers import FILTER, ROUTING, TABLES, UPLINK, Layers
from qubes_vpn.policy import firewall, routes, sysctls, uplink
from qubes_vpn.policy.phase import Blocked
from qubes_vpn.system import sysctl
from qubes_vpn.system.isolated import run_isolated
from qubes_vpn.system.nft import Json, Nft, canonical
from qubes_vpn.system.rtnl import RouteSeen, Rtnl

# A layer and what its table has; None: no table.
Tables: TypeAlias = dict[str, list[Json] | None]

SETTINGS: Final = "settings"
SETTINGS_SHOWN: Final = 3
# What a phase may change in a table without its being another table.
_PHASE_CHAINS: Final = frozenset({"phase", "resolvers", "closed", "neighbours"})
_OPENING: Final = frozenset({"accept", "jump", "goto", "return", "vmap"})
_CLOSED_GROUPS: Final = (1, 2)


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was looked at. detail: what is wrong, or how it is."""

    layer: str
    what: str
    ok: bool
    detail: str = ""


def audit(uplink_name: str, gid: int) -> list[Row]:
    """Look at every layer. OsRefusedError when the kernel cannot be asked."""
    layers = Layers(uplink_name, gid)
    tables = _tables(layers.nft)
    items = tables[FILTER] or []
    wanted = run_isolated(lambda: _reference(uplink_name, gid))
    return [
        *_table_rows(layers.nft, FILTER, tables, wanted),
        *_tunnel_rows(layers, items),
        *_rule_rows(layers),
        *_route_rows(layers, items),
        *_table_rows(layers.nft, UPLINK, tables, wanted),
        *_setting_rows(uplink_name, items),
    ]


def _tables(nft: Nft) -> Tables:
    return {layer: nft.list_table(name) for layer, name in TABLES.items()}


def _reference(uplink_name: str, gid: int) -> Tables:
    """Load both tables here and list them: run in a namespace of its own."""
    nft = Nft()
    defines = firewall.defines(uplink_name, gid)
    nft.load(defines + firewall.render(Blocked()))
    try:
        nft.load(defines + uplink.render(Blocked()))
    except OsRefusedError:
        # a kernel that wants the device first
        Rtnl().add_link(uplink_name, "veth")
        nft.load(defines + uplink.render(Blocked()))
    return _tables(nft)


def _static(items: list[Json]) -> list[Any]:
    """Give what no phase changes, for comparison."""
    found = []
    for item in canonical(items):
        kind, value = next(iter(item.items()))
        if kind == "rule" and value["chain"] in _PHASE_CHAINS:
            continue
        if kind == "table":
            continue  # its flags are looked at apart
        if kind == "set":
            value = {k: v for k, v in value.items() if k != "elem"}
        found.append((kind, value))
    # only the order of the rules in a chain says something
    return sorted(found, key=lambda pair: (pair[0], pair[1].get("chain", "")))


def _table_rows(
    nft: Nft, layer: str, tables: Tables, wanted: Tables
) -> Iterator[Row]:
    name, found = TABLES[layer], tables[layer]
    yield Row(layer, f"table {name} is loaded", ok=found is not None)
    if found is None:
        return
    differing = _difference(_static(found), _static(wanted[layer] or []))
    what = "chains, policies and rules are the shipped ones"
    yield Row(layer, what, not differing, differing)
    flags = nft.flags(name)
    yield Row(layer, "the table is not dormant", "dormant" not in flags, flags)
    yield from _phase_rows(layer, found)


def _phase_rows(layer: str, items: list[Json]) -> Iterator[Row]:
    """What a phase may do: refuse, clamp, redirect; and name endpoints."""
    bad = []
    for item in items:
        rule = item.get("rule", {})
        if rule.get("chain") in _PHASE_CHAINS - {"neighbours"}:
            verdicts = {key for each in rule["expr"] for key in each}
            if verdicts & _OPENING:
                bad.append(f"chain {rule['chain']}")
    what = "what changes with the phase opens nothing by itself"
    yield Row(layer, what, not bad, ", ".join(bad))
    ends = [
        " ".join(map(str, element["concat"]))
        for name in firewall.LINK_SETS
        for element in _elements(items, name)
    ]
    detail = ", ".join(ends) or "none"
    yield Row(layer, "our sockets reach these only", ok=True, detail=detail)


def _difference(found: list[Any], wanted: list[Any]) -> str:
    """Name the chains and sets that differ."""
    differing = [each for each in found if each not in wanted]
    differing += [each for each in wanted if each not in found]
    if not differing and len(found) != len(wanted):
        return "something is there twice"
    if not differing and found != wanted:
        return "the order of rules"
    names = {
        f"{'chain' if kind in ('rule', 'chain') else kind} "
        f"{value.get('chain') or value.get('name')}"
        for kind, value in differing
    }
    return ", ".join(sorted(names))


def _elements(items: list[Json], name: str) -> list[Any]:
    for item in items:
        if item.get("set", {}).get("name") == name:
            found: list[Any] = item["set"].get("elem", [])
            return found
    return []


def _devices(items: list[Json]) -> set[str]:
    """Give the devices that the filter lets packets of qubes into."""
    names = (*_elements(items, "tunnel4"), *_elements(items, "tunnel6"))
    return set(map(str, names))


def _tunnel_rows(layers: Layers, items: list[Json]) -> Iterator[Row]:
    what = "only a tunnel device is open"
    for name in sorted(_devices(items)):
        link = layers.rtnl.link(name)
        bad = name == layers.uplink_name or (
            link is not None and link.group in _CLOSED_GROUPS
        )
        yield Row(FILTER, what, not bad, f"{name} (connected)")
    if not _devices(items):
        yield Row(FILTER, what, ok=True, detail="none (not connected)")


def _rule_rows(layers: Layers) -> Iterator[Row]:
    missing = layers.missing_rules()
    for version in (4, 6) if sysctl.has_ipv6() else (4,):
        lost = [str(r.priority) for r in missing if r.version == version]
        what = f"IPv{version} rules 45 to 71 are there"
        detail = f"missing: {', '.join(lost)}" if lost else ""
        yield Row(ROUTING, what, not lost, detail)
    # a rule for a device of another name is ours too
    foreign = [
        f"{rule.priority} (IPv{rule.version})"
        for rule, _ in layers.foreign_rules()
        if rule.priority != routes.PRIORITY_RETURN or rule.suppress_group != 1
    ]
    what = "no rule of others comes before them"
    yield Row(ROUTING, what, not foreign, ", ".join(foreign))


def _route_rows(layers: Layers, items: list[Json]) -> Iterator[Row]:
    found = [route for route, _ in layers.rtnl.routes(routes.TABLE)]
    for net in routes.EVERYTHING:
        if net.version == 6 and not sysctl.has_ipv6():
            continue
        deny = RouteSeen(net, 0, routes.METRIC_DENY)
        what = f"table {routes.TABLE} ends IPv{net.version} in unreachable"
        yield Row(ROUTING, what, deny in found)
    indices = {0}
    for name in _devices(items):
        link = layers.rtnl.link(name)
        if link is not None:
            indices.add(link.index)
    astray = [r for r in found if r.index not in indices or r.other]
    detail = ", ".join(str(route.destination) for route in astray)
    what = f"table {routes.TABLE} leads into the tunnel only"
    yield Row(ROUTING, what, not astray, detail)


def _setting_rows(uplink_name: str, items: list[Json]) -> Iterator[Row]:
    wrong: list[str] = []
    for path, value in sysctls.SETTINGS:
        wrong += sysctl.wrong(path, value)
    what = "redirects, source routes and the like are off"
    shown = ", ".join(wrong[:SETTINGS_SHOWN])
    more = len(wrong) - SETTINGS_SHOWN
    detail = f"{shown}, and {more} more" if more > 0 else shown
    yield Row(SETTINGS, what, not wrong, detail)
    path = sysctls.disable_ipv6(uplink_name)
    with contextlib.suppress(OsRefusedError):
        on = bool(sysctl.wrong(path, 1))
        needed = bool(_elements(items, "neighbours"))
        what = "IPv6 is off on the uplink, or an endpoint needs it"
        yield Row(SETTINGS, what, needed or not on)
