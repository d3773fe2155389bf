"""The packages, built once, and installed into empty roots."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]


def run(*command, **options):
    """Run a command; its output as text. A failure shows what it said."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        **options,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@dataclass
class Root:
    """A root folder with some of our packages in it, and nothing else."""

    path: Path

    def rpm(self, *args):
        return run("rpm", "--root", self.path, *args)

    @property
    def site(self):
        (found,) = self.path.glob("usr/lib/python3*/site-packages")
        return found


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """The folder with the tarball and the packages."""
    work = tmp_path_factory.mktemp("build")
    environment = {
        **os.environ,
        "DIST": str(work / "dist"),
        "WORK": str(work / "work"),
    }
    run(TOP / "rpm/build.sh", env=environment)
    return work / "dist"


@pytest.fixture(scope="session")
def install(packages, tmp_path_factory):
    """Install packages by name into a new root, without their scriptlets."""

    def install_them(*names):
        root = Root(tmp_path_factory.mktemp("root"))
        root.rpm("--initdb")
        files = [
            path
            for name in names
            for path in packages.glob(f"{name}-[0-9]*.noarch.rpm")
        ]
        assert len(files) == len(names)
        root.rpm("-i", "--nodeps", "--noscripts", *files)
        return root

    return install_them


@pytest.fixture(scope="session")
def qube_root(install):
    """A template: the package for qubes and what it needs of ours."""
    return install("qubes-vpn-common", "qubes-vpn")


@pytest.fixture(scope="session")
def dom0_root(install):
    """dom0: its package and what it needs of ours."""
    return install("qubes-vpn-common", "qubes-vpn-dom0")
