"""The man page of `qubes-vpn` names every option and status, and no other."""

import argparse
import re
from pathlib import Path

from qubes_vpn.cli import world
from qubes_vpn.cli.main import _parser

TOP = Path(__file__).resolve().parents[3]
PAGE = (TOP / "docs/man/qubes-vpn.1").read_text().replace("\\-", "-")


def options(parser):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from options(each)
        yield from (o for o in action.option_strings if o.startswith("--"))


def test_the_options_are_those_of_the_parser():
    assert set(re.findall(r"--[a-z0-9-]+", PAGE)) == set(options(_parser([])))


def test_every_status_that_is_used_is_named():
    _, _, text = PAGE.partition(".SH EXIT STATUS")
    named = {int(number) for number in re.findall(r"(\d+):", text)}
    used = {
        value for name, value in vars(world).items() if name.startswith("EX_")
    }
    assert used | {130} <= named
