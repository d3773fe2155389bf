"""`qubes-vpn agent`: the service in a qube, started by systemd."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qubes_vpn.cli.world import World
from qubes_vpn.qubes.profiles import FOLDER
from qubes_vpn.runtime.control import DEFAULT_PATH

if TYPE_CHECKING:
    from qubes_vpn.cli.world import Subcommands


def register(commands: "Subcommands") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "agent", help="be the service of this qube (systemd starts it)"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--control", metavar="PATH", default=DEFAULT_PATH)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, world: World) -> int:  # noqa: ARG001  it speaks to the journal
    """Serve until SIGTERM."""
    from qubes_vpn.qubes.qubesdb import open_database
    from qubes_vpn.runtime.qube import run_in_qube
    from qubes_vpn.runtime.units import Places
    from qubes_vpn.system.privileges import lock_memory

    # it reads the profiles, and remembers what a person has answered
    lock_memory()
    database = open_database()
    try:
        return run_in_qube(
            database, Places(folder=args.folder, control=args.control)
        )
    finally:
        database.close()
