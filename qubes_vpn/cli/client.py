"""`qubes-vpn client`: connect in the foreground."""

import argparse
from typing import TYPE_CHECKING

from qubes_vpn.cli.world import World
from qubes_vpn.runtime.control import DEFAULT_PATH

if TYPE_CHECKING:
    from qubes_vpn.cli.world import Subcommands


def register(commands: "Subcommands") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "client",
        help="connect with a profile, in the foreground",
        description="Connect with PROFILE and stay until SIGTERM. The network"
        " lock must be loaded (qubes-vpn lockdown apply); it stays when this"
        " ends, however it ends.",
    )
    parser.add_argument("profile", metavar="PROFILE")
    parser.add_argument("--dev", metavar="NAME")
    parser.add_argument("--uplink", metavar="DEV", default="eth0")
    parser.add_argument(
        "--auth-user-pass",
        metavar="FILE",
        help="user name and password, a line each; only its owner may use it",
    )
    parser.add_argument(
        "--control",
        metavar="PATH",
        default=DEFAULT_PATH,
        help="the socket that `status` and the like ask: where you may make"
        f" one; default: {DEFAULT_PATH}",
    )
    parser.add_argument(
        "--resolver",
        metavar="ADDRESS",
        help="asks this resolver for the names of servers",
    )
    parser.add_argument(
        "--resolve",
        choices=("auto", "never"),
        default="auto",
        help="never: use addresses and the cache only",
    )
    parser.add_argument("--state", metavar="FILE", help="address cache")
    parser.add_argument(
        "--uplink6",
        metavar="ADDRESS,GATEWAY",
        help="IPv6 on the uplink, for servers that have no IPv4",
    )
    parser.add_argument(
        "--unlocked",
        action="store_true",
        help="an ordinary client for any Linux machine: closes nothing; as an"
        " ordinary user it holds the tun device that --dev or the profile"
        " names, and prints the commands for root",
    )
    parser.add_argument(
        "--plane",
        choices=("auto", "userspace", "kernel"),
        default="auto",
        help="who moves the packets; auto: the kernel's ovpn driver where it"
        " is there and suits the session",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, world: World) -> int:
    """Connect, and stay."""
    from qubes_vpn.runtime.foreground import Options, run_foreground

    options = Options(
        profile=args.profile,
        device=args.dev,
        uplink=args.uplink,
        auth_user_pass=args.auth_user_pass,
        control=args.control,
        resolver=args.resolver,
        resolve=args.resolve == "auto",
        state=args.state,
        uplink6=args.uplink6,
        unlocked=args.unlocked,
        plane=args.plane,
    )
    return run_foreground(options, world.out, world.err)
