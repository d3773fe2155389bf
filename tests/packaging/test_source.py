"""The source tarball, and what names the version."""

import hashlib
import os
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest

import qubes_vpn

TOP = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def build_source(folder):
    environment = {
        **os.environ,
        "DIST": str(folder / "dist"),
        "WORK": str(folder / "work"),
    }
    subprocess.run(
        [TOP / "rpm/build.sh", "source"],
        check=True,
        env=environment,
        capture_output=True,
    )
    (tarball,) = (folder / "dist").glob("*.tar.gz")
    return tarball


def test_it_builds_twice_to_the_same_bytes(tmp_path):
    digests = []
    for number, mask in enumerate((0o022, 0o077)):
        before = os.umask(mask)
        try:
            tarball = build_source(tmp_path / str(number))
        finally:
            os.umask(before)
        digests.append(hashlib.sha256(tarball.read_bytes()).hexdigest())
    assert digests[0] == digests[1]


def test_what_is_in_it(tmp_path):
    with tarfile.open(build_source(tmp_path)) as tar:
        members = tar.getmembers()
    names = [member.name for member in members]
    top = f"qubes-vpn-{qubes_vpn.__version__}/"
    assert all(name.startswith(top) for name in names)
    assert names == sorted(names)
    assert f"{top}qubes_vpn/errors.py" in names
    assert {member.uid for member in members} == {0}
    assert len({member.mtime for member in members}) == 1
    assert not any(member.mode & 0o022 for member in members)


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    assert qubes_vpn.__version__ == project["project"]["version"]
    assert qubes_vpn.__version__ == (TOP / "version").read_text().strip()
    changelog = (TOP / "debian/changelog").read_text()
    assert changelog.startswith(f"qubes-vpn ({qubes_vpn.__version__}-")


def test_the_builder_finds_the_specs():
    named = {
        line.strip(" -")
        for line in (TOP / ".qubesbuilder").read_text().splitlines()
        if line.strip().startswith("- ")
    }
    for name in named - {"debian"}:
        assert (TOP / f"{name}.in").is_file()
    assert (TOP / "debian/control").is_file()
