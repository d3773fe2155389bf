"""`qubes-vpn check`: what a profile would do, or all that is wrong with it."""

import argparse
import json
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qubes_vpn.cli.world import EX_CONFIG, EX_OK, EX_USAGE, World
from qubes_vpn.config.explain import SCHEMA, Section, describe, explain
from qubes_vpn.config.explain_server import describe_server, explain_server
from qubes_vpn.config.profile import ClientProfile, parse_client_profile
from qubes_vpn.config.server_profile import ServerProfile, parse_server_profile
from qubes_vpn.config.write import write_profile
from qubes_vpn.errors import ConfigError
from qubes_vpn.runtime.files import profile_reader, read_profile

if TYPE_CHECKING:
    from qubes_vpn.cli.world import Subcommands

WIDTH: Final = 80


def register(commands: "Subcommands") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "check",
        help="say what a profile would do, or what is wrong with it",
        description=(
            "Reads a profile and every file that it names, and connects to"
            " nothing. Keys and passwords are never shown, but by --print."
        ),
        epilog="Exit status: 0, or 78 when something is wrong with it.",
    )
    parser.add_argument("profile", type=Path)
    parser.add_argument(
        "--server", action="store_true", help="it is a server's profile"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs")
    form.add_argument(
        "--print",
        action="store_true",
        dest="whole",
        help="write one profile that needs no other file, secrets included",
    )
    parser.add_argument(
        "--redact",
        action="store_true",
        help="leave the secrets out of --print; nothing else shows any",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, world: World) -> int:
    """Check one profile. UnreadableError leaves through main()."""
    if args.whole and args.server:
        print("check: --print is for a client's profile", file=world.err)
        return EX_USAGE
    path = str(args.profile)
    text = read_profile(path)
    reader = profile_reader(path)
    try:
        if args.server:
            server = parse_server_profile(text, path, reader)
            _show_server(server, world, as_json=args.json)
            return EX_OK
        profile = parse_client_profile(text, path, reader)
    except ConfigError as error:
        return _show_problems(error, world, as_json=args.json)
    if args.whole:
        print(
            write_profile(profile, redact=args.redact), end="", file=world.out
        )
    else:
        _show_client(profile, world, as_json=args.json)
    return EX_OK


def _show_client(
    profile: ClientProfile, world: World, *, as_json: bool
) -> None:
    now = time.time()
    if as_json:
        _print_json(describe(profile, now), world)
    else:
        print_sections(explain(profile, now), world)


def _show_server(
    profile: ServerProfile, world: World, *, as_json: bool
) -> None:
    if as_json:
        _print_json(describe_server(profile), world)
    else:
        print_sections(explain_server(profile), world)


def _show_problems(error: ConfigError, world: World, *, as_json: bool) -> int:
    if as_json:
        problems = [
            {
                "file": one.file,
                "line": one.line,
                "column": one.column,
                "code": one.code,
                "message": one.message,
            }
            for one in error.problems
        ]
        _print_json({"v": SCHEMA, "ok": False, "problems": problems}, world)
    else:
        for one in error.problems:
            print(one, file=world.err)
    return EX_CONFIG


def _print_json(value: dict[str, Any], world: World) -> None:
    print(json.dumps(value, indent=2), file=world.out)


def print_sections(sections: Iterable[Section], world: World) -> None:
    """Print sections, in lines of at most WIDTH characters."""
    for number, section in enumerate(sections):
        if number:
            print(file=world.out)
        print(section.title, file=world.out)
        for line in section.lines:
            wrapped = textwrap.fill(
                line,
                WIDTH,
                initial_indent="  ",
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
            print(wrapped, file=world.out)
