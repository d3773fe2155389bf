"""`qubes-vpn selftest`: what a user runs on a real system, and can paste."""

import argparse
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from qubes_vpn import __version__
from qubes_vpn.cli.world import EX_OK, World
from qubes_vpn.qubes.checks import BAD, Redactor, run_checks
from qubes_vpn.qubes.profiles import Profiles

if TYPE_CHECKING:
    from qubes_vpn.cli.world import Subcommands

EX_FOUND: Final = 1
_OUTPUT_MAX: Final = 200_000
_TIMEOUT_S: Final = 15


def register(commands: "Subcommands") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "selftest", help="look at this system; changes nothing, redacted"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, world: World) -> int:  # noqa: ARG001  it has no options
    """Print a line for each check; 1 if one is bad."""
    redact = Redactor(Profiles().names())
    print(f"qubes-vpn {__version__} selftest", file=world.out)
    bad = 0
    for result in run_checks(command_output):
        bad += result.verdict == BAD
        print(redact(str(result)), file=world.out, flush=True)
    print(f"{bad} bad", file=world.out)
    return EX_FOUND if bad else EX_OK


def command_output(command: Sequence[str]) -> tuple[int, str]:
    """Run a program that only looks; its status and what it said."""
    try:
        done = subprocess.run(  # noqa: S603  fixed programs, no shell
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        return 127, f"{command[0]}: not found"
    except (OSError, subprocess.TimeoutExpired) as error:
        return 126, str(error)
    return done.returncode, done.stdout[:_OUTPUT_MAX].decode("utf-8", "replace")
