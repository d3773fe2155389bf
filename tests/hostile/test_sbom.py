"""The bill of materials and the lock file name all that runs."""

import json
import re
import subprocess
import sys
import tomllib

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


def test_the_lock_has_a_version_and_digests_of_each():
    """`tools/lock.py --check` asks the index; here nobody is asked."""
    text = (ROOT / "tools/requirements.lock").read_text()
    assert "://" not in text
    body = re.sub(r"#.*\n|\\\n", "", text)
    pins = {}
    for line in filter(None, body.splitlines()):
        pin, *digests = line.split()
        name, version = pin.split("==")
        pins[name.replace("_", "-")] = tuple(map(int, version.split(".")))
        assert digests
        for digest in digests:
            assert re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", digest)
    parts = {one["name"] for one in json.loads(bill())["components"]}
    assert parts - {"qubes-vpn"} <= set(pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"]:
        name, floor = line.lower().split(">=")
        assert pins[name] >= tuple(map(int, floor.split(".")))
