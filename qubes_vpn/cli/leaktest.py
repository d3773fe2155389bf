"""`qubes-vpn leaktest`: try what must not leave, in a live VPN qube.

A qube behind this one is stood in for by a network namespace. What passes the
uplink is looked at here, behind the last filter; for a look from the net qube,
which this qube cannot deceive, there is `qvm-vpn leaktest` in dom0.
"""

import argparse
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from qubes_vpn.cli.world import EX_OK, EX_UNAVAILABLE, World
from qubes_vpn.errors import OsRefusedError, UnavailableError
from qubes_vpn.runtime.control import DEFAULT_PATH, ControlClient
from qubes_vpn.system import probe

if TYPE_CHECKING:
    from qubes_vpn.cli.world import Subcommands

SETTLE_S: Final = 0.2
AS_A_QUBE: Final = "a qube"
ITSELF: Final = "this qube"

Send = Callable[[], int]


@dataclass(frozen=True, slots=True)
class Try:
    """One thing that is tried. who: AS_A_QUBE or ITSELF."""

    who: str
    what: str
    send: Send


@dataclass(frozen=True, slots=True)
class Outcome:
    """Packets seen: arrived on the vif, in the tunnel, and in clear."""

    tried: Try
    taken: int
    arrived: int
    tunnel: int
    clear: int

    @property
    def words(self) -> str:
        """What became of it."""
        if self.clear:
            return "LEAKED"
        if self.tried.who == AS_A_QUBE and not self.arrived:
            return "not tried: it never arrived here"
        if self.tunnel:
            return "in the tunnel"
        return "dropped" if self.taken else "refused"

    @property
    def proven(self) -> bool:
        """Whether it was really tried, and nothing left in clear."""
        return not (self.clear or self.words.startswith("not"))


def register(commands: "Subcommands") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "leaktest", help="try what must not leave; a table of results"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--uplink", metavar="DEV", default="eth0")
    parser.add_argument("--control", metavar="PATH", default=DEFAULT_PATH)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, world: World) -> int:
    """Try everything; 0 if nothing left in clear, 69 if not or unproven."""
    if os.geteuid() != 0:
        raise OsRefusedError("only root may look at frames: run it as root")
    phase, endpoint = _status(args.control)
    mark = f"leaktest-{secrets.token_hex(8)}".encode()
    with probe.qube() as as_qube:
        if not _control(mark):
            raise UnavailableError("a packet of its own was not seen: no proof")
        outcomes = [
            _outcome(each, mark, args.uplink, as_qube)
            for each in _tries(mark, args.uplink, endpoint)
        ]
    fine = all(outcome.proven for outcome in outcomes)
    if args.json:
        rows = [
            {
                "who": each.tried.who,
                "what": each.tried.what,
                "result": each.words,
                "clear": each.clear,
            }
            for each in outcomes
        ]
        answer = {"v": 1, "ok": fine, "phase": phase, "rows": rows}
        print(json.dumps(answer), file=world.out)
    else:
        for line in report(phase, outcomes):
            print(line, file=world.out)
    return EX_OK if fine else EX_UNAVAILABLE


def report(phase: str, outcomes: list[Outcome]) -> Iterator[str]:
    """Give the lines of the table and the judgement."""
    width = max(len(outcome.tried.what) for outcome in outcomes)
    yield f"phase: {phase}"
    yield f"{'who':9}  {'what was tried':{width}}  result"
    for outcome in outcomes:
        tried = outcome.tried
        yield f"{tried.who:9}  {tried.what:{width}}  {outcome.words}"
    clear = sum(outcome.clear for outcome in outcomes)
    if clear:
        yield f"LEAK: {clear} packets of this test left in clear."
        yield "`sudo qubes-vpn lockdown check` names what does not hold."
    elif not all(outcome.proven for outcome in outcomes):
        yield "Nothing left in clear, but not everything could be tried."
    else:
        yield f"Nothing left in clear, of {len(outcomes)} ways that were tried."
    yield "(dropped: without a word. refused: the program was told.)"


def _status(path: str) -> tuple[str, tuple[str, int] | None]:
    """Give the phase, and the endpoint if there is one."""
    try:
        client = ControlClient(path)
    except (UnavailableError, OsRefusedError):
        return "none: the client does not run here", None
    try:
        status = client.ask("status")
    finally:
        client.close()
    remote = status["remote"]
    end = (remote["address"], remote["port"]) if remote else None
    return str(status["phase"]), end


def _control(mark: bytes) -> bool:
    """Show that a marked packet is seen, on the loopback."""
    with probe.Tap(mark) as tap:
        probe.udp("127.0.0.1", 9, mark)
        time.sleep(SETTLE_S)
    return tap.out["lo"] > 0


def _tries(
    mark: bytes, uplink: str, endpoint: tuple[str, int] | None
) -> Iterator[Try]:
    both: list[tuple[str, Send]] = [
        ("UDP to the internet", partial(probe.udp, probe.TARGET4, 123, mark)),
        ("TCP to the internet", partial(probe.tcp, probe.TARGET4, 80, mark)),
        ("ping", partial(probe.ping, probe.TARGET4, mark)),
        (
            "a question to any resolver",
            partial(probe.udp, probe.TARGET4, 53, mark),
        ),
    ]
    if endpoint:
        to_server = partial(probe.udp, *endpoint, mark)
        both.append(("UDP to the VPN server's own port", to_server))
    for what, send in both:
        yield Try(AS_A_QUBE, what, send)
    for what, send in both:
        yield Try(ITSELF, what, send)
    six = partial(probe.udp, probe.TARGET6, 123, mark)
    yield Try(ITSELF, "UDP over IPv6", six)
    many = partial(probe.udp, "224.0.0.251", 5353, mark)
    yield Try(ITSELF, "multicast, as mDNS", many)
    yield Try(
        ITSELF,
        "raw frames, past the IP stack",
        partial(probe.raw, uplink, mark),
    )


def _outcome(
    tried: Try, mark: bytes, uplink: str, as_qube: Callable[[Send], int]
) -> Outcome:
    with probe.Tap(mark) as tap:
        send = tried.send
        taken = as_qube(send) if tried.who == AS_A_QUBE else send()
        time.sleep(SETTLE_S)
    tunnels = sum(
        count
        for device, count in tap.out.items()
        if device not in {uplink, "lo"} and not device.startswith("vif")
    )
    return Outcome(tried, taken, tap.into[probe.VIF], tunnels, tap.out[uplink])
