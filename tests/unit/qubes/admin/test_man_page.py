"""The man page of `qvm-vpn` names every command and option, and no other."""

import argparse
import re
from pathlib import Path

from qubes_vpn.cli.admin import make_parser

PAGE = Path(__file__).resolve().parents[4] / "docs/man/qvm-vpn.1"


def parsers():
    parser = make_parser()
    yield "", parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def test_the_page_and_the_parser_agree():
    text = PAGE.read_text().replace("\\-", "-")
    options = {
        option
        for _, parser in parsers()
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    }
    assert set(re.findall(r"--[a-z-]+", text)) == options
    for command, _ in parsers():
        assert re.search(rf"^\.B[IR]* \"?{command}", text, re.MULTILINE), (
            command
        )
