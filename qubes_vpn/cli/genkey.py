"""`qubes-vpn genkey`: the key files that openvpn --genkey makes."""

import argparse
import base64
import binascii
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

from qubes_vpn.cli.world import EX_CANTCREAT, EX_OK, World, write_secret
from qubes_vpn.crypto import genkey
from qubes_vpn.errors import ConfigError, Problem

if TYPE_CHECKING:
    from qubes_vpn.cli.world import Subcommands

_STATIC = ("secret", "tls-auth", "tls-crypt")
_TYPES = (*_STATIC, "tls-crypt-v2-server", "tls-crypt-v2-client", "auth-token")


def register(commands: "Subcommands") -> None:
    """Add the subcommand."""
    parser = commands.add_parser("genkey", help="make a key file")
    parser.add_argument("type", choices=_TYPES)
    parser.add_argument("file", type=Path, help="where to write it (0600)")
    parser.add_argument(
        "--server-key",
        type=Path,
        metavar="FILE",
        help="the tls-crypt-v2 server key that a client key is wrapped with",
    )
    parser.add_argument(
        "--metadata",
        metavar="BASE64",
        help="carried in a client key; without it, the time of making",
    )
    parser.add_argument(
        "--force", action="store_true", help="overwrite an existing file"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, world: World) -> int:
    """Make one key file."""
    content = _content(args, world)
    try:
        write_secret(args.file, content.encode(), replace=args.force)
    except FileExistsError:
        print(
            f"{args.file} exists; --force overwrites it, and whoever uses"
            " the old key is locked out",
            file=world.err,
        )
        return EX_CANTCREAT
    except OSError as error:
        print(f"{args.file}: {error.strerror}", file=world.err)
        return EX_CANTCREAT
    return EX_OK


def _content(args: argparse.Namespace, world: World) -> str:
    match args.type:
        case "tls-crypt-v2-server":
            return genkey.server_key_file(
                secrets.token_bytes(genkey.SERVER_KEY_SIZE)
            )
        case "tls-crypt-v2-client":
            return _client_key(args, world)
        case "auth-token":
            return genkey.token_key_file(
                secrets.token_bytes(genkey.SERVER_KEY_SIZE)
            )
        case _:
            return genkey.static_key_file(
                secrets.token_bytes(genkey.STATIC_KEY_SIZE)
            )


def _client_key(args: argparse.Namespace, world: World) -> str:
    if args.server_key is None:
        raise _wrong("--server-key", "a client key needs the server's key")
    try:
        server_key = genkey.decode_server_key(world.read_text(args.server_key))
    except ValueError as error:
        raise _wrong(str(args.server_key), str(error)) from error
    if args.metadata is None:
        metadata = genkey.timestamp_metadata(int(time.time()))
    else:
        try:
            value = base64.b64decode(args.metadata, validate=True)
            metadata = genkey.user_metadata(value)
        except (binascii.Error, ValueError) as error:
            raise _wrong("--metadata", str(error)) from error
    key = secrets.token_bytes(genkey.STATIC_KEY_SIZE)
    return genkey.client_key_file(server_key, key, metadata)


def _wrong(where: str, message: str) -> ConfigError:
    return ConfigError([Problem(where, 0, 0, message)])
