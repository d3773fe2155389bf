"""Measure our client beside OpenVPN's, with the same server and lab.

    python -m bench                      everything but `kernel`: 15 to 20 min
    python -m bench --quick              the same, smaller: about 4 min
    python -m bench --list               what there is to measure
    python -m bench --only udp,pair      some of it
    python -m bench.readme               its figures into README.md and docs

Every round runs all clients in turn, so that a ratio compares neighbours in
time; CPU seconds per GiB are the figure to trust on a machine that is shared.
Results go to bench/results/ as DATE.json and DATE.png. What is measured again
on the same day replaces its section there; the rest stays.
"""

import argparse
import json
import os
import platform
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import qubes_vpn
from bench import report
from bench.plot import plot
from bench.run import MismatchError
from bench.sections import SECTIONS, USUAL, Run
from lab.namespace import LabError
from lab.openvpn import OPENVPN

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("cryptography", "numpy", "pyOpenSSL", "pyroute2")


def versions(python: str) -> dict[str, str]:
    """Who takes part, in which version."""
    openvpn = subprocess.run(
        [OPENVPN, "--version"], capture_output=True, text=True
    )
    code = "from importlib.metadata import version as v;"
    code += f"print(*map(v, {PACKAGES}))"
    installed = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    )
    return {
        "openvpn": openvpn.stdout.splitlines()[0],
        "qubes-vpn": qubes_vpn.__version__,
        "kernel": ".".join(platform.release().split(".")[:2]),
        "processor": processor(),
        "python": platform.python_version(),
        "openssl of python": ssl.OPENSSL_VERSION,
        **dict(zip(PACKAGES, installed.stdout.split(), strict=True)),
    }


def processor() -> str:
    """The model's name, and how many there are."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{os.cpu_count()} x {line.partition(': ')[2]}"
    return f"{os.cpu_count()} x {platform.machine()}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="name the sections")
    parser.add_argument("--only", metavar="SECTIONS", default=",".join(USUAL))
    parser.add_argument("--rounds", type=int, help="of each section (3)")
    parser.add_argument("--mib", type=int, help="of each transfer (128)")
    parser.add_argument("--seconds", type=float, help="of each flood (2)")
    parser.add_argument(
        "--quick", action="store_true", help="1 round, 32 MiB, 1 second"
    )
    parser.add_argument(
        "--python",
        metavar="PATH",
        default=sys.executable,
        help="what runs our client: another environment that has qubes_vpn",
    )
    parser.add_argument(
        "--console",
        metavar="FILE",
        default="",
        help="of `kernel`: what `make test-kernel` has printed, not to boot",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=RESULTS)
    given = parser.parse_args()
    rounds, mib, seconds = (1, 32, 1.0) if given.quick else (3, 128, 2.0)
    given.rounds = given.rounds or rounds
    given.mib = given.mib or mib
    given.seconds = given.seconds or seconds
    given.only = given.only.split(",")
    if unknown := [name for name in given.only if name not in SECTIONS]:
        parser.error(f"no section {', '.join(unknown)}; see --list")
    return given


def about(name: str) -> str:
    """A section's question: its first line."""
    return (SECTIONS[name].__doc__ or "").strip().splitlines()[0]


def run(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One section, as it is written. Raises MismatchError."""
    section = Run(
        name,
        given.rounds,
        given.mib,
        given.seconds,
        given.python,
        given.console,
    )
    load, began = os.getloadavg()[0], time.monotonic()
    SECTIONS[name](section)
    return {
        "about": about(name),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "took": round(time.monotonic() - began),
        "load": load,
        "rounds": given.rounds,
        "mib": given.mib,
        "seconds": given.seconds,
        "flags": section.flags,
        "figures": section.figures,
    }


def rounded(value: Any) -> Any:
    """Five digits are more than there is to know."""
    match value:
        case float():
            return float(f"{value:.5g}")
        case dict():
            return {key: rounded(each) for key, each in value.items()}
        case list():
            return [rounded(each) for each in value]
        case _:
            return value


def measure(given: argparse.Namespace, path: Path) -> list[str]:
    """Sections in turn, each written when it is there; return those that are.

    What fails, or moved other bytes than it should have, is not reported.
    """
    done = []
    who = versions(given.python)
    for name, version in who.items():
        print(f"{name:20}{version}")
    for name in given.only:
        try:
            found = rounded(run(name, given))
        except (MismatchError, LabError, subprocess.SubprocessError) as error:
            print(f"bench: no report of {name}: {error}", file=sys.stderr)
            continue
        done.append(name)
        write(path, who, name, found)
    return done


def write(
    path: Path, who: dict[str, str], name: str, section: dict[str, Any]
) -> None:
    """Put one section in its place; the rest stays."""
    sections = {}
    if path.exists():
        sections = json.loads(path.read_text())["sections"]
    sections[name] = section
    ordered = {each: sections[each] for each in SECTIONS if each in sections}
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"versions": who, "sections": ordered}
    path.write_text(json.dumps(document, indent=1) + "\n")


def main() -> int:
    given = arguments()
    if given.list:
        for name in SECTIONS:
            print(f"{name:12}{about(name)}")
        return 0
    if os.geteuid() != 0:
        print("bench: needs root (network namespaces)", file=sys.stderr)
        return 77
    day = time.strftime("%Y-%m-%d", time.gmtime())
    path = given.out / f"{day}.json"
    done = measure(given, path)
    if not done:
        return 1
    document = json.loads(path.read_text())
    measured = {name: document["sections"][name] for name in done}
    for name, section in measured.items():
        print(f"\n{name} was started with:")
        for who, words in section["flags"].items():
            print(f"  {who}: {words}")
    print(report.text({"sections": measured}))
    drawn = plot(document, path.with_suffix(".png"))
    print(f"\nwritten: {path}" + " and .png" * drawn)
    return 0 if done == given.only else 1


if __name__ == "__main__":
    sys.exit(main())
