"""The shipped units under systemd itself, in a box of namespaces.

Row of the compromised engine: hostile code in its place, in the very unit.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.hostile.rows import ROOT
from tests.hostile.units_in_box import CHECKS

SECONDS = 240

pytestmark = [pytest.mark.netns, pytest.mark.long, pytest.mark.timeout(600)]


def cgroups():
    """Where the second version of cgroups is mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    raise AssertionError("no cgroup2 file system")


@contextlib.contextmanager
def group():
    """A cgroup of our own, which systemd takes for the whole tree."""
    made = cgroups() / f"qubes-vpn-{os.getpid()}"
    made.mkdir()
    try:
        yield made
    finally:
        limit = time.monotonic() + 10
        while made.exists() and time.monotonic() < limit:
            for folder, _, _ in os.walk(made, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            time.sleep(0.05)


@pytest.fixture(scope="module")
def output():
    """All that the program in the box printed."""
    with group() as made, tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        said = Path(scratch, "output")
        said.touch()
        with Path(scratch, "init").open("wb") as init:
            box = subprocess.Popen(
                [
                    *("sh", "-c", 'echo $$ >"$0" && exec "$@"'),
                    *(str(made / "cgroup.procs"), "unshare", "--kill-child"),
                    *("--fork", "--pid", "--mount", "--mount-proc", "--net"),
                    *("--cgroup", "--ipc", "--uts", "--"),
                    *("sh", str(ROOT / "tests/hostile/box.sh")),
                    *(str(ROOT), str(said)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=init,
                stderr=subprocess.STDOUT,
            )
        limit = time.monotonic() + SECONDS
        while b"GUEST ENDED" not in said.read_bytes():
            if time.monotonic() > limit or box.poll() is not None:
                break
            time.sleep(0.2)
        box.send_signal(signal.SIGKILL)
        box.wait()
        yield said.read_text() + Path(scratch, "init").read_text()


@pytest.mark.parametrize("name", [check.__name__ for check in CHECKS])
def test_in_a_box(output, name):
    assert shutil.which("systemctl")
    assert f"UNIT {name} ok" in output, output[-12_000:]
