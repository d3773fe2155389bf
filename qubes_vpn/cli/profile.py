"""`qubes-vpn profile`: the profiles that this qube keeps."""

import argparse
import getpass
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qubes_vpn.cli.check import print_sections
from qubes_vpn.cli.world import EX_CONFIG, EX_OK, EX_USAGE, World
from qubes_vpn.config.explain import Section, explain
from qubes_vpn.config.profile import (
    ClientProfile,
    Credentials,
    parse_client_profile,
)
from qubes_vpn.errors import ConfigError, Problem, printable
from qubes_vpn.qubes.profiles import FOLDER, Kept, Profiles
from qubes_vpn.runtime.sources import Source, sources
from qubes_vpn.runtime.store import (
    credentials,
    kept,
    load,
    login_lines,
    name_for,
    notes,
)
from qubes_vpn.system import clock

if TYPE_CHECKING:
    from qubes_vpn.cli.world import Subcommands

SCHEMA: Final = 1
CREDENTIAL_MAX: Final = 4096


def register(commands: "Subcommands") -> None:
    """Add the subcommand and its own."""
    parser = commands.add_parser("profile", help="import and choose profiles")
    parser.add_argument(
        "--store",
        type=Path,
        default=FOLDER,
        metavar="DIR",
        help=f"not {FOLDER}",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    importer = verbs.add_parser("import", help="from files, folders and zips")
    importer.add_argument("path", type=Path, nargs="+")
    importer.add_argument("--name", help="of the one profile")
    importer.add_argument(
        "--replace", action="store_true", help="profiles of the same name"
    )
    importer.add_argument(
        "--skip-bad", action="store_true", help="import the others"
    )
    listing = verbs.add_parser("list", help="names and servers")
    listing.add_argument("--json", action="store_true")
    show = verbs.add_parser("show", help="say what a profile does")
    show.add_argument("name")
    use = verbs.add_parser("use", help="make a profile the one in use")
    use.add_argument("name")
    remove = verbs.add_parser("remove", help="forget profiles")
    remove.add_argument("name", nargs="+")
    login = verbs.add_parser(
        "set-credentials",
        help="keep a user name and password",
        description="Asks for them; without a terminal, reads two lines.",
    )
    login.add_argument("name")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, world: World) -> int:
    """Do what the verb says. Errors of the store leave through main()."""
    verbs: dict[str, Callable[[argparse.Namespace, World, Profiles], int]] = {
        "import": _import,
        "list": _list,
        "show": _show,
        "use": _use,
        "remove": _remove,
        "set-credentials": _set_credentials,
    }
    profiles = Profiles(args.store, owner=os.geteuid())
    return verbs[args.verb](args, world, profiles)


# -- import --------------------------------------------------------------------


def _import(args: argparse.Namespace, world: World, store: Profiles) -> int:
    entries: list[Kept] = []
    bad = 0
    there = set() if args.replace else set(store.listed())
    for path in args.path:
        for source in sources(path):
            try:
                profile = parse_client_profile(
                    source.text, source.path, source.read_file
                )
            except ConfigError as error:
                bad += 1
                _say_refused(error, world)
                continue
            taken = {one.name for one in entries} | there
            name = _name(args, source, taken)
            entries.append(kept(name, profile))
            print(_line(name, profile), file=world.out)
    if args.name and len(entries) > 1:
        print("profile import: --name is for one profile", file=world.err)
        return EX_USAGE
    if bad and not args.skip_bad:
        count = f"{bad} of {bad + len(entries)} profiles cannot be used"
        print(
            f"{count}: nothing was imported. --skip-bad imports the others.",
            file=world.err,
        )
        return EX_CONFIG
    store.add(entries)
    print(f"{len(entries)} imported", file=world.out)
    return EX_CONFIG if bad else EX_OK


def _name(args: argparse.Namespace, source: Source, taken: set[str]) -> str:
    if not args.name:
        return name_for(source.title, taken)
    if name_for(args.name, set()) != args.name:
        message = "a name has letters, digits, _, . and -, 48 at most"
        raise ConfigError([Problem(args.name, 0, 0, message)])
    if args.name in taken:
        message = "there is a profile of that name; see --replace"
        raise ConfigError([Problem(args.name, 0, 0, message)])
    return str(args.name)


def _say_refused(error: ConfigError, world: World) -> None:
    more = len(error.problems) - 1
    tail = f" (and {more} more; see qubes-vpn check)" if more else ""
    print(f"refused {error.problems[0]}{tail}", file=world.err)


def _line(name: str, profile: ClientProfile) -> str:
    remote = profile.remotes[0]
    more = len(profile.remotes) - 1
    tail = f" and {more} more" if more else ""
    server = f"{remote.host}:{remote.port} {remote.proto}{tail}"
    return printable(f"{name:24} {server}")


# -- the others ----------------------------------------------------------------


def _list(args: argparse.Namespace, world: World, store: Profiles) -> int:
    current = store.current
    found: list[tuple[str, ClientProfile | None, str]] = []
    for name in store.listed():
        try:
            found.append((name, load(store, name), ""))
        except ConfigError as error:
            found.append((name, None, str(error.problems[0])))
    if args.json:
        rows = [
            {
                "name": name,
                "current": name == current,
                "ok": profile is not None,
                "server": profile.remotes[0].host if profile else None,
                "servers": len(profile.remotes) if profile else 0,
                "credentials": credentials(store, name) is not None,
            }
            for name, profile, _ in found
        ]
        value = {"v": SCHEMA, "profiles": rows}
        print(json.dumps(value, indent=2), file=world.out)
        return EX_OK
    for name, profile, problem in found:
        mark = "*" if name == current else " "
        line = _line(name, profile) if profile else f"{name:24} {problem}"
        print(f"{mark} {line}", file=world.out)
    if not found:
        print("No profile yet: qubes-vpn profile import FILE", file=world.out)
    return EX_OK


def _show(args: argparse.Namespace, world: World, store: Profiles) -> int:
    profile = load(store, args.name)
    sections = [one for one in explain(profile, clock.unix()) if one.lines]
    missing = notes(store, args.name)
    if missing:
        sections.append(Section("Not applied", missing))
    print_sections(sections, world)
    return EX_OK


def _use(args: argparse.Namespace, world: World, store: Profiles) -> int:
    store.use(args.name)
    print(f"{args.name} is in use", file=world.out)
    return EX_OK


def _remove(args: argparse.Namespace, world: World, store: Profiles) -> int:
    for name in args.name:
        store.remove(name)
        print(f"{name} removed", file=world.out)
    return EX_OK


def _set_credentials(
    args: argparse.Namespace, world: World, store: Profiles
) -> int:
    profile = load(store, args.name)
    if profile.auth_user_pass is None:
        print(f"{args.name} asks for no password", file=world.err)
        return EX_USAGE
    if world.stdin.isatty():
        print("User name: ", end="", file=world.out, flush=True)
        username = world.stdin.readline(CREDENTIAL_MAX).rstrip("\n")
        password = getpass.getpass("Password: ", world.out)
    else:
        username = world.stdin.readline(CREDENTIAL_MAX).rstrip("\r\n")
        password = world.stdin.readline(CREDENTIAL_MAX).rstrip("\r\n")
    if not username or not password:
        print("needs a user name and a password, a line each", file=world.err)
        return EX_USAGE
    login = Credentials(username, password)
    store.set_credentials(args.name, login_lines(login))
    print(f"credentials of {args.name} kept", file=world.out)
    return EX_OK
