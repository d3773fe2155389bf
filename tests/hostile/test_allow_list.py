"""docs/allow-list.md says all that others can cause, and nothing else."""

import re
import typing

from qubes_vpn.config.directives import DIRECTIVES, Scope, Support
from qubes_vpn.keeper import messages as keeper
from qubes_vpn.runtime import messages as runtime
from qubes_vpn.wire import messages as wire
from tests.hostile.rows import ROOT

TEXT = (ROOT / "docs/allow-list.md").read_text()


def named(heading):
    """Give the names in the first column of the table of a section."""
    _, _, section = TEXT.partition(f"## {heading}\n")
    section, _, _ = section.partition("\n## ")
    return {
        name
        for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", row)
    }


def test_every_option_that_is_applied():
    applied = {
        name
        for name, row in DIRECTIVES.items()
        if Scope.PUSHED in row.scope
        and not row.alias
        and row.support is Support.APPLY
    }
    assert named("A server, by an option that it pushes") == applied


def test_every_message():
    kinds = {one.__name__ for one in typing.get_args(wire.ControlMessage)}
    assert named("A server, by a message inside TLS") == kinds


def test_every_request_of_the_engine():
    kinds = {one.__name__ for one in typing.get_args(keeper.EngineRequest)}
    kinds |= {one.__name__ for one in runtime.ENGINE_MESSAGES}
    assert named("The engine, if it is not ours any more") == kinds


def test_every_test_that_is_named_exists():
    for path in re.findall(r"`(tests/[\w/.]+|qubes_vpn/[\w/.]+)`", TEXT):
        assert (ROOT / path).exists(), path
