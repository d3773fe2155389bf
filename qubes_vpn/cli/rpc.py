"""`qubes-vpn rpc SERVICE`: the qrexec services `qubesvpn.*`.

Whoever calls may be hostile: fixed services, bounded input, an argument that
is a name, and a profile that is parsed by a child without privileges.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from qubes_vpn.cli.world import (
    EX_CONFIG,
    EX_OK,
    EX_UNAVAILABLE,
    EX_USAGE,
    World,
)
from qubes_vpn.errors import UnavailableError
from qubes_vpn.qubes.agent import printable
from qubes_vpn.qubes.profiles import (
    FOLDER,
    PROFILE_MAX,
    Profiles,
    checked_name,
)
from qubes_vpn.runtime.control import DEFAULT_PATH, ControlClient

if TYPE_CHECKING:
    from qubes_vpn.cli.world import Subcommands

ANSWER_MAX: Final = 4096
# The service starts with its qube: a caller that came first waits for it.
PATIENCE_S: Final = 30.0
PARSE_S: Final = 20.0
_PHASES: Final = frozenset({"blocked", "connecting", "connected"})

Service: TypeAlias = Callable[[argparse.Namespace, World], int]


def register(commands: "Subcommands") -> None:
    """Add the subcommand."""
    parser = commands.add_parser("rpc", help="serve one qrexec call")
    parser.add_argument("service", choices=sorted(SERVICES))
    parser.add_argument("--argument", metavar="TEXT", default="")
    parser.add_argument("--control", metavar="PATH", default=DEFAULT_PATH)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, world: World) -> int:
    """Serve the call on standard input and output."""
    service: Service = SERVICES[args.service]
    return service(args, world)


def ask(path: str, verb: str, **fields: object) -> dict[str, Any]:
    """Ask the agent, and wait for it if the qube has just started."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            client = ControlClient(path)
        except UnavailableError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
            continue
        try:
            return client.ask(verb, **fields)
        finally:
            client.close()


def _read(world: World, limit: int) -> str:
    """Read all of standard input; too much of it is UnavailableError."""
    data = world.stdin.buffer.read(limit + 1)
    if len(data) > limit:
        raise UnavailableError(f"more than {limit} bytes were sent")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UnavailableError("not UTF-8 text") from None


def _done(answer: dict[str, Any], world: World) -> int:
    if answer.get("ok"):
        return EX_OK
    print(printable(str(answer.get("error"))), file=world.err)
    return EX_UNAVAILABLE


def _status(args: argparse.Namespace, world: World) -> int:
    """One line: `PHASE [CODE]` for `word`, else the status as JSON."""
    status = ask(args.control, "status")
    if args.argument != "word":
        print(json.dumps(status), file=world.out)
        return EX_OK
    phase, code = status["phase"], status["reason"]["code"]
    assert phase in _PHASES
    words = phase if phase == "connected" else f"{phase} {code}".strip()
    print(words, file=world.out)
    return EX_OK


def _endpoints(args: argparse.Namespace, world: World) -> int:
    """`address proto port` lines, of the profile that is chosen now."""
    anew = args.argument == "refresh"
    answer = ask(args.control, "endpoints", refresh=anew)
    for line in answer.get("endpoints", ()):
        print(line, file=world.out)
    return _done(answer, world)


def _connect(args: argparse.Namespace, world: World) -> int:
    return _done(ask(args.control, "connect"), world)


def _disconnect(args: argparse.Namespace, world: World) -> int:
    return _done(ask(args.control, "disconnect"), world)


def _switch(args: argparse.Namespace, world: World) -> int:
    """The argument names a profile that is here."""
    return _done(ask(args.control, "switch", profile=args.argument), world)


def _answer(args: argparse.Namespace, world: World) -> int:
    """Standard input: a user name (may be empty), then the answer."""
    lines = _read(world, ANSWER_MAX).split("\n")
    if len(lines) < 2:
        print("two lines are wanted: a name, then the answer", file=world.err)
        return EX_USAGE
    fields = {"username": lines[0], "password": lines[1]}
    return _done(ask(args.control, "answer", **fields), world)


def _import(args: argparse.Namespace, world: World) -> int:
    """Standard input: a profile with everything inlined.

    The argument names it. What is stored is what our own writer makes of the
    parsed profile: nothing of the sender's text is kept.
    """
    try:
        name = checked_name(args.argument)
    except ValueError as error:
        print(error, file=world.err)
        return EX_USAGE
    verdict = parse_apart(_read(world, PROFILE_MAX))
    if not verdict["ok"]:
        for problem in verdict["problems"]:
            print(printable(problem), file=world.err)
        return EX_CONFIG
    Profiles(args.folder).store(name, verdict["text"], verdict["login"])
    for note in verdict["notes"]:
        print(printable(note), file=world.out)
    try:
        ask(args.control, "reload")
    except UnavailableError:
        # it is read when the service starts
        print("the service does not run; the profile is kept", file=world.err)
    return EX_OK


def parse_apart(text: str) -> dict[str, Any]:
    """Parse a profile in a child with no privileges and few resources.

    Returns {"ok": true, "text", "login", "notes"} or {"ok": false,
    "problems"}. A child that dies has found a problem too.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-m", "qubes_vpn.cli.parse_apart"],
            input=text.encode(),
            stdout=subprocess.PIPE,
            timeout=PARSE_S,
            check=True,
        )
        verdict: dict[str, Any] = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        kind = type(error).__name__
        return {"ok": False, "problems": [f"it could not be parsed: {kind}"]}
    return verdict


SERVICES: Final[dict[str, Service]] = {
    "Status": _status,
    "Endpoints": _endpoints,
    "Connect": _connect,
    "Disconnect": _disconnect,
    "Switch": _switch,
    "Import": _import,
    "Answer": _answer,
}
