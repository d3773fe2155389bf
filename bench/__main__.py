"""`python -m bench`: measure, print, and write JSON and a picture.

Every round runs all clients in turn against the same server, so that a ratio
compares neighbours in time. CPU seconds per GiB are the figure to trust: on a
shared machine throughput says more about the neighbours.
"""

import argparse
import os
import platform
import ssl
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import report
from bench.micro import micro
from bench.rig import Rig
from bench.run import (
    KINDS,
    Measurement,
    MismatchError,
    measure,
    save,
    start_load,
)
from bench.variants import MEANING, VARIANTS
from lab.openvpn import OPENVPN

HERE = Path(__file__).parent
SCENARIOS = (
    ("udp", "AES-256-GCM"),
    ("udp", "CHACHA20-POLY1305"),
    ("tcp", "AES-256-GCM"),
)


def versions() -> dict[str, str]:
    """Who takes part, in which version."""
    found = {
        "openvpn": subprocess.run(
            [OPENVPN, "--version"], capture_output=True, text=True
        ).stdout.splitlines()[0],
        "kernel": platform.release(),
        "processors": str(os.cpu_count()),
        "python": platform.python_version(),
        "openssl of python": ssl.OPENSSL_VERSION,
    }
    for name in ("cryptography", "numpy", "pyOpenSSL"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument(
        "--variants",
        default="openvpn,qubes-vpn,scalar,plain",
        help=", ".join(VARIANTS),
    )
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument(
        "--scenarios",
        default=",".join(f"{proto}/{cipher}" for proto, cipher in SCENARIOS),
    )
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--no-micro", action="store_true")
    return parser.parse_args()


def run(given: argparse.Namespace) -> list[Measurement]:
    """All rounds of all scenarios."""
    found: list[Measurement] = []
    variants = given.variants.split(",")
    kinds = tuple(given.kinds.split(","))
    with Rig() as rig:
        start_load(rig)
        for scenario in given.scenarios.split(","):
            proto, cipher = scenario.split("/")
            for number in range(given.rounds):
                for variant in variants:
                    print(
                        f"{scenario} round {number + 1}: {variant}",
                        file=sys.stderr,
                    )
                    found.append(
                        measure(
                            rig,
                            variant,
                            proto=proto,
                            cipher=cipher,
                            seconds=given.seconds,
                            kinds=kinds,
                        )
                    )
    return found


def main() -> int:
    given = arguments()
    if os.geteuid() != 0:
        print("bench: needs root (network namespaces)", file=sys.stderr)
        return 77
    who = versions()
    for name, version in who.items():
        print(f"{name:20} {version}")
    for variant in given.variants.split(","):
        print(f"{variant:20} {MEANING[variant]}")
    document: dict[str, Any] = {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": who,
        "options": {key: str(value) for key, value in vars(given).items()},
        "load before": os.getloadavg(),
    }
    try:
        measurements = run(given)
    except MismatchError as error:
        print(f"no report: bytes sent and received differ: {error}")
        return 1
    print(report.text(measurements))
    document["summary"] = report.summary(measurements)
    document["measurements"] = [each.as_json() for each in measurements]
    if not given.no_micro:
        document["micro"] = micro()
        print("\nmicroseconds each (median):")
        for name, value in document["micro"].items():
            print(f"  {name:44}{value:8.2f}")
    save(given.out / "bench.json", document)
    drawn = report.plot(measurements, given.out / "bench.png")
    print(f"\nwritten: {given.out}/bench.json" + " and bench.png" * drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
