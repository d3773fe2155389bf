"""`qubes-vpn genkey`: the key files that openvpn --genkey makes."""

import argparse
import base64
import binascii
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

from qubes_vpn.cli.world import EX_CANTCREAT, EX_OK, World, write_secret
from qubes_vpn.crypto.control_wrap import (
    METADATA_USER,
    timestamp_metadata,
    wrap_client_key,
)
from qubes_vpn.errors import ConfigError, Problem
from qubes_vpn.wire.keyfile import (
    AUTH_TOKEN_SERVER,
    SERVER_KEY_SIZE,
    STATIC_KEY_SIZE,
    TLS_CRYPT_V2_SERVER,
    WKC_MAX,
    WKC_MIN,
    ClientKeyV2,
    format_client_key_v2,
    format_pem,
    format_static_key,
    parse_server_key,
)

if TYPE_CHECKING:
    from qubes_vpn.cli.world import Subcommands

_STATIC = ("secret", "tls-auth", "tls-crypt")
# a WKc of the greatest size, less what is always in it and the type byte
METADATA_MAX = WKC_MAX - WKC_MIN - 1
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
            return make_server_key()
        case "tls-crypt-v2-client":
            return _client_key(args, world)
        case "auth-token":
            key = secrets.token_bytes(SERVER_KEY_SIZE)
            return format_pem(key, AUTH_TOKEN_SERVER)
        case _:
            key = secrets.token_bytes(STATIC_KEY_SIZE)
            return (
                f"#\n# 2048 bit OpenVPN static key\n#\n{format_static_key(key)}"
            )


def make_server_key() -> str:
    """Make a tls-crypt-v2 server key file."""
    return format_pem(secrets.token_bytes(SERVER_KEY_SIZE), TLS_CRYPT_V2_SERVER)


def make_client_key(server_key: bytes, metadata: bytes | None = None) -> str:
    """Make a tls-crypt-v2 client key file; its metadata, or the time."""
    if metadata is None:
        metadata = timestamp_metadata(time.time())
    key = secrets.token_bytes(STATIC_KEY_SIZE)
    wkc = wrap_client_key(server_key, key, metadata)
    return format_client_key_v2(ClientKeyV2(key, wkc))


def _client_key(args: argparse.Namespace, world: World) -> str:
    if args.server_key is None:
        raise _wrong("--server-key", "a client key needs the server's key")
    try:
        server_key = parse_server_key(world.read_text(args.server_key))
    except ValueError as error:
        raise _wrong(str(args.server_key), str(error)) from error
    return make_client_key(server_key, _metadata(args.metadata))


def _metadata(encoded: str | None) -> bytes | None:
    if encoded is None:
        return None
    try:
        value = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise _wrong("--metadata", "this is not base64") from error
    if len(value) > METADATA_MAX:
        raise _wrong("--metadata", f"longer than {METADATA_MAX} bytes")
    return bytes([METADATA_USER]) + value


def _wrong(where: str, message: str) -> ConfigError:
    return ConfigError([Problem(where, 0, 0, message)])
