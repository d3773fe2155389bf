"""python -m lab: what a person starts, and what it leaves behind."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAB = [sys.executable, "-m", "lab"]
NAMES = Path("/run/netns")


def run(*argv, **options):
    return subprocess.run(
        argv, capture_output=True, text=True, cwd=ROOT, **options
    )


def start_up():
    up = subprocess.Popen(
        [*LAB, "up"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    lines = []
    while not (lines and lines[-1].startswith("Ctrl-C")):
        lines.append(up.stdout.readline())
        assert lines[-1], lines
    names = [line.split()[3] for line in lines if line.startswith("ip netns")]
    return up, names


@pytest.mark.slow
def test_demo_proves_every_row():
    done = run(*LAB, "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout.partition("what was proved")[2]
    assert table.count(" pass ") == 7
    assert "FAIL" not in table


def test_up_names_the_namespaces_and_ctrl_c_removes_them():
    up, names = start_up()
    with up:
        assert len(names) == 5
        app1 = next(name for name in names if name.endswith("app1"))
        route = run("ip", "netns", "exec", app1, "ip", "route")
        assert "default via 10.137.0.20" in route.stdout
        up.send_signal(signal.SIGINT)
        assert up.wait(20) == 0
    assert not [name for name in names if (NAMES / name).exists()]


def test_down_removes_what_a_killed_lab_left():
    up, names = start_up()
    with up:
        running = run(*LAB, "down")
        assert running.returncode == 0
        assert all((NAMES / name).exists() for name in names)
        up.kill()
        up.wait(20)
    assert all((NAMES / name).exists() for name in names)
    assert run(*LAB, "down").returncode == 0
    assert not [name for name in names if (NAMES / name).exists()]


def test_a_machine_that_lacks_something_is_told_in_one_line():
    hide = 'mount --bind /dev/null /usr/sbin/openvpn && exec "$@"'
    unshare = ["unshare", "--mount", "--propagation", "private"]
    hidden = [*unshare, "sh", "-c", hide, "sh", *LAB, "demo"]
    done = run(*hidden, "--server", "openvpn")
    assert done.returncode == 77
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "openvpn" in done.stderr


# A user with subordinate ids, on a machine whose /dev/net/tun is for everybody
# (as udev makes it), in a clone that the user can read.
WITHOUT_ROOT = """
set -e
mount -t tmpfs -o mode=0755 own "$1"
cd "$1"
mkdir up work clone
mknod -m 666 tun c 10 200
mount --bind tun /dev/net/tun
mount -t overlay -o lowerdir=/etc,upperdir=up,workdir=work etc /etc
for name in $3; do echo $name:100000:65536 >>/etc/subuid; done
cp /etc/subuid /etc/subgid
mount --bind "$2" clone
cd clone
exec setpriv --reuid nobody --regid nogroup --clear-groups \
    env HOME=/tmp .venv/bin/python -m lab demo
"""


def demo_without_root(subordinate):
    unshare = ["unshare", "--mount", "--propagation", "private"]
    # pytest's own temporary directory is closed to other users.
    with tempfile.TemporaryDirectory() as own:
        Path(own).chmod(0o755)
        words = ["sh", own, str(ROOT), subordinate]
        return run(*unshare, "sh", "-c", WITHOUT_ROOT, *words)


@pytest.mark.slow
def test_demo_without_root():
    done = demo_without_root("nobody nogroup")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" pass ") == 7


def test_a_user_without_subordinate_ids_is_told_in_one_line():
    done = demo_without_root("")
    assert done.returncode == 77
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "/etc/subuid" in done.stderr
