"""Layer 1: the filter, as one nft transaction per phase.

The table is static: its chains end in explicit drops, and a phase only
changes elements of sets and the rules of the chains `phase` and `resolvers`,
so that counters survive and the closed table needs no process of ours. The
static text is also the file lockdown/inet.nft, which nft loads at boot.

Two variables are left to the one who loads it (`nft -D`, or `defines`):
$uplink, the device towards the net qube, and $gid, the keeper's group.
Source: facts measured in docs/security.md; priorities from Qubes' own
tables, which these stand before (and, for the last check, after).
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final, assert_never

from qubes_vpn.errors import LocalStateError
from qubes_vpn.policy import dns
from qubes_vpn.policy.phase import (
    Address,
    Blocked,
    Connected,
    Connecting,
    Endpoint,
    Phase,
    Plane,
    Transport,
)

TABLE: Final = "inet qubes_vpn"
MARK: Final = 0x71767000
USER: Final = "qubes-vpn-keeper"
GROUP: Final = "qubes-vpn"
# Where those names are missing.
KEEPER_GID: Final = 7078
ENGINE_UID: Final = 7079
UPLINK: Final = "eth0"
# The comment of the rules that we keep in the agent's custom-input.
COMMENT: Final = "qubes_vpn"

LINK_SETS: Final = ("link4", "link6", "offload4", "offload6")
OWN_SETS: Final = ("address4", "address6")
_SETS: Final = (*LINK_SETS, *OWN_SETS, "tunnel4", "tunnel6", "neighbours")
_PHASE_CHAINS: Final = ("phase", "resolvers", "closed")
DEVICE: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")

LINK_SET_TEXT: Final = """\
	# our sockets reach only these: by mark and group (userspace plane)
	set link4 { type ipv4_addr . inet_proto . inet_service; }
	set link6 { type ipv6_addr . inet_proto . inet_service; }
	# by mark alone: the ovpn driver's packets have the inner socket's group
	set offload4 { type ipv4_addr . inet_proto . inet_service; }
	set offload6 { type ipv6_addr . inet_proto . inet_service; }
	# the uplink's own addresses, while there is an endpoint; not by `fib`,
	# since every vif has the same address too
	set address4 { type ipv4_addr; }
	set address6 { type ipv6_addr; }
"""
LINK_OUT_TEXT: Final = f"""\
		meta mark {MARK:#x} meta skgid $gid ip daddr . meta l4proto . th dport @link4 counter accept
		meta mark {MARK:#x} meta skgid $gid ip6 daddr . meta l4proto . th dport @link6 counter accept
		meta mark {MARK:#x} ip daddr . meta l4proto . th dport @offload4 counter accept
		meta mark {MARK:#x} ip6 daddr . meta l4proto . th dport @offload6 counter accept
"""  # noqa: E501 a rule is a line


def link_in_text(verdict: str) -> str:
    """Give the rules for what our sockets' endpoints send to the uplink."""
    return "".join(
        f"\t\t{ip} daddr @address{number} {ip} saddr . meta l4proto . th sport"
        f" @{name}{number} {verdict}\n"
        for name in ("link", "offload")
        for ip, number in (("ip", 4), ("ip6", 6))
    )


REVERSE_TEXT: Final = "".join(
    f"\t\t{rule}ct zone set {dns.REVERSE_ZONE} counter accept\n"
    for rule in dns.reverse_rules()
)
ND_TEXT: Final = (
    "ip6 hoplimit 255 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }"
)

STATIC: Final = f"""\
# Layer 1 of the lock: nothing leaves, nothing is forwarded.
# Made from qubes_vpn/policy/firewall.py, and equal to it by a test.
# Load: nft -D uplink=eth0 -D gid={KEEPER_GID} -f inet.nft
add table {TABLE}
delete table {TABLE}
table {TABLE} {{
{LINK_SET_TEXT}\
	# the tunnel device, while packets of qubes may flow
	set tunnel4 {{ type ifname; }}
	set tunnel6 {{ type ifname; }}
	# the uplink, while an endpoint has an IPv6 address
	set neighbours {{ type ifname; }}

	chain raw_in {{
		type filter hook prerouting priority raw - 20; policy accept;
		iifname "lo" accept
		meta mark set 0
		iifname $uplink goto uplink_in
		iifgroup 1 counter drop
	}}
	# before routing could answer: silence while it may pass, or a no
	chain early {{
		type filter hook prerouting priority raw + 10; policy accept;
		iifgroup 2 udp dport 53 jump reverse
		iifgroup 2 fib daddr type != local jump closed
	}}
	# reverse lookups of private addresses: in a zone of their own, each packet
	chain reverse {{
{REVERSE_TEXT}\
	}}
	# transport is not tracked: no NAT touches it, no full table stops it
	chain uplink_in {{
		iifname @neighbours {ND_TEXT} accept
{link_in_text("notrack accept")}\
		counter drop
	}}
	chain raw_out {{
		type filter hook output priority raw - 20; policy accept;
		oifname $uplink meta mark {MARK:#x} notrack
		oifgroup 2 udp sport {dns.REVERSE_PORT} ct zone set {dns.REVERSE_ZONE}
		# nobody there: the kernel's answer quotes the question's port
		oifgroup 2 icmp type destination-unreachable @th,240,16 {dns.REVERSE_PORT} ct zone set {dns.REVERSE_ZONE}
	}}
	chain input {{
		type filter hook input priority filter - 10; policy drop;
		iifname "lo" accept
		iifname $uplink jump link_in
		iifname $uplink counter drop
		iifgroup 1 counter drop
		iifgroup 2 icmpv6 type {{ nd-router-advert, nd-redirect }} counter drop
		iifgroup 2 meta l4proto {{ icmp, ipv6-icmp }} counter accept
		iifgroup 2 ct zone {dns.REVERSE_ZONE} udp dport {dns.REVERSE_PORT} counter accept
		meta nfproto ipv4 iifname @tunnel4 ct state established,related counter accept
		meta nfproto ipv6 iifname @tunnel6 ct state established,related counter accept
		counter drop
	}}
	chain link_in {{
		iifname @neighbours {ND_TEXT} accept
{link_in_text("counter accept")}\
	}}
	chain forward {{
		type filter hook forward priority filter - 10; policy drop;
		iifname $uplink counter drop
		oifname $uplink counter drop
		iifgroup 1 counter drop
		oifgroup 1 counter drop
		jump phase
		meta nfproto ipv4 iifgroup 2 oifname @tunnel4 ct state new,established,related counter accept
		meta nfproto ipv6 iifgroup 2 oifname @tunnel6 ct state new,established,related counter accept
		meta nfproto ipv4 iifname @tunnel4 oifgroup 2 ct state established,related counter accept
		meta nfproto ipv6 iifname @tunnel6 oifgroup 2 ct state established,related counter accept
		counter drop
	}}
	chain output {{
		type filter hook output priority filter - 10; policy drop;
		oifname "lo" accept
		oifname $uplink jump link_out
		oifname $uplink counter drop
		# without a route to the uplink it would go round in the tunnel
		meta mark {MARK:#x} counter drop
		oifgroup 1 counter drop
		oifgroup 2 counter accept
		meta nfproto ipv4 oifname @tunnel4 counter accept
		meta nfproto ipv6 oifname @tunnel6 counter accept
		counter drop
	}}
	chain link_out {{
{LINK_OUT_TEXT}\
		oifname @neighbours {ND_TEXT} accept
	}}
	# after every NAT: what is about to leave is still ours
	chain last {{
		type filter hook postrouting priority srcnat + 50; policy accept;
		oifname $uplink jump link_out
		oifname $uplink counter drop
		oifgroup 1 counter drop
	}}
	chain dns {{
		type nat hook prerouting priority dstnat - 10; policy accept;
		iifgroup 2 ct zone {dns.REVERSE_ZONE} meta l4proto udp redirect to :{dns.REVERSE_PORT}
		iifgroup 2 meta l4proto {{ tcp, udp }} th dport 53 jump resolvers
	}}
	chain tunnel_nat {{
		type nat hook postrouting priority srcnat - 5; policy accept;
		meta nfproto ipv4 oifname @tunnel4 masquerade
		meta nfproto ipv6 oifname @tunnel6 masquerade
	}}
	# what a phase changes, besides the sets
	chain phase {{
	}}
	chain resolvers {{
	}}
	chain closed {{
		counter drop
	}}
}}
"""  # noqa: E501 a rule is a line


def defines(uplink: str, gid: int) -> str:
    """Give the two variables, to stand before any text of this module.

    Raises LocalStateError for a device name that nft could read as more.
    """
    # redefine: a context of libnftables remembers what was defined
    name = device_name(uplink)
    return f'redefine uplink = "{name}"\nredefine gid = {gid:d}\n'


def device_name(name: str) -> str:
    """Give `name` back. LocalStateError unless it is a plain device name."""
    if not DEVICE.fullmatch(name) or name in {".", ".."}:
        raise LocalStateError("not the name of a network device")
    return name


def render(
    phase: Phase,
    addresses: Iterable[Address] = (),
    resolver: Endpoint | None = None,
) -> str:
    """Give the transaction that makes the whole table anew, in `phase`.

    add, delete and table in one transaction: no packet sees it missing.
    addresses: the uplink's own, as they are now. resolver: one more address
    that our sockets may reach, for the lookup of a server's name.
    """
    if phase == Blocked() and resolver is None:
        return STATIC
    return STATIC + change(phase, addresses, resolver)


# Refused by an nft or a kernel that has not what `owned` asks for.
OWNER_PROBE: Final = """\
table inet qubes_vpn_probe { flags owner,persist; }
destroy table inet qubes_vpn_probe
"""


def owned(text: str) -> str:
    """Give what `render` gave for a table that nobody else may change.

    It is its loader's as long as that lives, and stays when it ends, for the
    next one to destroy and own (nft 1.1, Linux 6.9).
    """
    begin = f"add table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n"
    return text.replace(
        begin,
        f"destroy table {TABLE}\ntable {TABLE} {{\n\tflags owner,persist;\n",
    )


def change(
    phase: Phase,
    addresses: Iterable[Address] = (),
    resolver: Endpoint | None = None,
) -> str:
    """Give the transaction that brings a loaded table to `phase`."""
    flush = (
        *(f"flush set {TABLE} {name}" for name in _SETS),
        *(f"flush chain {TABLE} {name}" for name in _PHASE_CHAINS),
    )
    elements = link_elements(TABLE, phase, addresses, resolver)
    return _lines((*flush, *elements, *_additions(phase, resolver)))


def links(
    phase: Phase, resolver: Endpoint | None = None
) -> Iterator[tuple[str, Endpoint]]:
    """Give each endpoint our sockets may reach, with the set it is in."""
    if not isinstance(phase, Blocked):
        kind = "offload" if phase.plane is Plane.KERNEL else "link"
        address = phase.endpoint.address
        yield f"{kind}{address.version}", phase.endpoint
        if phase.relay:
            relay = Endpoint(address, Transport.UDP, phase.relay)
            yield f"{kind}{address.version}", relay
    if resolver is not None:
        yield f"link{resolver.address.version}", resolver


def link_elements(
    table: str,
    phase: Phase,
    addresses: Iterable[Address],
    resolver: Endpoint | None,
) -> Iterator[str]:
    """Give the commands that fill the sets of LINK_SET_TEXT in `table`."""
    versions = set()
    for name, end in links(phase, resolver):
        versions.add(end.address.version)
        where = f"{end.address} . {end.transport} . {end.port:d}"
        yield f"add element {table} {name} {{ {where} }}"
    for address in addresses:
        if address.version in versions:
            name = f"address{address.version}"
            yield f"add element {table} {name} {{ {address} }}"


def agent_accepts(
    phase: Phase, resolver: Endpoint | None = None
) -> Iterator[tuple[str, str]]:
    """Give (table, command) for each accept in the agent's custom-input.

    For what the qube answers itself, always; for our links, while they are.
    The agent's input chain drops what is not tracked, and an accept of ours
    cannot overrule its drop. One command is one transaction: its tables for
    IPv4 and IPv6 come and go apart.
    """
    for ip in ("ip", "ip6"):
        yield (
            f"{ip} qubes",
            f"insert rule {ip} qubes custom-input iifgroup 2 ct zone"
            f" {dns.REVERSE_ZONE} udp dport {dns.REVERSE_PORT} counter"
            f' accept comment "{COMMENT}"\n',
        )
    for _, end in links(phase, resolver):
        ip = "ip" if end.address.version == 4 else "ip6"
        yield (
            f"{ip} qubes",
            f"insert rule {ip} qubes custom-input iifname $uplink {ip} saddr"
            f" {end.address} {end.transport} sport {end.port:d} counter"
            f' accept comment "{COMMENT}"\n',
        )


def _lines(commands: Iterable[str]) -> str:
    return "".join(f"{command}\n" for command in commands)


def _additions(phase: Phase, resolver: Endpoint | None) -> Iterator[str]:
    if any(end.address.version == 6 for _, end in links(phase, resolver)):
        yield f"add element {TABLE} neighbours {{ $uplink }}"
    match phase:
        case Blocked(final=True):
            yield _rule("closed", _REJECT)
        case Blocked() | Connecting():
            # established connections survive a pause, not a refusal
            yield _rule("closed", "counter drop")
        case Connected():
            yield from _tunnel(phase)
        case _:
            assert_never(phase)


# To vifs only: these rules are for what came from one.
_REJECT: Final = "counter reject with icmpx admin-prohibited"


def _rule(chain: str, *parts: str) -> str:
    return " ".join(("add rule", TABLE, chain, *parts))


def _tunnel(phase: Connected) -> Iterator[str]:
    device = device_name(phase.device)
    families = (
        ("4", "ipv4", phase.ipv4, phase.mss4),
        ("6", "ipv6", phase.ipv6, phase.mss6),
    )
    for digit, family, carried, mss in families:
        match_family = f"meta nfproto {family}"
        if not carried:
            # at once, so that programs try the other family
            yield _rule("phase", "iifgroup 2", match_family, _REJECT)
            continue
        yield f'add element {TABLE} tunnel{digit} {{ "{device}" }}'
        for way in (f'oifname "{device}"', f'iifname "{device}"'):
            yield _rule(
                "phase",
                f"{match_family} {way} tcp flags & (syn | rst) == syn",
                f"tcp option maxseg size > {mss:d}",
                f"tcp option maxseg size set {mss:d}",
            )
    for rule in dns.filter_rules(phase):
        yield _rule("phase", rule)
    for rule in dns.redirect_rules(phase):
        yield _rule("resolvers", rule)
