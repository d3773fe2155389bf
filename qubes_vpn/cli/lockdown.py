"""`qubes-vpn lockdown`: apply the lock, check it, remove it.

The lock is a shell script beside the package, which the boot unit runs too;
this only passes the words on. The check asks the kernel.
"""

import argparse
import grp
import json
import os
import subprocess
import textwrap
from dataclasses import asdict
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Final

from qubes_vpn.cli.world import EX_OK, EX_UNAVAILABLE, World
from qubes_vpn.errors import OsRefusedError

if TYPE_CHECKING:
    from qubes_vpn.cli.world import Subcommands

INDENT: Final = " " * 15
WIDTH: Final = 80


def register(commands: "Subcommands") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "lockdown", help="close the network, whatever else runs"
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    apply = verbs.add_parser("apply", help="close; may be repeated")
    apply.add_argument("--uplink", metavar="DEV", help="default: eth0")
    apply.set_defaults(run=run_apply)
    check = verbs.add_parser("check", help="is every layer in force?")
    check.add_argument("--uplink", metavar="DEV", default="eth0")
    check.add_argument("--json", action="store_true", help="for programs")
    check.set_defaults(run=run_check)
    remove = verbs.add_parser("remove", help="the only undo")
    remove.add_argument("--open-network", action="store_true", required=True)
    remove.set_defaults(run=run_remove)


def run_apply(args: argparse.Namespace, world: World) -> int:
    """Load the lock. The script's exit status: 0, 69 or 71."""
    words = ["--uplink", args.uplink] if args.uplink else []
    return _script("apply", *words, world=world)


def run_check(args: argparse.Namespace, world: World) -> int:
    """Print each thing looked at; 0 if all is well, 69 if not."""
    from qubes_vpn.keeper.audit import audit

    if os.geteuid() != 0:
        raise OsRefusedError("only root sees the rules: run it as root")
    rows = audit(args.uplink, _keeper_gid())
    ok = all(row.ok for row in rows)
    if args.json:
        answer = {"v": 1, "ok": ok, "rows": [asdict(row) for row in rows]}
        world.out.write(json.dumps(answer) + "\n")
    else:
        for row in rows:
            word = "pass" if row.ok else "FAIL"
            world.out.write(f"{word}  {row.layer:9}{row.what}\n")
            world.out.writelines(f"{line}\n" for line in _wrap(row.detail))
        world.out.write(f"{judgement([row.ok for row in rows])}\n")
    return EX_OK if ok else EX_UNAVAILABLE


def judgement(ok: list[bool]) -> str:
    """Say in one line what the rows come to."""
    if all(ok):
        return "The lock is in force."
    return (
        f"{ok.count(False)} of {len(ok)} do not hold: something may leave."
        " `sudo qubes-vpn lockdown apply`\ncloses; a running keeper mends it by"
        " itself, and its journal says who did it."
    )


def _wrap(detail: str) -> list[str]:
    return textwrap.wrap(
        detail, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT
    )


def _keeper_gid() -> int:
    from qubes_vpn.policy.firewall import GROUP, KEEPER_GID

    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return KEEPER_GID


def run_remove(args: argparse.Namespace, world: World) -> int:
    """Unload the lock."""
    assert args.open_network
    return _script("remove", "--open-network", world=world)


def _script(*words: str, world: World) -> int:
    with as_file(files("qubes_vpn.lockdown") / "lockdown.sh") as path:
        done = subprocess.run(  # noqa: S603 our own script, words as argv
            ["/bin/sh", str(path), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    world.err.write(done.stdout)
    return done.returncode
