"""Words between keeper and engine that nobody answers."""

import select
import socket

import pytest

from qubes_vpn.keeper import client, messages, talk
from qubes_vpn.keeper.client import KeeperClient, KeeperGoneError


@pytest.fixture
def ends():
    """A client, and the keeper's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield KeeperClient(ours), theirs


def serve(sock):
    """Take one record, and give the request that it was."""
    taken = []

    def do(request, received):
        taken.append(request)
        return messages.Done(), []

    talk.serve(sock, talk.ENGINE, do)
    return taken[0]


def test_a_heartbeat_has_no_answer(ends):
    engine, keeper = ends
    engine.beat()
    assert serve(keeper) == messages.Heartbeat()
    assert not select.select([engine], [], [], 0)[0]


def test_a_keeper_that_does_not_read_is_gone(ends, monkeypatch):
    engine, keeper = ends
    engine.beat()
    engine.beat()  # it may be late
    monkeypatch.setattr(client, "REQUEST_TIMEOUT", 0.0)
    with pytest.raises(KeeperGoneError, match="does not read"):
        engine.beat()
    serve(keeper)
    serve(keeper)
    engine.beat()


def test_a_keeper_that_ended_is_gone(ends):
    engine, keeper = ends
    keeper.close()
    with pytest.raises(KeeperGoneError, match="no heartbeat"):
        engine.beat()
