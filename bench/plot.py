"""A picture of cost and throughput."""

import statistics
from pathlib import Path
from typing import Any

SHOWN = ("udp", "gro", "chacha", "tcp", "pair")
WAYS = ("up", "down")


def plot(document: dict[str, Any], path: Path) -> bool:
    """Draw it. Returns whether there was something, and matplotlib."""
    names = [name for name in SHOWN if name in document["sections"]]
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    if not names:
        return False
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2, len(names), figsize=(3.2 * len(names), 6), squeeze=False
    )
    units = ("CPU s/GiB", "Mbit/s")
    for column, name in enumerate(names):
        section = document["sections"][name]
        for row, unit in enumerate(units):
            _bars(axes[row][column], section["figures"], unit)
        axes[0][column].set_title(name)
        axes[0][column].legend(fontsize=7)
    axes[0][0].set_ylabel("CPU seconds per GiB (less is better)")
    axes[1][0].set_ylabel("Mbit/s (more is better)")
    figure.suptitle(
        "Median, minimum and maximum; CPU of the client,"
        " in `pair` of client and server",
        fontsize=9,
    )
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)
    return True


def _bars(axis: Any, figures: dict[str, Any], unit: str) -> None:
    found = figures[f"up, {unit}"]
    variants = [each for each in found if each != "plain"]
    width = 0.8 / len(variants)
    for index, variant in enumerate(variants):
        values = [sorted(figures[f"{way}, {unit}"][variant]) for way in WAYS]
        middles = [statistics.median(each) for each in values]
        below = [m - v[0] for m, v in zip(middles, values, strict=True)]
        above = [v[-1] - m for m, v in zip(middles, values, strict=True)]
        places = [number + index * width for number in range(len(WAYS))]
        error = (below, above)
        axis.bar(places, middles, width, yerr=error, capsize=2, label=variant)
    axis.set_xticks([number + 0.3 for number in range(len(WAYS))], WAYS)
