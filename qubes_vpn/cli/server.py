"""`qubes-vpn server PROFILE`, and `server init --name HOST`."""

import argparse
import base64
import binascii
import logging
import pwd
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qubes_vpn.cli import server_init
from qubes_vpn.cli.world import EX_OK, World
from qubes_vpn.config.server_profile import (
    ServerProfile,
    parse_server_profile,
)
from qubes_vpn.errors import ConfigError, Problem

if TYPE_CHECKING:
    from qubes_vpn.cli.world import Subcommands

CONTROL: Final = "/run/qubes-vpn/control.sock"


def register(commands: "Subcommands") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "server",
        help="run a server, or make everything for one (server init)",
    )
    parser.add_argument("profile", help="a server's profile; or: init")
    parser.add_argument(
        "--dir", type=Path, default=Path("."), help="of init: where to (.)"
    )
    parser.add_argument(
        "--nat",
        action="store_true",
        help="forward the clients' packets and masquerade them",
    )
    parser.add_argument("--dev", help="the device's name")
    parser.add_argument(
        "--passwords",
        metavar="FILE",
        default="",
        help="ask clients for a password of this file (qubes-vpn passwd)",
    )
    parser.add_argument(
        "--pam",
        metavar="SERVICE",
        default="",
        help="ask clients for a password that PAM knows",
    )
    parser.add_argument(
        "--deny-client-keys",
        metavar="FILE",
        type=Path,
        help="refuse tls-crypt-v2 keys with this metadata: base64, one a line",
    )
    parser.add_argument(
        "--plane",
        choices=("auto", "kernel", "userspace"),
        default="auto",
        help="who moves packets: the ovpn driver where there is one (auto)",
    )
    parser.add_argument("--user", help="run as this user once all is open")
    parser.add_argument("--control", metavar="PATH", default=CONTROL)
    parser.add_argument("--metrics", metavar="PATH", default="")
    server_init.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, world: World) -> int:
    """Serve until told to stop. Errors leave through main()."""
    if args.profile == "init":
        return server_init.init(args, world)
    profile = load(Path(args.profile), args, world)
    denied = denied_keys(args.deny_client_keys, world)
    # late: a server needs sockets and netlink, init and genkey do not
    from qubes_vpn.runtime.server import ServerProcess
    from qubes_vpn.runtime.server_auth import check_backends
    from qubes_vpn.runtime.server_device import open_device
    from qubes_vpn.runtime.server_nat import Nat
    from qubes_vpn.system.notify import notify
    from qubes_vpn.system.privileges import CAP_NET_ADMIN, drop_privileges

    check_backends(profile)
    logging.basicConfig(
        format="%(message)s", level=logging.INFO, stream=world.out
    )
    for line, name, reason in profile.notes:
        print(f"line {line}: {name}: {reason}", file=world.err)
    device = open_device(profile, args.plane)
    nat = Nat(profile, device.name) if args.nat else None
    try:
        server = ServerProcess(
            profile,
            device,
            denied=denied,
            control_path=args.control,
            metrics_path=args.metrics,
        )
        if args.user:
            user = pwd.getpwnam(args.user)
            drop_privileges(user.pw_uid, user.pw_gid, (CAP_NET_ADMIN,))
        plane = f"userspace ({device.why})" if device.why else "kernel"
        where = ", ".join(
            f"{one.address or '*'} port {one.port}/{one.proto}"
            for one in profile.listens
        )
        print(
            f"serving on {where}, device {device.name}, data plane {plane}",
            file=world.out,
            flush=True,
        )
        notify("READY=1")
        server.run()
    finally:
        if nat is not None:
            nat.close()
        device.close()
    return EX_OK


def load(path: Path, args: argparse.Namespace, world: World) -> ServerProfile:
    """Read a profile and what the command line adds. Raises ConfigError."""

    def read_file(name: str) -> bytes:
        return (path.parent / name).read_bytes()

    profile = parse_server_profile(world.read_text(path), str(path), read_file)

    def beside(name: str) -> str:
        end = "/" if name.endswith("/") else ""  # which says: a folder
        return f"{path.parent / name}{end}" if name else ""

    profile = replace(
        profile,
        dev=args.dev or profile.dev,
        password_file=args.passwords,
        pam_service=args.pam or profile.pam_service,
        crl_file=beside(profile.crl_file),
        persist_file=beside(profile.persist_file),
        client_config_dir=beside(profile.client_config_dir),
        status_file=beside(profile.status_file),
    )
    if profile.verify_client_cert != "require" and not profile.wants_password:
        message = (
            f"verify-client-cert {profile.verify_client_cert} lets in"
            " everybody: use --passwords or --pam"
        )
        raise ConfigError([Problem(str(path), 0, 0, message)])
    return profile


def denied_keys(path: Path | None, world: World) -> frozenset[bytes]:
    """Read the metadata of keys that are not let in. Raises ConfigError."""
    if path is None:
        return frozenset()
    denied = set()
    for number, line in enumerate(world.read_text(path).splitlines(), 1):
        text = line.partition("#")[0].strip()
        try:
            if text:
                denied.add(base64.b64decode(text, validate=True))
        except binascii.Error as error:
            raise ConfigError(
                [Problem(str(path), number, 1, "this is not base64")]
            ) from error
    return frozenset(denied)
