"""`qubes-vpn server init`: everything for a server of one's own, at once.

DIR/server.ovpn      the server's profile, keys inlined (0600)
DIR/FIRST.ovpn       the first client's profile, ready to import (0600)
DIR/pki/             the authority; its ca.key belongs off the server
"""

import argparse
import ipaddress
import re
from dataclasses import replace

from qubes_vpn.cli.genkey import make_server_key
from qubes_vpn.cli.pki import (
    CA_DAYS,
    LEAF_DAYS,
    WRAP_KEY,
    client_profile,
    inline,
)
from qubes_vpn.cli.pki_store import Store, wrong
from qubes_vpn.cli.world import EX_OK, EX_USAGE, World, write_secret
from qubes_vpn.crypto.pki import Algorithm, Usage

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.:-]{0,62}[A-Za-z0-9])?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what only init uses."""
    group = parser.add_argument_group("server init")
    group.add_argument("--name", metavar="HOST", help="name or address")
    group.add_argument("--port", type=int, default=1194)
    group.add_argument("--proto", choices=("udp", "tcp"), default="udp")
    group.add_argument("--network", default="10.99.0.0/24")
    group.add_argument("--network6", default="", metavar="PREFIX")
    group.add_argument("--dns", action="append", default=[])
    group.add_argument("--first", default="client1", metavar="NAME")


def init(args: argparse.Namespace, world: World) -> int:
    """Make authority, keys, server profile and the first client profile."""
    if not args.name or not _HOST.fullmatch(args.name):
        print("server init needs --name HOST", file=world.err)
        return EX_USAGE
    network = ipaddress.IPv4Network(args.network)
    directory = args.dir
    if (directory / "server.ovpn").exists():
        raise wrong(directory / "server.ovpn", "it exists")
    store = Store.create(
        directory / "pki", f"{args.name} CA", Algorithm.P256, CA_DAYS
    )
    remote = (args.name, str(args.port), args.proto)
    store.save(replace(store.index(), remote=remote))
    wrap_key = make_server_key()
    write_secret(store.directory / WRAP_KEY, wrap_key.encode())
    pair = store.issue(args.name, Usage.SERVER, LEAF_DAYS)
    blocks = [
        ("ca", store.authority().certificate.decode()),
        ("cert", pair.certificate.decode()),
        ("key", pair.key.decode()),
        ("tls-crypt-v2", wrap_key),
    ]
    profile = inline(_directives(args, network), blocks)
    write_secret(directory / "server.ovpn", profile.encode())
    client = store.issue(args.first, Usage.CLIENT, LEAF_DAYS)
    text = client_profile(store, client, remote)
    write_secret(directory / f"{args.first}.ovpn", text.encode())
    print(
        f"Start the server:  qubes-vpn server {directory}/server.ovpn --nat\n"
        f"Import in the VPN qube:  {directory}/{args.first}.ovpn\n"
        f"More clients:  qubes-vpn pki --dir {directory}/pki client NAME"
        " --profile NAME.ovpn",
        file=world.out,
    )
    return EX_OK


def _directives(
    args: argparse.Namespace, network: ipaddress.IPv4Network
) -> list[str]:
    return [
        f"proto {args.proto}" + ("-server" if args.proto == "tcp" else ""),
        f"port {args.port}",
        "dev tun",
        "topology subnet",
        f"server {network.network_address} {network.netmask}",
        f"server-ipv6 {args.network6}" if args.network6 else "",
        "keepalive 10 60",
        'push "redirect-gateway def1' + (' ipv6"' if args.network6 else '"'),
        *(f'push "dhcp-option DNS {server}"' for server in args.dns),
        "tls-version-min 1.2",
        "auth SHA256",
        "dh none",
        "remote-cert-tls client",
        "crl-verify pki/crl.pem",
    ]
