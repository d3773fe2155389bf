"""`qubes-vpn lockdown`: apply the lock, remove it.

The lock is a shell script beside the package, which the boot unit runs too;
this only passes the words on.
"""

import argparse
import subprocess
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from qubes_vpn.cli.world import World

if TYPE_CHECKING:
    from qubes_vpn.cli.world import Subcommands


def register(commands: "Subcommands") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "lockdown", help="close the network, whatever else runs"
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    apply = verbs.add_parser("apply", help="close; may be repeated")
    apply.add_argument("--uplink", metavar="DEV", help="default: eth0")
    apply.set_defaults(run=run_apply)
    remove = verbs.add_parser("remove", help="the only undo")
    remove.add_argument("--open-network", action="store_true", required=True)
    remove.set_defaults(run=run_remove)


def run_apply(args: argparse.Namespace, world: World) -> int:
    """Load the lock. The script's exit status: 0, 69 or 71."""
    words = ["--uplink", args.uplink] if args.uplink else []
    return _script("apply", *words, world=world)


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
