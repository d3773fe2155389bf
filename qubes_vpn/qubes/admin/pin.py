"""Pinning: the firewall rules on a VPN qube, enforced by its net qube.

They allow the endpoints of the profile, by address, protocol and port, and
nothing else. The list comes from the VPN qube, which is not trusted: it is
accepted only as strictly formed lines, and shown before it widens anything.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from qubes_vpn.qubes.admin.plan import (
    AdminError,
    Command,
    Host,
    Plan,
    Qube,
    Step,
)

ENDPOINTS_MAX = 32
LIST_MAX_BYTES = 32 * 64
DROP = "action=drop"
ACCEPT = "action=accept"
DNS_OPEN_S = 300
ENDPOINTS_SERVICE = "qubesvpn.Endpoints"

_LINE = re.compile(r"([0-9a-f.:]{2,39}) (udp|tcp) ([1-9][0-9]{0,4})")
_QUBES_RANGES = tuple(
    map(ip_network, ("10.137.0.0/16", "10.138.0.0/15", "fd09:24ef:4179::/48"))
)


@dataclass(frozen=True, slots=True)
class Pinned:
    """One endpoint: a canonical address, udp or tcp, a port."""

    address: IPv4Address | IPv6Address
    proto: str
    port: int

    def __str__(self) -> str:
        """Format as the line it came from."""
        return f"{self.address} {self.proto} {self.port}"

    @property
    def rule(self) -> str:
        """The rule that allows it, in the firewall's own words."""
        target = f"dst{self.address.version}={self.address}"
        length = self.address.max_prefixlen
        ports = f"dstports={self.port}-{self.port}"
        return f"{ACCEPT} {target}/{length} proto={self.proto} {ports}"


def parse_endpoints(qube: str, untrusted: bytes) -> tuple[Pinned, ...]:
    """Take a VPN qube's list of its endpoints: `address proto port` lines.

    Raises AdminError for anything but at most ENDPOINTS_MAX such lines.
    """
    if len(untrusted) > LIST_MAX_BYTES:
        raise _refused(qube, "it is too long")
    try:
        lines = untrusted.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise _refused(qube, "it is not ASCII text") from None
    if len(lines) > ENDPOINTS_MAX:
        raise _refused(qube, f"it has more than {ENDPOINTS_MAX} lines")
    return tuple(dict.fromkeys(_endpoint(qube, line) for line in lines))


def _endpoint(qube: str, line: str) -> Pinned:
    match = _LINE.fullmatch(line)
    if match is None:
        raise _refused(qube, "a line is not `address proto port`")
    try:
        address = ip_address(match[1])
    except ValueError:
        raise _refused(qube, "a line has no address") from None
    port = int(match[3])
    if port > 0xFFFF:
        raise _refused(qube, "a port is out of range")
    if not _possible(address):
        raise _refused(qube, f"{address} cannot be a server's")
    return Pinned(address, match[2], port)


def _possible(address: IPv4Address | IPv6Address) -> bool:
    if address.is_multicast or address.is_loopback or address.is_unspecified:
        return False
    if address.version == 6 and address.ipv4_mapped:
        return False  # an IPv4 address in disguise
    return not any(
        address.version == net.version and address in net
        for net in _QUBES_RANGES
    )


def _refused(qube: str, why: str) -> AdminError:
    return AdminError(
        qube,
        f"its list of endpoints is refused: {why}",
        f"look at `qvm-run -p {qube} 'qubes-vpn status'`",
    )


def pinned_rules(endpoints: Sequence[Pinned]) -> tuple[str, ...]:
    """Return the whole list of rules for these endpoints."""
    return (*(endpoint.rule for endpoint in endpoints), DROP)


def dns_rule(now: float) -> str:
    """Return the rule that lets names be resolved for DNS_OPEN_S seconds."""
    return f"{ACCEPT} specialtarget=dns expire={int(now) + DNS_OPEN_S}"


def current_rules(qube: Qube) -> tuple[str, ...]:
    """Return the rules in force, as words in our order."""
    qube.firewall.load_rules()
    return tuple(_canonical(rule.rule) for rule in qube.firewall.rules)


def _canonical(rule: str) -> str:
    words, comment, text = rule.partition(" comment=")
    order = ("action", "dst4", "dst6", "dsthost", "proto", "dstports")
    parts = sorted(
        words.split(),
        key=lambda w: (
            order.index(k) if (k := w.partition("=")[0]) in order else 9,
            w,
        ),
    )
    return " ".join(parts) + comment + text


def pinned_now(rules: Sequence[str]) -> frozenset[str] | None:
    """Return the accept rules that precede a final drop; None: not pinned.

    A rule that accepts everything, or no drop at the end, is not pinned.
    """
    if not rules or rules[-1] != DROP or ACCEPT in rules:
        return None
    return frozenset(
        rule for rule in rules[:-1] if "specialtarget=dns" not in rule
    )


def set_rules(host: Host, name: str, rules: Sequence[str]) -> Plan:
    """Replace a qube's firewall rules, all at once."""
    fresh = name in host.made
    before = (ACCEPT,) if fresh else current_rules(host.qube(name))
    if tuple(rules) == before:
        return
    yield Step(
        _firewall_commands(name, before, rules),
        lambda: _save(host, name, rules),
        None if fresh else lambda: _save(host, name, before),
    )


def _save(host: Host, name: str, rules: Sequence[str]) -> None:
    from qubesadmin.firewall import Rule

    firewall = host.app.domains[name].firewall
    firewall.save_rules([Rule(rule) for rule in rules])
    firewall.load_rules()


def _firewall_commands(
    name: str, before: Sequence[str], rules: Sequence[str]
) -> tuple[Command, ...]:
    """Say the same with qvm-firewall, closed before anything is opened."""
    add = ("qvm-firewall", name, "add", "--before", "0")
    delete = ("qvm-firewall", name, "del", "--rule-no", str(len(rules)))
    return (
        *((*add, *rule.split()) for rule in reversed(rules)),
        *(delete for _ in before),
    )


def ask_endpoints(host: Host, name: str, *, refresh: bool) -> bytes:
    """Ask the VPN qube for its endpoints; with `refresh`, resolved anew."""
    import subprocess

    service = f"{ENDPOINTS_SERVICE}+{'refresh' if refresh else 'known'}"
    try:
        answer = host.qube(name).run_service_for_stdio(service)
    except subprocess.CalledProcessError as error:
        raise AdminError(
            name,
            f"{service} failed with status {error.returncode}",
            "import a profile first: `qvm-vpn import "
            f"{name} QUBE:FILE`, then `qvm-vpn pin {name}`",
        ) from error
    output: bytes = answer[0]
    return output


def _by_hand(name: str, *, refresh: bool) -> tuple[Command, ...]:
    """Say what to do when only the running qube knows its endpoints."""
    service = f"{ENDPOINTS_SERVICE}+{'refresh' if refresh else 'known'}"
    rule = ("dst4=ADDRESS", "proto=PROTO", "dstports=PORT")
    return (
        ("qvm-run", "--pass-io", "--service", name, service),
        ("qvm-firewall", name, "add", "--before", "0", DROP),
        ("qvm-firewall", name, "add", "--before", "0", ACCEPT, *rule),
        ("qvm-firewall", name, "del", "--rule-no", "2"),
    )


@dataclass(frozen=True, slots=True)
class Consent:
    """How a widening is agreed to.

    ask: shows the lines and returns the answer. auto: never ask.
    """

    ask: Callable[[Sequence[str]], bool]
    auto: bool = False


def pin_new_profile(host: Host, name: str, consent: Consent) -> Plan:
    """Pin to a profile that has just come; its names may need a look-up."""
    if host.dry_run:
        yield from pin(host, name, consent)
        return
    known = parse_endpoints(name, ask_endpoints(host, name, refresh=False))
    yield from pin(host, name, consent, refresh=not known)


def pin(
    host: Host, name: str, consent: Consent, *, refresh: bool = False
) -> Plan:
    """Pin a VPN qube to the endpoints that it names.

    refresh: let it look up its servers' names first, for which DNS is
    allowed for DNS_OPEN_S seconds at most.
    Raises AdminError when it names none, or when the user says no; what
    was in force stays then.
    """
    if host.dry_run and (name in host.made or not host.qube(name).is_running()):
        yield Step(_by_hand(name, refresh=refresh), lambda: None)
        return
    before = current_rules(host.qube(name))
    known = pinned_now(before)
    yield from host.start(name)
    if refresh and known is not None:
        names = (*sorted(known), dns_rule(time.time()), DROP)
        yield from set_rules(host, name, names)
    endpoints = parse_endpoints(
        name, ask_endpoints(host, name, refresh=refresh)
    )
    if not endpoints:
        raise AdminError(
            name,
            "it knows no endpoint yet",
            f"`qvm-vpn import {name} QUBE:FILE`; for names that do not "
            f"resolve any more, `qvm-vpn pin --refresh {name}`",
        )
    rules = pinned_rules(endpoints)
    _agree(name, known, rules[:-1], consent)
    yield from set_rules(host, name, rules)


def _agree(
    name: str,
    known: frozenset[str] | None,
    wanted: Sequence[str],
    consent: Consent,
) -> None:
    """Raise AdminError unless the change only narrows, or is agreed to."""
    if known is None or set(wanted) <= known or consent.auto:
        return
    lines = [f"+ {rule}" for rule in wanted if rule not in known]
    lines += [f"- {rule}" for rule in sorted(known - set(wanted))]
    if not consent.ask([f"{name} will be able to reach:", *lines]):
        raise AdminError(
            name,
            "not agreed: its rules stay as they were",
            f"`qvm-vpn pin {name}` asks again",
            1,
        )


def unpin(host: Host, name: str) -> Plan:
    """Let the VPN qube reach any address; its own lock stays."""
    yield from set_rules(host, name, (ACCEPT,))
