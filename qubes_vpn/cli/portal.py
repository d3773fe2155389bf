"""`qubes-vpn portal`: a network that wants a login before it lets us through.

The lock lets no browser of this qube out, and that is right: the page is
opened by a disposable that is behind the same net qube as this one, beside
the VPN. Which one is the user's choice, in the prompt of qrexec's policy.
"""

import argparse
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qubes_vpn.cli.world import EX_OK, EX_UNAVAILABLE, World
from qubes_vpn.qubes.agent import web_login_url

if TYPE_CHECKING:
    from qubes_vpn.cli.world import Subcommands

QREXEC: Final = "/usr/bin/qrexec-client-vm"
# Answers with a redirection exactly where a portal is in the way; plain http,
# since a portal cannot redirect https.
PROBE: Final = "http://detectportal.firefox.com/canonical.html"
EXPLANATION: Final = """\
A network at a hotel or on a train often lets nothing through before somebody
has agreed to its terms on a web page. Through the tunnel that page cannot be
reached, and nothing else may leave this qube.

The page is opened in a disposable that is NOT behind the VPN: choose one whose
net qube is sys-firewall when you are asked. The network, and everybody on it,
sees that page, and nothing of what the VPN carries. Close the disposable after
that; the VPN connects by itself.
"""


def register(commands: "Subcommands") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "portal", help="open the login page of a network, beside the VPN"
    )
    parser.add_argument(
        "--explain", action="store_true", help="say what would be done"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, world: World) -> int:
    """Explain, and have a disposable open the page."""
    print(EXPLANATION, file=world.out)
    if args.explain:
        return EX_OK
    return open_elsewhere(PROBE, world)


def open_web_login(untrusted_url: str, world: World) -> int:
    """Open an address that the server chose, after a strict check."""
    try:
        url = web_login_url(untrusted_url)
    except ValueError as error:
        print(f"the server's address is refused: {error}", file=world.err)
        return EX_UNAVAILABLE
    return open_elsewhere(url, world)


def open_elsewhere(url: str, world: World) -> int:
    """Hand an address to qubes.OpenURL; policy asks in which qube."""
    if not Path(QREXEC).exists():
        print(f"this is no qube: open {url} by hand", file=world.err)
        return EX_UNAVAILABLE
    done = subprocess.run(  # noqa: S603  a fixed program, no shell
        [QREXEC, "@dispvm", "qubes.OpenURL"],
        input=f"{url}\n".encode(),
        check=False,
    )
    if done.returncode:
        print("not opened: refused, or no disposable chosen", file=world.err)
        return EX_UNAVAILABLE
    return EX_OK
