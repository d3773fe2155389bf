"""`qubes-vpn adopt`: take over from another VPN program in this qube."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qubes_vpn.cli.world import EX_CONFIG, EX_OK, EX_OSERR, World
from qubes_vpn.config.profile import parse_client_profile
from qubes_vpn.config.write import write_profile
from qubes_vpn.errors import ConfigError, VpnError
from qubes_vpn.qubes.agent import (
    foreign_programs,
    printable,
    running_commands,
)
from qubes_vpn.qubes.foreign import Found, disable, find
from qubes_vpn.qubes.profiles import FOLDER, Profiles
from qubes_vpn.runtime.files import profile_reader, read_profile

if TYPE_CHECKING:
    from qubes_vpn.cli.world import Subcommands


def register(commands: "Subcommands") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "adopt",
        help="import what another VPN program left in this qube",
        description="Lists the profiles and hooks of other VPN programs. With"
        " --import the profiles are copied; with --disable the hooks are"
        " renamed. Nothing is removed.",
    )
    parser.add_argument("--import", action="store_true", dest="take")
    parser.add_argument("--disable", action="store_true")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--root", type=Path, default=Path("/"))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, world: World) -> int:
    """List, and do what was asked. 78 if a profile could not be taken."""
    found = list(find(args.root))
    if not found:
        print("no other VPN program has left anything here", file=world.out)
    status = EX_OK
    for one in found:
        print(
            f"{one.kind} of {one.program}: {printable(str(one.path))}",
            file=world.out,
        )
        if one.kind == "profile" and args.take:
            status = _take(one, Profiles(args.folder), world) or status
        if one.kind == "hook" and args.disable:
            status = _disable(one, world) or status
    for name in foreign_programs(running_commands()):
        print(
            f"{name} runs now: stop it, or this qube stays closed",
            file=world.out,
        )
    return status


def _take(one: Found, profiles: Profiles, world: World) -> int:
    path = str(one.path)
    name = "".join(c if c.isalnum() else "_" for c in one.path.stem)[:48]
    try:
        text = read_profile(path)
        profile = parse_client_profile(text, path, profile_reader(path))
        profiles.store(name or "adopted", write_profile(profile))
    except ConfigError as error:
        for problem in error.problems:
            print(f"  {printable(str(problem))}", file=world.err)
        return EX_CONFIG
    except VpnError as error:
        print(f"  {printable(str(error))}", file=world.err)
        return EX_CONFIG
    print(f"  imported as {name}", file=world.out)
    return EX_OK


def _disable(one: Found, world: World) -> int:
    try:
        path = disable(one)
    except OSError as error:
        print(f"  not disabled: {error.strerror}", file=world.err)
        return EX_OSERR
    print(f"  now {printable(str(path))}, and not started", file=world.out)
    return EX_OK
