"""`qubes-vpn status`, `connect` and `disconnect`: the control socket."""

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qubes_vpn.cli import server_status
from qubes_vpn.cli.world import EX_OK, EX_UNAVAILABLE, World
from qubes_vpn.errors import UnavailableError
from qubes_vpn.runtime.control import DEFAULT_PATH, ControlClient

if TYPE_CHECKING:
    from qubes_vpn.cli.world import Subcommands


def register(commands: "Subcommands") -> None:
    """Add the subcommands."""
    parser = commands.add_parser("status", help="say how the tunnel is")
    parser.add_argument("--json", action="store_true", help="as one object")
    parser.add_argument(
        "--watch", action="store_true", help="go on, a block at each change"
    )
    parser.add_argument("--control", metavar="PATH", default=DEFAULT_PATH)
    parser.set_defaults(run=run)
    for verb, text in (
        ("connect", "connect again, now"),
        ("disconnect", "leave the tunnel; the network stays closed"),
    ):
        parser = commands.add_parser(verb, help=text)
        parser.add_argument("--control", metavar="PATH", default=DEFAULT_PATH)
        parser.set_defaults(run=run_verb)


def run(args: argparse.Namespace, world: World) -> int:
    """Print the status once, or at each change."""
    client = ControlClient(args.control)
    try:
        status = client.ask("watch" if args.watch else "status")
        while True:
            lines = describe
            if status.get("role") == "server":
                status = server_status.whole(args.control, status)
                lines = server_status.describe
            if args.json:
                print(json.dumps(status), file=world.out, flush=True)
            else:
                for line in lines(status):
                    print(line, file=world.out, flush=True)
            if not args.watch:
                return EX_OK
            status = client.next(timeout=None)
    finally:
        client.close()


def run_verb(args: argparse.Namespace, world: World) -> int:
    """Ask the running client to do something."""
    client = ControlClient(args.control)
    try:
        answer = client.ask(args.command)
    finally:
        client.close()
    if answer.get("ok"):
        return EX_OK
    print(f"qubes-vpn: {answer.get('error')}", file=world.err)
    if "root" in str(answer.get("error")):
        raise UnavailableError("run it as root")
    return EX_UNAVAILABLE


def _stopped(status: dict[str, Any]) -> Iterator[str]:
    """Say that forwarding is off, and when it comes back (QV-405)."""
    if status["stopped"]:
        yield f"stopped    nothing is forwarded: {status['stopped']}"
        wait = status["resumes_in"]
        yield f"           it goes on after {wait} s of peace (QV-405)"


def _question(status: dict[str, Any]) -> Iterator[str]:
    """Say what is asked, and for how long somebody waits."""
    if prompt := status["prompt"]:
        yield f"question   {prompt['text']}"
        yield f"           {prompt['seconds']} s left: qubes-vpn answer"


def describe(status: dict[str, Any]) -> Iterator[str]:
    """Give the lines of a status, for a person."""
    yield f"phase      {status['phase']}"
    yield from _stopped(status)
    yield from _question(status)
    reason = status["reason"]
    if reason["text"]:
        yield f"reason     {reason['code']} {reason['text']}".rstrip()
    yield f"profile    {status['profile']}"
    remote = status["remote"]
    if remote:
        yield (
            f"remote     {remote['host']}"
            f" {remote['address']} port {remote['port']}/{remote['proto']}"
        )
    for name in ("stage", "cipher", "tls", "device"):
        if status[name]:
            yield f"{name:<10} {status[name]}"
    plane = status["plane"]
    if plane["name"]:
        yield f"plane      {plane['name']} {plane['why']}".rstrip()
    for name in ("addresses", "dns", "routes"):
        if status[name]:
            yield f"{name:<10} {' '.join(status[name])}"
    counters = status["counters"]
    yield (
        f"traffic    in {counters['rx_bytes']} bytes,"
        f" out {counters['tx_bytes']} bytes"
    )
    for option, why in status["refused"]:
        yield f"refused    {option}: {why}"
    if status["repairs"]:
        yield f"repairs    {status['repairs']} ({status['culprit']})"
