"""Pin what a release needs, by version and by the digest of each file.

    .venv/bin/python tools/lock.py [--check]

writes tools/requirements.lock, from whatever index pip is set up with, for
every Python that pyproject.toml supports. An installation takes these files
and no others:

    pip install --require-hashes --no-deps -r tools/requirements.lock

--check writes nothing and asks pip to find every file again, by its digest.
"""

import argparse
import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "tools/requirements.lock"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# Debian 12's glibc is 2.36, Fedora's is newer.
PLATFORMS = (
    *(f"manylinux_2_{glibc}_x86_64" for glibc in range(36, 16, -1)),
    "manylinux2014_x86_64",
)
HEAD = """\
# Made by tools/lock.py: what a release needs, by version and digest.
# pip install --require-hashes --no-deps -r tools/requirements.lock
"""


def wanted() -> list[str]:
    """Give what pyproject.toml asks for at run time, `fast` included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra: list[str] = project["optional-dependencies"]["fast"]
    return [*project["dependencies"], *extra]


def pip(python: str, *words: str) -> dict[str, object]:
    """Have pip say what it would install for a Python."""
    done = subprocess.run(  # noqa: S603
        [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--quiet"),
            *("--disable-pip-version-check", "--ignore-installed"),
            *("--report", "-", "--only-binary", ":all:", "--target", "unused"),
            *("--python-version", python, "--implementation", "cp"),
            *(f"--platform={name}" for name in PLATFORMS),
            *words,
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"lock: Python {python}: {done.stderr[-2000:]}")
    report: dict[str, object] = json.loads(done.stdout)
    return report


def found(python: str, *words: str) -> list[tuple[str, str, str]]:
    """Give (name, version, digest) of each file."""
    out = []
    for item in pip(python, *words)["install"]:  # type: ignore[attr-defined]
        about = item["metadata"]
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        out.append((about["name"].lower(), about["version"], digest))
    return out


def lock() -> str:
    """Make the file: one version for all, with a digest for each Python."""
    pins: dict[str, str] = {}
    digests: dict[str, dict[str, None]] = {}
    for python in PYTHONS:
        same = [f"{name}=={version}" for name, version in pins.items()]
        for name, version, digest in found(python, *wanted(), *same):
            pins.setdefault(name, version)
            digests.setdefault(name, {})[digest] = None
    lines = [HEAD]
    for name in sorted(pins):
        hashes = " \\\n    ".join(
            f"--hash=sha256:{one}" for one in digests[name]
        )
        lines.append(f"{name}=={pins[name]} \\\n    {hashes}\n")
    return "".join(lines)


def main() -> int:
    """Write the file, or check it."""
    parser = argparse.ArgumentParser(prog="tools/lock.py", description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        LOCK.write_text(lock())
        return 0
    for python in PYTHONS:
        files = found(python, "--require-hashes", "--no-deps", "-r", str(LOCK))
        sys.stdout.write(f"Python {python}: {len(files)} files\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
