"""`qubes-vpn menu`: what the menu entries open, in any terminal."""

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qubes_vpn.cli.rpc import ask, parse_apart
from qubes_vpn.cli.world import (
    EX_CONFIG,
    EX_NOPERM,
    EX_OK,
    EX_UNAVAILABLE,
    EX_USAGE,
    World,
)
from qubes_vpn.qubes.agent import printable
from qubes_vpn.qubes.profiles import (
    FOLDER,
    PROFILE_MAX,
    Profiles,
    checked_name,
)
from qubes_vpn.runtime.control import DEFAULT_PATH
from qubes_vpn.runtime.files import read_bounded

if TYPE_CHECKING:
    from qubes_vpn.cli.world import Subcommands


def register(commands: "Subcommands") -> None:
    """Add the subcommand."""
    parser = commands.add_parser("menu", help="choose or add a profile")
    parser.add_argument("what", choices=("switch", "import"))
    parser.add_argument("--control", metavar="PATH", default=DEFAULT_PATH)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, world: World) -> int:
    """Ask what is to be done, and do it."""
    if os.geteuid() != 0:
        return _as_root(world)
    if args.what == "switch":
        return _switch(args, world)
    return _import(args, world)


def _as_root(world: World) -> int:
    sudo = shutil.which("sudo")
    if sudo is not None:
        words = [sudo, sys.executable, "-I", "-m", "qubes_vpn", *sys.argv[1:]]
        os.execv(sudo, words)  # noqa: S606  our own command again, no shell
    print(
        "this needs root: from dom0, qvm-run -u root QUBE xterm", file=world.err
    )
    return EX_NOPERM


def _line(question: str, world: World) -> str:
    print(question, end=" ", file=world.out, flush=True)
    return world.stdin.readline(4096).strip()


def _switch(args: argparse.Namespace, world: World) -> int:
    names = Profiles(args.folder).names()
    if not names:
        print("there is no profile: import one first", file=world.err)
        return EX_UNAVAILABLE
    for number, name in enumerate(names, 1):
        print(f"{number:3} {name}", file=world.out)
    word = _line("which one?", world)
    if word.isdigit() and 0 < int(word) <= len(names):
        word = names[int(word) - 1]
    if word not in names:
        print("none chosen", file=world.err)
        return EX_USAGE
    answer = ask(args.control, "switch", profile=word)
    if not answer.get("ok"):
        print(printable(str(answer.get("error"))), file=world.err)
        return EX_UNAVAILABLE
    return EX_OK


def _import(args: argparse.Namespace, world: World) -> int:
    path = Path(_line("which file?", world)).expanduser()
    try:
        text = read_bounded(path, PROFILE_MAX).decode("utf-8-sig")
        name = checked_name(_line("its name here?", world) or path.stem)
    except (OSError, ValueError) as error:
        print(printable(str(error)), file=world.err)
        return EX_USAGE
    verdict = parse_apart(text)
    if not verdict["ok"]:
        for problem in verdict["problems"]:
            print(printable(problem), file=world.err)
        return EX_CONFIG
    Profiles(args.folder).store(name, verdict["text"], verdict["login"])
    print(f"imported as {name}", file=world.out)
    ask(args.control, "reload")
    return EX_OK
