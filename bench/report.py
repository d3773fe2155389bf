"""Medians, ratios round by round, and what was asked for beside them."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.flood import OTHER_WRAPS
from bench.guardian import CHANGES

OURS, THEIRS = "qubes-vpn", "openvpn"
Figures = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Target:
    """What a figure of a section shall be.

    metric, variant: whose. base: the value is the ratio to this variant's of
    the same round; empty: the value itself. limit: the most, or with `least`
    the least. says: in a reader's words. brief: a row of README.md.
    goal: was asked for; else it is a comparison.
    """

    section: str
    metric: str
    limit: float
    says: str
    base: str = THEIRS
    variant: str = OURS
    least: bool = False
    brief: bool = True
    goal: bool = True

    def values(self, figures: Figures) -> list[float]:
        """One a round; empty when it was not measured."""
        of_metric = figures.get(self.metric, {})
        own = of_metric.get(self.variant, [])
        if not self.base:
            return own
        pairs = zip(own, of_metric.get(self.base, []), strict=False)
        return [one / other for one, other in pairs if other]

    def verdict(self, value: float) -> str:
        """In a word; a good one is in small letters."""
        if self.goal:
            return "held" if self.held(value) else "MISSED"
        return "ahead" if self.held(value) else "BEHIND"

    def held(self, value: float) -> bool:
        """Whether a median is what was asked for."""
        return value >= self.limit if self.least else value <= self.limit


def _bulk(section: str, what: str, up: float, down: float) -> list[Target]:
    """Cost and throughput, both ways."""
    found = []
    for way, limit in (("up", up), ("down", down)):
        cost = f"{way}, CPU s/GiB"
        found.append(
            Target(section, cost, limit, f"{what}: CPU per GiB, {way}")
        )
    for way in ("up", "down"):
        speed = f"{way}, Mbit/s"
        says = f"{what}: throughput, {way}"
        brief, goal = section in ("udp", "pair"), section not in ("tcp", "pair")
        found.append(
            Target(
                section, speed, 1.0, says, least=True, brief=brief, goal=goal
            )
        )
    return found


def _flat(section: str, variant: str, base: str, *more: str) -> list[Target]:
    metrics = ("up, CPU s/GiB", "down, CPU s/GiB", *more)
    return [
        Target(
            section,
            metric,
            1.1,
            f"{variant} to {base}: {metric.rpartition(' ')[0]}",
            base=f"{OURS}, {base}",
            variant=f"{OURS}, {variant}",
            brief=section == "flows",
        )
        for metric in metrics
    ]


def _beside(
    section: str,
    metric: str,
    says: str,
    *,
    least: bool = False,
    brief: bool = True,
) -> Target:
    """Nobody asked for more than to know who is ahead."""
    return Target(
        section, metric, 1.0, says, least=least, brief=brief, goal=False
    )


TARGETS = (
    *_bulk("udp", "AES-256-GCM over UDP", 0.50, 0.60),
    *_bulk("gro", "the same where the path delivers UDP GRO", 0.50, 0.45),
    *_bulk("chacha", "CHACHA20-POLY1305 over UDP", 0.60, 0.70),
    *_bulk("tcp", "AES-256-GCM over TCP", 0.80, 0.80),
    *_bulk("pair", "client and server together", 1 / 3, 1 / 3),
    _beside("udp", "both, CPU s/GiB", "both ways at once: CPU", brief=False),
    Target("udp", "64 bytes UDP, CPU us/datagram", 1.0, "64-byte UDP: CPU"),
    _beside(
        "udp",
        "64 bytes UDP, delivered %",
        "64-byte UDP: delivered",
        least=True,
        brief=False,
    ),
    _beside("udp", "ping, idle, ms", "ping, nothing else, ms", brief=False),
    Target("udp", "ping, bulk up, ms", 1.0, "ping during an upload, ms"),
    Target("udp", "ping, bulk down, ms", 1.0, "ping during a download, ms"),
    Target("start", "first packet, s", 0.5, "start to first packet, s", ""),
    _beside("start", "first packet, s", "start to first packet, s"),
    _beside("reconnect", "server back, udp, s", "server restart, UDP, s"),
    _beside("reconnect", "server back, tcp, s", "server restart, TCP, s"),
    Target("udp", "memory, PSS MiB", 110, "memory, MiB", ""),
    _beside("udp", "memory, PSS MiB", "memory, MiB"),
    _beside("idle", "wakeups a second", "idle: wakeups a second"),
    _beside("idle", "CPU ms a second", "idle: CPU, ms a second"),
    *(
        Target(
            "floor",
            f"{way}, CPU s/GiB",
            1.0,
            f"with cryptography 43: CPU per GiB, {way}",
            variant=f"{OURS}, floor",
            goal=False,
        )
        for way in ("up", "down")
    ),
    *_flat("routes", "10 routes", "1 route"),
    *_flat("routes", "100 routes", "1 route"),
    *_flat(
        "flows",
        "1,000 flows",
        "1 flow",
        "1,200 bytes UDP, CPU us/datagram",
    ),
    Target(
        "strangers",
        "wrong source, reached the socket %",
        0,
        "from a wrong source, reached the socket, %",
        "",
        brief=False,
    ),
    *(
        Target("strangers", f"{name}, CPU us", 10, f"{name}, us", "")
        for name in ("spoofed data packet", "spoofed control packet")
    ),
    *(
        Target(
            "strangers", f"{name}, CPU us", 10, f"{name}, us", "", brief=False
        )
        for name in (
            "spoofed control packet, other session",
            *(f"spoofed control packet, {wrap}" for wrap in OTHER_WRAPS),
        )
    ),
    *(
        Target(
            "strangers",
            f"{way} kept under the flood, %",
            50,
            f"throughput kept under 20,000 spoofed a second, {way}, %",
            "",
            least=True,
        )
        for way in ("up", "down")
    ),
    *(
        Target(
            "guardian",
            f"{name}, ms",
            100,
            f"{name}: repaired, ms",
            "",
            brief=False,
        )
        for name in CHANGES
    ),
    *(
        Target(
            "kernel",
            f"{way}, {what}",
            limit,
            f"kernel plane: throughput {way}, {what}",
            "",
            least=True,
        )
        for what, limit in (
            ("of OpenVPN 2.7 with DCO", 0.9),
            ("times OpenVPN 2.6", 3.0),
        )
        for way in ("up", "down")
    ),
    Target("kernel", "memory, PSS MB", 80, "kernel plane: memory, MB", ""),
)


def spread(values: list[float], digits: int = 2) -> str:
    """Median, and minimum to maximum."""
    found = [f"{value:,.{digits}f}" for value in sorted(values)]
    middle = f"{statistics.median(values):,.{digits}f}"
    return f"{middle} ({found[0]} to {found[-1]})"


def digits_of(metric: str) -> int:
    return 0 if "Mbit/s" in metric or metric.endswith("%") else 2


def base_of(variant: str, variants: list[str]) -> str:
    """What a variant is compared with: "who, one" is to "who, other"."""
    who, comma, _ = variant.partition(", ")
    same = [each for each in variants if comma and each.startswith(f"{who}, ")]
    return same[0] if same and same[0] != variant else variants[0]


def ratios(of_metric: dict[str, list[float]], variant: str) -> list[float]:
    """To the base's value of the same round."""
    base = base_of(variant, list(of_metric))
    if base == variant or variant == "plain":
        return []
    pairs = zip(of_metric[variant], of_metric[base], strict=False)
    return [one / other for one, other in pairs if other]


def rows(figures: Figures) -> Iterator[tuple[str, str, str, str]]:
    """Metric, variant, values, ratio; as text."""
    for metric, of_metric in figures.items():
        for variant, values in of_metric.items():
            found = ratios(of_metric, variant)
            yield (
                metric,
                variant,
                spread(values, digits_of(metric)),
                spread(found) if found else "",
            )


def judged(document: dict[str, Any]) -> Iterator[tuple[Target, list[float]]]:
    """Every target that was measured, with its values."""
    for target in TARGETS:
        section = document["sections"].get(target.section)
        if section and (values := target.values(section["figures"])):
            yield target, values


def text(document: dict[str, Any]) -> str:
    """The tables, for a terminal."""
    lines = []
    for name, section in document["sections"].items():
        lines += ["", f"== {name}: {section['about']}"]
        lines.append(
            f"   {section['when']}, {section['rounds']} rounds,"
            f" {section['mib']} MiB a transfer,"
            f" load before {section['load']:.1f}"
        )
        before = ""
        for metric, variant, values, ratio in rows(section["figures"]):
            if metric != before:
                lines.append(f"{metric}")
                before = metric
            lines.append(f"    {variant:24}{values:>30}{ratio:>24}".rstrip())
    lines += ["", "== what was asked for (medians)"]
    for target, ratio_or_value in judged(document):
        middle = statistics.median(ratio_or_value)
        word = target.verdict(middle)
        sign = ">=" if target.least else "<="
        lines.append(
            f"{word:7}{target.says:58}{middle:>8.2f} {sign} {target.limit:.2f}"
        )
    return "\n".join(lines)
