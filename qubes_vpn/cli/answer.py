"""`qubes-vpn answer`: give what the server asks for."""

import argparse
import getpass
from typing import TYPE_CHECKING

from qubes_vpn.cli.portal import open_web_login
from qubes_vpn.cli.world import EX_OK, EX_UNAVAILABLE, World
from qubes_vpn.qubes.agent import printable
from qubes_vpn.runtime.control import DEFAULT_PATH, ControlClient

if TYPE_CHECKING:
    from qubes_vpn.cli.world import Subcommands


def register(commands: "Subcommands") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "answer",
        help="answer what the server asks: a password, a code",
        description="The answer is typed, or read from a pipe: it never is an"
        " argument. Needs root.",
    )
    parser.add_argument("--username", metavar="NAME", default="")
    parser.add_argument("--control", metavar="PATH", default=DEFAULT_PATH)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, world: World) -> int:
    """Ask the person, and pass it on."""
    client = ControlClient(args.control)
    try:
        prompt = client.ask("status").get("prompt")
        if not prompt:
            print("nothing was asked", file=world.err)
            return EX_UNAVAILABLE
        if prompt["kind"] == "url":
            return open_web_login(prompt["text"], world)
        username = args.username
        if world.stdin.isatty():
            print(printable(prompt["text"]), file=world.out)
            if prompt["kind"] == "credentials" and not username:
                username = input("User name: ")
            password = getpass.getpass("Answer: ")
        else:
            password = world.stdin.readline(4096).rstrip("\n")
        answer = client.ask("answer", username=username, password=password)
    finally:
        client.close()
    if answer.get("ok"):
        return EX_OK
    print(printable(str(answer.get("error"))), file=world.err)
    return EX_UNAVAILABLE
