"""As a unit: who is agent and who is engine is told by the kernel."""

import os
import socket
import subprocess
import sys

import pytest

from qubes_vpn.keeper import messages
from qubes_vpn.keeper.client import KeeperClient
from qubes_vpn.keeper.forwarding import NOTE
from qubes_vpn.policy import firewall
from tests.netns.test_keeper_guardian import fight, forwards
from tests.netns.toy import QUIETER, TIMEOUT, lock, wait, without_owners

CODE = """
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1])
try:
    s.send(b'{"seq":1,"type":"Heartbeat"}')
    print(s.recv(1000).decode())
except OSError:
    print("")
sys.stdin.read()
"""


class Listening:
    def __init__(self, lab):
        lock(lab)
        # the keeper's own, as the package makes it
        lab.scratch.chmod(0o711)
        self.path = lab.scratch / "run" / "keeper.sock"
        self.path.parent.mkdir()
        os.chown(self.path.parent, 0, firewall.KEEPER_GID)
        self.path.parent.chmod(0o1775)
        self.lab = lab
        self.start("-m", "qubes_vpn.keeper")

    def start(self, *start):
        self.path.unlink(missing_ok=True)
        self.process = self.lab.vpn.popen(
            [sys.executable, *start, "--listen", str(self.path)]
        )
        wait(self.path.exists, "the socket")
        wait(self.try_connect, "an answer")

    @property
    def status(self):
        return self.agent.request(messages.GetStatus())[0]

    def die(self):
        self.process.kill()
        self.process.wait(TIMEOUT)
        self.agent.close()

    def try_connect(self):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(str(self.path))
        except OSError:
            sock.close()
            return False
        self.agent = KeeperClient(sock)
        return True

    def as_user(self, uid):
        return subprocess.Popen(
            [
                *("setpriv", "--reuid", str(uid), "--clear-groups"),
                *("/usr/bin/python3", "-c", CODE, str(self.path)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def listening(lab):
    made = Listening(lab)
    yield made
    made.agent.close()
    made.process.terminate()
    assert made.process.wait(TIMEOUT) == 0


def end(process):
    process.communicate(timeout=TIMEOUT)


def test_roles_are_told_by_the_peers_user(listening):
    status = listening.status
    assert (status.phase, status.engine) == ("blocked", False)
    engine = listening.as_user(firewall.ENGINE_UID)
    assert "Done" in engine.stdout.readline()
    assert listening.status.engine
    stranger = listening.as_user(65534)
    assert stranger.stdout.readline() == "\n"
    second = listening.as_user(firewall.ENGINE_UID)
    assert second.stdout.readline() == "\n"
    for process in (engine, stranger, second):
        end(process)
    wait(
        lambda: not listening.status.engine,
        "the engine's end",
    )


def test_it_outlives_its_agent(listening):
    listening.agent.close()
    wait(listening.try_connect, "a second agent")
    assert listening.status
    assert listening.process.poll() is None


def test_the_next_keeper_ends_what_a_fight_has_stopped(lab, listening):
    """Off for a whole quiet time of its own; then as it was before."""
    listening.die()
    without_owners(lab)
    listening.start("-m", "qubes_vpn.keeper")
    fight(lab)
    listening.die()
    lab.vpn.sysctl({"ipv4/ip_forward": 1})  # as if it had died before
    listening.start("-c", QUIETER.format(4))
    status = listening.status
    assert "before the keeper started" in status.stopped
    assert 0 < status.resumes_in <= 4
    assert not forwards(lab)
    wait(lambda: forwards(lab), "forwarding")
    assert not listening.status.stopped
    listening.die()
    listening.start("-m", "qubes_vpn.keeper")
    assert not listening.status.stopped
    assert forwards(lab)


def test_only_what_was_on_is_given_back(lab, listening):
    """Whatever the note names."""
    lab.vpn.sysctl({"ipv4/ip_forward": 0})
    listening.die()
    note = listening.path.with_name(NOTE)
    note.write_text("net/ipv4/conf/all/accept_redirects\n")
    os.chown(note, firewall.KEEPER_GID, firewall.KEEPER_GID)
    listening.start("-c", QUIETER.format(1))
    assert listening.status.stopped
    wait(lambda: not listening.status.stopped, "an end of it")
    assert not note.exists()
    assert not forwards(lab)
