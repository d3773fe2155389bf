"""A compromised engine: what it can do from where it stands, by trying.

The units' sandbox is more (tests/packaging/test_units.py); here is what holds
without systemd: no capability, a user of its own, the keeper's protocol, and
the lock. Each try succeeds for root without the lock: the control.
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qubes_vpn.keeper import messages
from qubes_vpn.runtime.foreground import ENGINE_ID
from tests.hostile.intruder import requests, tries
from tests.netns.toy import ALLOWED, ENDPOINT, Rig, lock, pair

pytestmark = [pytest.mark.netns]

NAMES = {name for name, _ in tries("/x", 1)}
ASKED = {name for name, _ in requests()}
# what a lab has none of; root's own failing there says nothing
MISSING = {
    *("sudo", "su", "pkexec", "qrexec", "qubesdb", "hypervisor"),
    *("disk", "shadow"),
}


@pytest.fixture
def secret(lab):
    folder = lab.scratch / "profiles"
    folder.mkdir(mode=0o700)
    path = folder / "profile.ovpn"
    path.write_text("secret")
    path.chmod(0o600)
    return path


def intrude(lab, descriptor, uid, secret, pid):
    process = lab.vpn.popen(
        [
            *(sys.executable, "-m", "tests.hostile.intruder"),
            *(str(descriptor), str(uid), str(secret), str(pid)),
        ],
        pass_fds=[descriptor] if descriptor >= 0 else [],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    return json.loads(out)


def test_the_same_succeeds_for_root_without_the_lock(lab, secret):
    idle = lab.vpn.popen(["sleep", "600"])
    try:
        with lab.capture(ALLOWED) as capture:
            got = intrude(lab, -1, 0, secret, idle.pid)
    finally:
        idle.kill()
        idle.wait()
    assert set(got) == NAMES
    failed = {name for name, result in got.items() if result != "done"}
    assert failed <= MISSING, {name: got[name] for name in failed}
    assert capture.report().leaks


def test_a_compromised_engine(lab, secret):
    lock(lab)
    with Rig(lab, server=False) as rig, lab.capture(ALLOWED) as capture:
        rig.agent.request(messages.SetEndpoints((ENDPOINT,)))
        ours, theirs = pair()
        rig.agent.request(messages.AdoptEngine(), (theirs.fileno(),))
        theirs.close()
        with ours:
            got = intrude(
                lab, ours.fileno(), ENGINE_ID, secret, rig.process.pid
            )
        assert rig.process.poll() is None
    assert set(got) == NAMES | ASKED | {"link-elsewhere"}
    succeeded = {name for name, result in got.items() if result == "done"}
    # sendto says nothing about what a filter drops: the capture does
    assert succeeded <= {"link-elsewhere", "udp-elsewhere"}, succeeded
    assert capture.report().leaks == ()


def test_an_engine_that_waits_for_its_job_has_given_up_everything():
    """Without a profile it waits for ever, as what it is from then on."""
    ours, theirs = pair()
    fd = str(theirs.fileno())
    words = ("--agent-fd", fd, "--keeper-fd", fd, "--uid", "65534")
    process = subprocess.Popen(
        [sys.executable, "-m", "qubes_vpn.runtime.engine", *words],
        pass_fds=[theirs.fileno()],
    )
    try:
        status = Path(f"/proc/{process.pid}/status")
        limit = time.monotonic() + 30
        while "NoNewPrivs:\t1" not in status.read_text():
            assert time.monotonic() < limit, status.read_text()
            time.sleep(0.02)
        fields = dict(re.findall(r"(\w+):\s+(.*)", status.read_text()))
        assert set(fields["Uid"].split()) == {"65534"}
        assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
    finally:
        process.kill()
        process.wait()
        ours.close()
        theirs.close()
