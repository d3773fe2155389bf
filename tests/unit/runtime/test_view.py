"""What is told of keeper and engine, and when."""

from ipaddress import ip_address

import pytest

from qubes_vpn.keeper.messages import KeeperStatus
from qubes_vpn.policy.phase import Endpoint, Transport
from qubes_vpn.runtime.messages import Candidate, Prompt, Report
from qubes_vpn.runtime.view import View

END = Endpoint(ip_address("192.0.2.10"), Transport.UDP, 1194)
CANDIDATES = (Candidate(0, "vpn.example", END),)


@pytest.mark.parametrize(
    ("phase", "stage", "line"),
    [
        ("blocked", "wait", ""),
        ("connecting", "reach", "reach 192.0.2.10"),
        ("connecting", "tls", "tls 192.0.2.10"),
        # the engine alone, or the keeper alone, is not enough
        ("connecting", "connected", ""),
        ("connected", "wait", ""),
        ("connected", "connected", "connected 192.0.2.10 port 1194/udp"),
    ],
)
def test_the_line_for_a_person(phase, stage, line):
    report = Report(stage, candidate=0)
    view = View("home", phase, report, CANDIDATES)
    assert view.line().strip() == line
    assert view.connected == line.startswith("connected")


def test_a_candidate_that_is_not_there_is_none():
    for number in (-1, 1):
        view = View("home", report=Report("reach", candidate=number))
        assert view.remote() == {}
        assert view.status(0.0)["remote"] == {}


def test_a_question_is_asked_once_and_not_for_ever():
    view = View("home")
    prompt = Prompt("password", "Password:", timeout=60.0)
    view.ask(prompt, 100.0)
    asked = {"kind": "password", "text": "Password:", "seconds": 1}
    assert view.status(159.5)["prompt"] == asked
    assert view.answered() == prompt
    assert view.answered() is None
    view.ask(prompt, 100.0)
    assert view.status(161.0)["prompt"] is None
    assert view.answered() is None


def test_how_long_it_is_connected_is_no_news():
    view = View("home", report=Report("connected", connected_at=100.0))
    assert view.status(160.4)["connected_for"] == 60
    # the engine's word: it may be anything
    assert view.status(99.0)["connected_for"] == 0
    assert View("home").status(160.0)["connected_for"] == 0


def test_the_keepers_words_are_taken_over():
    view = View("home")
    view.take(KeeperStatus("blocked", repairs=21, culprit="nft", stopped="x"))
    status = view.status(0.0)
    assert (status["repairs"], status["culprit"]) == (21, "nft")
    assert status["stopped"] == "x"
