"""`python -m bench`: its choices, and how results come together."""

import argparse
import json
import sys

import pytest

from bench import __main__ as command
from bench.run import MismatchError
from bench.sections import SECTIONS, Run


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    return command.main()


def test_the_list_says_what_each_section_asks(monkeypatch, capsys):
    assert run(monkeypatch, "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(SECTIONS)
    assert all(len(line) > 20 for line in lines)


def test_an_unknown_section_is_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--only", "udp,nonsense")
    assert "no section nonsense" in capsys.readouterr().err


def test_quick_is_a_default_that_may_be_changed(monkeypatch):
    words = ["bench", "--quick", "--mib", "7"]
    monkeypatch.setattr(sys, "argv", words)
    given = command.arguments()
    assert (given.rounds, given.mib, given.seconds) == (1, 7, 1.0)


def test_a_section_measured_again_replaces_itself_alone(tmp_path, monkeypatch):
    path = tmp_path / "results/day.json"
    given = argparse.Namespace(rounds=1, mib=1, seconds=1.0)
    given.python, given.console = sys.executable, ""
    for name, value in (("tcp", 1.0), ("udp", 2.0), ("tcp", 3.0000004)):
        monkeypatch.setitem(
            SECTIONS, name, lambda run, value=value: run.add("m", "v", value)
        )
        SECTIONS[name].__doc__ = "a question"
        given.only = [name]
        assert command.measure(given, path) == [name]
    sections = json.loads(path.read_text())["sections"]
    assert list(sections) == ["udp", "tcp"]
    assert sections["udp"]["figures"] == {"m": {"v": [2.0]}}
    assert sections["tcp"]["figures"] == {"m": {"v": [3.0]}}


def test_a_machine_that_has_run_need_not_boot_again(tmp_path):
    # as pytest prints it with -rP, without the console's word before it
    log = tmp_path / "log"
    log.write_text("ours up: median 35.0 Mbit/s, 30.5 to 38.9\n")
    made = Run("kernel", 1, 1, 1.0, console=str(log))
    SECTIONS["kernel"](made)
    assert made.figures == {"up, Mbit/s": {"qubes-vpn": [30.5, 35.0, 38.9]}}


def test_what_moved_other_bytes_is_not_reported(tmp_path, monkeypatch):
    def differ(run):
        raise MismatchError("one less")

    given = argparse.Namespace(rounds=1, mib=1, seconds=1.0)
    given.python, given.console, given.only = sys.executable, "", ["a", "b"]
    monkeypatch.setitem(SECTIONS, "a", differ)
    monkeypatch.setitem(SECTIONS, "b", lambda run: run.add("m", "v", 1.0))
    SECTIONS["b"].__doc__ = "a question"
    path = tmp_path / "day.json"
    assert command.measure(given, path) == ["b"]
    assert list(json.loads(path.read_text())["sections"]) == ["b"]
