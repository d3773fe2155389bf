"""Who may be the agent's engine: the engine's user, and nobody else."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from qubes_vpn.errors import OsRefusedError
from qubes_vpn.runtime import units as made_units

pytestmark = pytest.mark.slow
STRANGER = 65534
CONNECT = """
import os, socket, sys
os.setresuid(*[int(sys.argv[2])] * 3)
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1])
print(len(sock.recv(10)))
"""


@pytest.fixture
def units(monkeypatch):
    monkeypatch.setattr(made_units, "ENGINE_WAIT_S", 2.0)
    with tempfile.TemporaryDirectory() as name:
        # pytest's own folder is closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        places = made_units.Places(
            engine=str(folder / "agent.sock"), keeper=str(folder / "no.sock")
        )
        made = made_units.Units(places, engine_uid=7079)
        yield made
        made._listener.close()


def connect_as(units, uid):
    return subprocess.Popen(
        [sys.executable, "-c", CONNECT, units._places.engine, str(uid)],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="it becomes other users")
def test_the_engines_user_is_taken_and_a_stranger_is_not(units):
    with connect_as(units, STRANGER) as stranger:
        # it is hung up on, and the wait for the engine goes on
        with connect_as(units, 7079) as engine:
            sock = units.start_engine(None)
            assert isinstance(sock, socket.socket)
            sock.close()
            engine.communicate()
        if stranger.poll() is None:
            with pytest.raises(OsRefusedError):
                units.start_engine(None)
        assert stranger.communicate()[0] in ("0\n", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="it becomes other users")
def test_a_stranger_alone_is_no_engine(units):
    with connect_as(units, STRANGER) as stranger:
        with pytest.raises(OsRefusedError, match="qubes-vpn-engine"):
            units.start_engine(None)
        assert stranger.communicate()[0] == "0\n"


def test_no_keeper_is_said(units):
    with pytest.raises(OsRefusedError, match="qubes-vpn-keeper"):
        units.start_keeper()
