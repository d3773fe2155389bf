"""`qubes-vpn report`: a redacted bundle for a bug report, as text."""

import argparse
import json
from typing import TYPE_CHECKING, Final

from qubes_vpn import __version__
from qubes_vpn.cli.selftest import command_output
from qubes_vpn.cli.world import EX_OK, World
from qubes_vpn.errors import UnavailableError
from qubes_vpn.qubes.checks import Redactor, run_checks
from qubes_vpn.qubes.profiles import Profiles
from qubes_vpn.runtime.control import DEFAULT_PATH, ControlClient

if TYPE_CHECKING:
    from qubes_vpn.cli.world import Subcommands

JOURNAL_LINES: Final = "200"
_UNITS: Final = ("lockdown", "keeper", "engine", "agent")
_LOOKS: Final = (
    ("nft", "list", "ruleset"),
    ("ip", "rule", "show"),
    ("ip", "route", "show", "table", "all"),
    ("ip", "-6", "rule", "show"),
    ("ip", "-6", "route", "show", "table", "all"),
    ("ip", "-details", "link", "show"),
    ("systemctl", "--no-pager", "list-units", "qubes*"),
    (
        *("journalctl", "--no-pager", "--boot", "--lines", JOURNAL_LINES),
        *(word for name in _UNITS for word in ("-u", f"qubes-vpn-{name}")),
    ),
)


def register(commands: "Subcommands") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "report",
        help="write what a bug report needs, without names and addresses",
        description="Addresses, host names, profiles and users are replaced by"
        " names that stay the same within the report. Read it before you send"
        " it.",
    )
    parser.add_argument("--control", metavar="PATH", default=DEFAULT_PATH)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, world: World) -> int:
    """Print everything, redacted."""
    redact = Redactor(Profiles().names())

    def section(title: str, text: str) -> None:
        print(f"== {title}\n{redact(text)}\n", file=world.out, flush=True)

    section("version", __version__)
    section("selftest", "\n".join(map(str, run_checks(command_output))))
    section("status", _status(args.control))
    for command in _LOOKS:
        section(" ".join(command), command_output(command)[1])
    return EX_OK


def _status(path: str) -> str:
    try:
        client = ControlClient(path)
    except UnavailableError as error:
        return str(error)
    try:
        return json.dumps(client.ask("status"), indent=1)
    finally:
        client.close()
