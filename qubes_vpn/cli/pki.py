"""`qubes-vpn pki`: a small certificate authority for one's own server."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qubes_vpn.cli.genkey import make_client_key
from qubes_vpn.cli.pki_store import Store, wrong
from qubes_vpn.cli.world import EX_CANTCREAT, EX_OK, World, write_secret
from qubes_vpn.crypto.pki import Algorithm, Issued, Usage
from qubes_vpn.wire.keyfile import parse_server_key

if TYPE_CHECKING:
    from qubes_vpn.cli.world import Subcommands

CA_DAYS = 3650
LEAF_DAYS = 825
WRAP_KEY = "tls-crypt-v2-server.key"


def register(commands: "Subcommands") -> None:
    """Add the subcommand and its own subcommands."""
    parser = commands.add_parser("pki", help="a small certificate authority")
    parser.add_argument(
        "--dir", type=Path, default=Path("pki"), help="its files (./pki)"
    )
    actions = parser.add_subparsers(dest="action", required=True)
    init = actions.add_parser("init", help="make the authority")
    init.add_argument("--name", default="qubes-vpn CA")
    init.add_argument(
        "--algorithm",
        choices=[*Algorithm],
        default=Algorithm.P256,
        help="of all its keys; ed25519 needs OpenSSL 1.1.1 at every peer",
    )
    init.add_argument("--days", type=int, default=CA_DAYS)
    for usage in Usage:
        issue = actions.add_parser(usage, help=f"issue a {usage} certificate")
        issue.add_argument("name")
        issue.add_argument("--days", type=int, default=LEAF_DAYS)
        if usage is Usage.CLIENT:
            _client_arguments(issue)
    revoke = actions.add_parser("revoke", help="revoke a certificate")
    revoke.add_argument("name")
    actions.add_parser("crl", help="sign the revocation list again")
    actions.add_parser("list", help="list what was issued")
    parser.set_defaults(run=run)


def _client_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="also write one file that a client imports (0600)",
    )
    parser.add_argument(
        "--remote",
        nargs="+",
        metavar=("HOST", "PORT PROTO"),
        help="where the profile's server is, if init did not say so",
    )
    parser.add_argument("--force", action="store_true")


def run(args: argparse.Namespace, world: World) -> int:
    """Do one action. ConfigError and UnreadableError leave through main."""
    try:
        return _act(args, world)
    except FileExistsError as error:
        print(f"{error.filename2 or error.filename} exists", file=world.err)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=world.err)
    return EX_CANTCREAT


def _act(args: argparse.Namespace, world: World) -> int:
    store = Store(args.dir)
    match args.action:
        case "init":
            Store.create(args.dir, args.name, args.algorithm, args.days)
            print(f"authority made in {args.dir}; guard ca.key", file=world.out)
        case "server":
            store.issue(args.name, Usage.SERVER, args.days)
        case "client":
            _client(store, args, world)
        case "revoke":
            store.revoke(args.name)
            print(f"{args.name} revoked; crl.pem is new", file=world.out)
        case "crl":
            print(store.write_crl(), file=world.out)
        case _:
            for entry in store.index().entries:
                state = (
                    f"revoked {entry.revoked}"
                    if entry.revoked
                    else f"until {entry.not_after}"
                )
                print(
                    f"{entry.usage:6}  {entry.name}  {state}"
                    f"  serial {entry.serial:x}",
                    file=world.out,
                )
    return EX_OK


def _client(store: Store, args: argparse.Namespace, world: World) -> None:
    remote = tuple(args.remote or store.index().remote)
    path: Path | None = args.profile
    if path is not None and not remote:
        raise wrong(path, "where is the server? say it with --remote")
    if path is not None and path.exists() and not args.force:
        raise wrong(path, "it exists; --force overwrites it")
    pair = store.issue(args.name, Usage.CLIENT, args.days)
    if path is not None:
        text = client_profile(store, pair, remote)
        write_secret(path, text.encode(), replace=args.force)
        print(f"{path}: give it to {args.name} by a safe way", file=world.out)


def client_profile(store: Store, pair: Issued, remote: tuple[str, ...]) -> str:
    """Write a single-file client profile, ready to import.

    remote: host, then maybe port and protocol. The control wrap is there
    when the authority's directory has a tls-crypt-v2 server key.
    """
    blocks = [
        ("ca", store.authority().certificate.decode()),
        ("cert", pair.certificate.decode()),
        ("key", pair.key.decode()),
    ]
    wrap = store.directory / WRAP_KEY
    if wrap.exists():
        server_key = parse_server_key(wrap.read_text(encoding="utf-8"))
        blocks.append(("tls-crypt-v2", make_client_key(server_key)))
    lines = [
        "client",
        "dev tun",
        "nobind",
        f"remote {' '.join(remote)}",
        "remote-cert-tls server",
        f"verify-x509-name {server_name(store)} name",
        "tls-version-min 1.2",
        "auth SHA256",
        "explicit-exit-notify 1" if "tcp" not in remote[-1] else "",
    ]
    return inline(lines, blocks)


def server_name(store: Store) -> str:
    """Give the name of the newest valid server certificate."""
    names = [
        entry.name
        for entry in store.index().entries
        if entry.usage == Usage.SERVER and not entry.revoked
    ]
    if not names:
        raise wrong(store.directory, "there is no server certificate yet")
    return names[-1]


def inline(lines: list[str], blocks: list[tuple[str, str]]) -> str:
    """Join directives and inline blocks to one profile."""
    text = "".join(f"{line}\n" for line in lines if line)
    for name, content in blocks:
        text += f"<{name}>\n{content.rstrip()}\n</{name}>\n"
    return text
