"""Every fuzz target holds for its own seeds, and for a few changes of them.

The seeds hold what fuzzing has found; `make fuzz` goes on from them.
"""

import importlib
import random

import pytest

from tests.fuzz import __main__ as fuzz

TARGETS = fuzz.targets()
# what a target of these words must exist for: the parsers of untrusted bytes
PARSERS = {
    *("wire_control", "wire_messages", "wire_key_method", "config_pulled"),
    *("data_open", "wire_framing", "offload_up", "offload_down"),
    *("wire_keyfile", "wire_wkc", "qubes", "proxy", "codec", "session"),
    *("control_socket", "server_hello", "config_lexer", "config_profile"),
    *("dns", "fragments", "unpack", "token", "pem", "tls", "archive"),
    "endpoints",
}


def test_every_parser_has_a_target():
    assert {f"fuzz_{name}" for name in PARSERS} == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name):
    module = importlib.import_module(f"tests.fuzz.{name}")
    first = module.__doc__.split("\n")[0]
    assert first.endswith((".", ":"))
    for seed in module.SEEDS:
        module.one_input(seed)
    chance = random.Random(name)
    for _ in range(3 if name == "fuzz_session" else 30):
        seed = chance.choice(module.SEEDS)
        module.one_input(fuzz.mutate(seed, module.SEEDS, chance))


def test_a_target_that_fails_is_reported(tmp_path, monkeypatch):
    class Bad:
        SEEDS = (b"x",)

        @staticmethod
        def one_input(data):
            raise AssertionError

    monkeypatch.setattr(fuzz, "FOUND", tmp_path / "found")
    monkeypatch.setattr(importlib, "import_module", lambda name: Bad)
    with pytest.raises(AssertionError):
        fuzz.run_plain("bad", 1, 1, 0)
    (path,) = (tmp_path / "found").iterdir()
    assert path.read_bytes() == b"x"
