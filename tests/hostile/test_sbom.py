"""The bill of materials names what runs, and is the same twice."""

import json
import subprocess
import sys

from tests.hostile.rows import ROOT


def bill(*words):
    done = subprocess.run(
        [sys.executable, "tools/sbom.py", *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return done.stdout


def test_what_is_needed_is_in_it_with_version_and_digest():
    text = bill()
    assert text == bill()
    parts = {one["name"]: one for one in json.loads(text)["components"]}
    assert {"qubes-vpn", "cryptography", "pyopenssl", "pyroute2"} <= set(parts)
    assert len(parts["cryptography"]["hashes"][0]["content"]) == 64
    assert parts["cryptography"]["version"]
    assert "pytest" not in parts
    everything = json.loads(bill("--all"))["components"]
    assert "pytest" in {one["name"] for one in everything}
