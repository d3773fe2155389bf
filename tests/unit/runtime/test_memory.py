"""What one session leaves for the next."""

from dataclasses import replace

import pytest

from qubes_vpn.config.profile import Credentials
from qubes_vpn.engine.client import ClientEngine
from qubes_vpn.engine.effects import Ended
from qubes_vpn.engine.traffic import Traffic
from qubes_vpn.runtime.memory import Memory
from tests.unit.engine.pair import profiles

ALICE = Credentials("alice", "wonder land")
ANSWER = Credentials("alice", "CRV1::state::4711")
LOST = Ended("ping-restart")


def engine(credentials, **fields):
    profile = replace(profiles()[0], auth_user_pass=Credentials(), **fields)
    return profile, ClientEngine(
        profile,
        profile.remotes[0],
        entropy=bytes,
        traffic=Traffic(),
        credentials=credentials,
        token=("alice", "t"),
        passphrase=b"open",
    )


def learned(memory, ended, **fields):
    profile, session = engine(memory.credentials, **fields)
    memory.learn(session, profile, ended)
    return memory


def test_an_answer_is_for_one_session():
    memory = learned(Memory(ALICE), Ended("challenge", next_credentials=ANSWER))
    assert memory.credentials == ANSWER
    assert learned(memory, LOST).credentials == ALICE


@pytest.mark.parametrize("nocache", [False, True])
def test_what_was_answered_is_kept_unless_the_profile_forbids(nocache):
    profile, session = engine(ALICE, auth_nocache=nocache)
    memory = Memory()
    memory.learn(session, profile, LOST)
    expected = (None, None) if nocache else (ALICE, b"open")
    assert (memory.credentials, memory.passphrase) == expected


def test_refused_credentials_are_asked_for_again():
    refused = Ended("auth-failed", drop_credentials=True)
    memory = learned(Memory(ALICE), refused)
    assert memory.credentials == Credentials("alice", None)


@pytest.mark.parametrize("drop", [False, True])
def test_a_token_lives_until_it_is_refused(drop):
    memory = learned(Memory(ALICE), Ended("auth-token", drop_token=drop))
    assert memory.token == (None if drop else ("alice", "t"))


def test_shows_no_secret():
    memory = Memory(ALICE, ANSWER, ("alice", "t0ken"), b"open")
    for secret in ("wonder", "4711", "t0ken", "open"):
        assert secret not in repr(memory)
