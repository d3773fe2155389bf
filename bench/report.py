"""Medians, ratios and a picture."""

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.run import KINDS, Measurement

BASE = "openvpn"
UNITS = {"small": "us/datagram"}


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Median, and minimum to maximum."""
    found = sorted(values)
    middle = statistics.median(found)
    return f"{middle:.{digits}f} ({found[0]:.{digits}f}-{found[-1]:.{digits}f})"


def rounds_of(
    measurements: list[Measurement], scenario: str, variant: str
) -> list[Measurement]:
    return [
        each
        for each in measurements
        if each.scenario == scenario and each.variant == variant
    ]


def costs(found: list[Measurement], kind: str) -> list[float]:
    return [each.transfers[kind].cost for each in found]


def ratios(
    measurements: list[Measurement],
    scenario: str,
    variant: str,
    value: Callable[[Measurement], float],
) -> list[float]:
    """Of a variant to OpenVPN's client, round by round."""
    pairs = zip(
        rounds_of(measurements, scenario, variant),
        rounds_of(measurements, scenario, BASE),
        strict=False,
    )
    return [value(one) / value(other) for one, other in pairs if value(other)]


def text(measurements: list[Measurement]) -> str:
    """The table of everything."""
    lines = []
    for scenario in dict.fromkeys(each.scenario for each in measurements):
        variants = list(
            dict.fromkeys(
                each.variant
                for each in measurements
                if each.scenario == scenario
            )
        )
        lines += ["", f"== {scenario} =="]
        for kind in KINDS:
            lines += _kind(measurements, scenario, variants, kind)
        lines += _rest(measurements, scenario, variants)
    return "\n".join(lines)


def _kind(
    measurements: list[Measurement],
    scenario: str,
    variants: list[str],
    kind: str,
) -> list[str]:
    unit = UNITS.get(kind, "CPU s/GiB")
    lines = [f"{kind:6}{'Mbit/s':>24}{unit:>24}{'ratio to OpenVPN':>22}"]
    for variant in variants:
        found = rounds_of(measurements, scenario, variant)
        found = [each for each in found if kind in each.transfers]
        if not found:
            continue
        speed = spread((each.transfers[kind].mbit for each in found), 0)
        cost = ratio = "-"
        if variant != "plain":
            cost = spread(costs(found, kind))
        if variant not in ("plain", BASE):
            of_base = ratios(
                measurements,
                scenario,
                variant,
                lambda each: each.transfers[kind].cost,
            )
            ratio = spread(of_base) if of_base else "-"
        lines.append(f"  {variant:10}{speed:>18}{cost:>24}{ratio:>22}")
    return lines if len(lines) > 1 else []


def _rest(
    measurements: list[Measurement], scenario: str, variants: list[str]
) -> list[str]:
    lines = [
        "other     start s   first packet s   PSS MiB   ping ms idle/loaded/max"
    ]
    for variant in variants:
        found = rounds_of(measurements, scenario, variant)

        def middle(name: str, found: list[Measurement] = found) -> float:
            return statistics.median(getattr(each, name) for each in found)

        lines.append(
            f"  {variant:10}{middle('started'):6.2f}"
            f"{middle('first_packet'):14.2f}{middle('pss'):13.1f}"
            f"   {middle('ping_idle'):.2f} / {middle('ping_loaded'):.2f}"
            f" / {middle('ping_loaded_max'):.1f}"
        )
    return lines


def summary(measurements: list[Measurement]) -> dict[str, Any]:
    """Medians of costs and ratios, for machines."""
    result: dict[str, Any] = {}
    for each in measurements:
        found = rounds_of(measurements, each.scenario, each.variant)
        of_scenario = result.setdefault(each.scenario, {})
        of_scenario[each.variant] = {
            kind: {
                "cost": statistics.median(costs(found, kind)),
                "mbit": statistics.median(
                    one.transfers[kind].mbit for one in found
                ),
                "ratio": statistics.median(of_base) if of_base else None,
            }
            for kind in each.transfers
            if (
                of_base := ratios(
                    measurements,
                    each.scenario,
                    each.variant,
                    lambda one, kind=kind: one.transfers[kind].cost,
                )
            )
            or True
        }
    return result


def plot(measurements: list[Measurement], path: Path) -> bool:
    """Draw CPU cost and throughput; False without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    scenarios = list(dict.fromkeys(each.scenario for each in measurements))
    kinds = ("up", "down", "both")
    figure, axes = plt.subplots(
        2, len(scenarios), figsize=(4.5 * len(scenarios), 7), squeeze=False
    )
    for column, scenario in enumerate(scenarios):
        variants = [
            each
            for each in dict.fromkeys(one.variant for one in measurements)
            if each != "plain" and rounds_of(measurements, scenario, each)
        ]
        width = 0.8 / len(variants)
        for index, variant in enumerate(variants):
            found = rounds_of(measurements, scenario, variant)
            for row, attribute in enumerate(("cost", "mbit")):
                _bars(
                    axes[row][column],
                    found,
                    [kind for kind in kinds if kind in found[0].transfers],
                    attribute,
                    index * width,
                    width,
                    variant,
                )
        axes[0][column].set_title(scenario)
        axes[0][column].legend(fontsize=7)
    axes[0][0].set_ylabel("client's CPU seconds per GiB (less is better)")
    axes[1][0].set_ylabel("Mbit/s (more is better)")
    figure.suptitle("The same OpenVPN 2.6 server; median, minimum, maximum")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    return True


def _bars(
    axis: Any,
    found: list[Measurement],
    kinds: list[str],
    attribute: str,
    shift: float,
    width: float,
    label: str,
) -> None:
    values = [
        sorted(getattr(each.transfers[kind], attribute) for each in found)
        for kind in kinds
    ]
    middles = [statistics.median(each) for each in values]
    below = [m - v[0] for m, v in zip(middles, values, strict=True)]
    above = [v[-1] - m for m, v in zip(middles, values, strict=True)]
    places = [number + shift for number in range(len(kinds))]
    axis.bar(
        places, middles, width, yerr=(below, above), capsize=2, label=label
    )
    axis.set_xticks([number + 0.4 for number in range(len(kinds))], kinds)
