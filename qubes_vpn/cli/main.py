"""`qubes-vpn`: what a person types in a VPN qube, or on a server."""

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Final, NoReturn

from qubes_vpn import __version__
from qubes_vpn.cli.world import (
    EX_CONFIG,
    EX_NOPERM,
    EX_OSERR,
    EX_UNAVAILABLE,
    EX_USAGE,
    World,
)
from qubes_vpn.errors import (
    ConfigError,
    OsRefusedError,
    UnavailableError,
    UnreadableError,
    UsageError,
    VpnError,
)

# Each is a module here with register() and run(); only the one that is asked
# for is imported, since some cost more than all the rest.
COMMANDS: Final = {
    "client": "client",
    "status": "status",
    "connect": "status",
    "disconnect": "status",
    "lockdown": "lockdown",
    "check": "check",
    "profile": "profile",
    "server": "server",
    "genkey": "genkey",
    "pki": "pki",
    "passwd": "passwd",
    "leaktest": "leaktest",
    "agent": "agent",
    "answer": "answer",
    "report": "report",
    "portal": "portal",
    "adopt": "adopt",
    "selftest": "selftest",
    "rpc": "rpc",
    "menu": "menu",
}
STATUS_OF: Final = (
    (ConfigError, EX_CONFIG),
    (UnreadableError, EX_NOPERM),
    (UnavailableError, EX_UNAVAILABLE),
    (UsageError, EX_USAGE),
    (OsRefusedError, EX_OSERR),
)


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the words, and exits with EX_USAGE."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message."""
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: error: {message}\n")


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = Parser(
        prog="qubes-vpn",
        description="This qube's traffic goes through the VPN, or nowhere.",
    )
    parser.add_argument(
        "--version", action="version", version=f"qubes-vpn {__version__}"
    )
    parser.add_argument(
        "--debug", action="store_true", help="show tracebacks of errors"
    )
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True
    )
    named = [word for word in words if word in COMMANDS][:1]
    modules = [COMMANDS[word] for word in named] or COMMANDS.values()
    for module in dict.fromkeys(modules):
        importlib.import_module(f"qubes_vpn.cli.{module}").register(commands)
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Run one subcommand. Gives the exit status."""
    words = sys.argv[1:] if args is None else args
    options = _parser(words).parse_args(words)
    world = World(sys.stdout, sys.stderr, sys.stdin)
    try:
        status: int = options.run(options, world)
    except VpnError as error:
        if options.debug:
            traceback.print_exc()
        print(f"qubes-vpn: {error}", file=sys.stderr)
        return next(
            (code for kind, code in STATUS_OF if isinstance(error, kind)), 1
        )
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # whoever read our output has gone, as head does
        sys.stderr.close()
        return 141
    return status


if __name__ == "__main__":
    sys.exit(main())
