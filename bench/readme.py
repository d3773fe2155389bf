"""The newest figures into README.md and docs/benchmarks.md.

    python -m bench.readme [FILE]

FILE: one of bench/results/, the newest without it. Only what stands between
the two marker lines of each document changes.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from bench import report

ROOT = Path(__file__).parent.parent
BEGIN = "<!-- figures: written by python -m bench.readme -->"
END = "<!-- end of figures -->"


def number(value: float) -> str:
    """Three digits, or all of a large one."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def verdicts(document: dict[str, Any], *, brief: bool) -> list[str]:
    """What was asked for and what there is; a loss is bold."""
    rows: list[tuple[str, ...]] = []
    for target, values in report.judged(document):
        if brief and not target.brief:
            continue
        figures = document["sections"][target.section]["figures"]
        of_metric = figures[target.metric]
        middle = statistics.median(values)
        theirs = ours = ""
        # the others' base is another figure of ours, and says so
        if target.base == report.THEIRS:
            theirs = number(statistics.median(of_metric[target.base]))
            ours = number(statistics.median(of_metric[target.variant]))
        low, high = number(min(values)), number(max(values))
        said = f"{number(middle)} ({low} to {high})"
        said = said if target.held(middle) else f"**{said}**"
        if not target.base:
            ours, said = said, ""
        limit = f"{'≥' if target.least else '≤'} {number(target.limit)}, "
        word = target.verdict(middle).lower()
        goal = f"{limit}{word}" if target.goal else word
        goal = goal if target.held(middle) else f"**{goal}**"
        rows.append((target.says, theirs, ours, said, goal))
    head = ("", "OpenVPN", "qubes-vpn", "ratio", "goal")
    return table(head, rows)


def conditions(document: dict[str, Any]) -> str:
    """When, where, with what."""
    versions = document["versions"]
    found = document["sections"].values()
    loads = [section["load"] for section in found]
    rounds = sorted({section["rounds"] for section in found})
    rounds = sorted({rounds[0], rounds[-1]})
    return (
        f"Medians of {' to '.join(map(str, rounds))} rounds (minimum to"
        f" maximum), {max(one['when'] for one in found)[:10]},"
        f" {versions['processor']}, Linux {versions['kernel']},"
        f" {' '.join(versions['openvpn'].split()[:2])},"
        f" Python {versions['python']},"
        f" cryptography {versions['cryptography']};"
        f" load average before a section {min(loads):.1f} to {max(loads):.1f}."
    )


def everything(document: dict[str, Any]) -> list[str]:
    """Every figure of every section."""
    lines = []
    for name, section in document["sections"].items():
        lines += ["", f"### {name}: {section['about']}", ""]
        lines.append(
            f"{section['when']}, {section['rounds']} rounds of"
            f" {section['mib']} MiB, load average {section['load']:.1f}."
        )
        lines.append("")
        before = ""
        rows: list[tuple[str, ...]] = []
        for metric, variant, values, ratio in report.rows(section["figures"]):
            rows.append(
                (metric if metric != before else "", variant, values, ratio)
            )
            before = metric
        lines += table(("", "", "median (min to max)", "ratio"), rows)
        lines += [
            f"\n    {who}: {shortened(words)}"
            for who, words in section["flags"].items()
        ]
    return lines


def shortened(words: str) -> str:
    """Leave out of a server's configuration all pushed routes but the ends."""
    lines = words.split("; ")
    routes = [n for n, line in enumerate(lines) if "route 172." in line]
    if len(routes) > 2:
        lines[routes[1] : routes[-1]] = [f"{len(routes) - 2} more"]
    return "; ".join(lines)


def put(path: Path, lines: list[str]) -> None:
    """Replace what is between the markers."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or not after:
        raise ValueError(f"{path.name} has not both markers")
    block = "\n".join([BEGIN, "", *lines, "", END])
    path.write_text(before + block + after)


def main() -> int:
    results = sorted((ROOT / "bench/results").glob("*.json"))
    if len(sys.argv) > 1:
        results = [Path(sys.argv[1])]
    if not results:
        print("bench.readme: no results; first python -m bench")
        return 1
    document = json.loads(results[-1].read_text())
    name = results[-1].with_suffix(".png").name
    told = [conditions(document), ""]
    told += verdicts(document, brief=True)
    told += ["", f"![cost and throughput](bench/results/{name})"]
    put(ROOT / "README.md", told)
    told = [conditions(document), ""]
    told += ["## What was asked for", "", *verdicts(document, brief=False)]
    told += ["", "## Every figure", *everything(document)]
    put(ROOT / "docs/benchmarks.md", told)
    print(f"README.md and docs/benchmarks.md: {results[-1].name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
