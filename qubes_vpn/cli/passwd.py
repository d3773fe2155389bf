"""`qubes-vpn passwd`: the server's password file."""

import argparse
import getpass
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from qubes_vpn.cli.world import (
    EX_CANTCREAT,
    EX_OK,
    EX_USAGE,
    World,
    write_secret,
)
from qubes_vpn.crypto.passwords import SALT_SIZE, hash_password

if TYPE_CHECKING:
    from qubes_vpn.cli.world import Subcommands

# what OpenVPN 2 leaves of a user name (ssl_verify.c, COMMON_NAME_CHAR)
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")


def register(commands: "Subcommands") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "passwd", help="set or remove a user's password on the server"
    )
    parser.add_argument("file", type=Path, help="the password file")
    parser.add_argument("user")
    parser.add_argument("--delete", action="store_true", help="remove the user")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, world: World) -> int:
    """Set one password: asked for twice, or one line of standard input."""
    if not _NAME.fullmatch(args.user):
        print("a user name has 1 to 64 of A-Z a-z 0-9 _ . @ -", file=world.err)
        return EX_USAGE
    lines = _others(args.file, args.user, world)
    if not args.delete:
        password = _ask(world)
        if not password:
            print("the password is empty, or not the same", file=world.err)
            return EX_USAGE
        stored = hash_password(password, secrets.token_bytes(SALT_SIZE))
        lines.append(f"{args.user}:{stored}")
    try:
        content = "".join(f"{line}\n" for line in lines)
        write_secret(args.file, content.encode(), replace=True)
    except OSError as error:
        print(f"{args.file}: {error.strerror}", file=world.err)
        return EX_CANTCREAT
    return EX_OK


def _others(path: Path, user: str, world: World) -> list[str]:
    if not path.exists():
        return []
    lines = world.read_text(path).splitlines()
    return [line for line in lines if not line.startswith(f"{user}:")]


def _ask(world: World) -> str:
    if not world.stdin.isatty():
        return world.stdin.readline().rstrip("\r\n")
    first = getpass.getpass("Password: ")
    return first if getpass.getpass("Again: ") == first else ""
