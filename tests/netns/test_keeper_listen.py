"""As a unit: who is agent and who is engine is told by the kernel."""

import socket
import subprocess
import sys

import pytest

from qubes_vpn.keeper import messages
from qubes_vpn.keeper.client import KeeperClient
from qubes_vpn.policy import firewall
from tests.netns.toy import TIMEOUT, lock, wait

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
        lab.scratch.chmod(0o711)
        self.path = lab.scratch / "keeper.sock"
        words = ["-m", "qubes_vpn.keeper", "--listen", str(self.path)]
        self.process = lab.vpn.popen([sys.executable, *words])
        wait(self.path.exists, "the socket")
        wait(self.try_connect, "an answer")

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
    status, _ = listening.agent.request(messages.GetStatus())
    assert (status.phase, status.engine) == ("blocked", False)
    engine = listening.as_user(firewall.ENGINE_UID)
    assert "Done" in engine.stdout.readline()
    assert listening.agent.request(messages.GetStatus())[0].engine
    stranger = listening.as_user(65534)
    assert stranger.stdout.readline() == "\n"
    second = listening.as_user(firewall.ENGINE_UID)
    assert second.stdout.readline() == "\n"
    for process in (engine, stranger, second):
        end(process)
    wait(
        lambda: not listening.agent.request(messages.GetStatus())[0].engine,
        "the engine's end",
    )


def test_it_outlives_its_agent(listening):
    listening.agent.close()
    wait(listening.try_connect, "a second agent")
    assert listening.agent.request(messages.GetStatus())
    assert listening.process.poll() is None
