"""Write a software bill of materials of what is installed: CycloneDX 1.5.

    .venv/bin/python tools/sbom.py [--all] > sbom.json

Without --all: qubes-vpn and what it needs at run time. Versions are those that
this Python would import, wherever they were installed from; a digest is over
the installed files as their RECORD lists them, so that two machines with the
same files have the same bill.
"""

import argparse
import hashlib
import json
import re
import sys
from importlib import metadata

ROOT = "qubes-vpn"
NAME = re.compile(r"[A-Za-z0-9._-]+")


def canonical(name: str) -> str:
    """Give the one form of a project's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str) -> dict[str, list[str]]:
    """Give what a distribution needs, and those need: name to names."""
    found: dict[str, list[str]] = {}
    waiting = [canonical(name)]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        try:
            lines = metadata.requires(one) or []
        except metadata.PackageNotFoundError:
            found[one] = []
            continue
        names = [
            canonical(match[0])
            for line in lines
            if "extra ==" not in line and (match := NAME.match(line))
        ]
        found[one] = sorted(set(names))
        waiting += found[one]
    return found


def digest(distribution: metadata.Distribution) -> str:
    """Give SHA-256 over the names and digests of the installed files."""
    lines = sorted(
        f"{path} {path.hash.value}"
        for path in distribution.files or ()
        if path.hash
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def component(distribution: metadata.Distribution) -> dict[str, object]:
    """Describe one distribution."""
    about = distribution.metadata
    name, version = canonical(about["Name"]), distribution.version
    licence = about.get("License-Expression") or about.get("License") or ""
    entry: dict[str, object] = {
        "type": "library",
        "bom-ref": name,
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{name}@{version}",
    }
    if licence and "\n" not in licence:
        entry["licenses"] = [{"license": {"name": licence}}]
    if distribution.files:
        entry["hashes"] = [{"alg": "SHA-256", "content": digest(distribution)}]
    return entry


def bill(*, everything: bool) -> dict[str, object]:
    """Give the whole bill."""
    graph = needed(ROOT)
    known = {
        canonical(one.metadata["Name"]): one
        for one in reversed(list(metadata.distributions()))
    }
    if everything:
        graph |= {name: graph.get(name, []) for name in known}
    parts = [known[name] for name in sorted(graph) if name in known]
    missing = sorted(set(needed(ROOT)) - set(known))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "components": [component(one) for one in parts],
        "dependencies": [
            {"ref": name, "dependsOn": [x for x in needs if x in known]}
            for name, needs in sorted(graph.items())
            if name in known
        ],
        # needed under a condition that does not hold here
        "properties": [{"name": "absent", "value": name} for name in missing],
    }


def main() -> int:
    """Print the bill."""
    parser = argparse.ArgumentParser(prog="tools/sbom.py", description=__doc__)
    parser.add_argument("--all", action="store_true")
    args = parser.parse_args()
    json.dump(bill(everything=args.all), sys.stdout, indent=1)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
