"""`qvm-vpn`: VPN qubes, from dom0 or a management qube."""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

from qubes_vpn import __version__
from qubes_vpn.qubes.admin import audit, create, leaktest, pin, updates
from qubes_vpn.qubes.admin.connect import admin_errors, connect
from qubes_vpn.qubes.admin.plan import (
    EX_FOUND,
    EX_OK,
    EX_UNAVAILABLE,
    EX_USAGE,
    PROFILE_FEATURE,
    AdminError,
    App,
    Host,
    Plan,
    Qube,
    net_qube_name,
    perform,
)

EX_INTERRUPTED = 130
_STATUS = re.compile(rb"(blocked|connecting|connected)( QV-[0-9]{3})?\n?")

Run: TypeAlias = Callable[[argparse.Namespace, Host], int]


def main(args: Sequence[str] | None = None, app: App = None) -> int:
    """Run `qvm-vpn` and return its exit status.

    0: done. 1: audit or leaktest found something, or the user said no.
    64: usage. 69: something needed is not there. 71: qubesd refused.
    77: not permitted.
    """
    parser = make_parser()
    try:
        parsed = parser.parse_args(args)
    except SystemExit as stop:
        return EX_OK if not stop.code else EX_USAGE
    try:
        host = Host(app or connect(), dry_run=parsed.dry_run)
        with admin_errors():
            run: Run = parsed.run
            return run(parsed, host)
    except AdminError as error:
        print(f"qvm-vpn: {error}", file=sys.stderr)
        if error.fix:
            print(f"  fix: {error.fix}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("qvm-vpn: interrupted", file=sys.stderr)
        return EX_INTERRUPTED


def _say(line: str) -> None:
    print(line, flush=True)


def _say_json(**values: object) -> None:
    """Print one object for programs: v is the version of its schema."""
    _say(json.dumps({"v": 1} | values))


def _note(line: str) -> None:
    """Tell a person what goes on, beside an output that a program reads."""
    print(line, file=sys.stderr, flush=True)


def _ask(lines: Sequence[str]) -> bool:
    for line in lines:
        print(line)
    if not sys.stdin.isatty():
        print("not a terminal: use --yes to agree", file=sys.stderr)
        return False
    return input("agree? [y/N] ").strip().lower() in {"y", "yes"}


def _consent(args: argparse.Namespace) -> pin.Consent:
    return pin.Consent(_ask, auto=args.yes or getattr(args, "auto", False))


def _perform(plan: Plan, host: Host) -> int:
    if not perform(plan, _say, dry_run=host.dry_run):
        _say("# nothing to do" if host.dry_run else "nothing to do")
    return EX_OK


# --- the subcommands --------------------------------------------------------


def run_create(args: argparse.Namespace, host: Host) -> int:
    """Make a VPN qube, closed, and open it for the endpoints of a profile."""
    wanted = create.Wanted(
        name=args.name,
        template=args.template,
        netvm=args.netvm,
        label=args.label,
        memory=args.memory,
        autostart=args.autostart,
        disposable=args.disposable,
        pinned=args.pin,
        profile=args.profile,
    )
    status = _perform(create.create(host, wanted, _consent(args)), host)
    if args.profile is None:
        _say(f"# next: qvm-vpn import {args.name} QUBE:FILE")
    return status


def run_import(args: argparse.Namespace, host: Host) -> int:
    """Send a profile from a qube to the VPN qube, and pin it."""
    source: create.Source = args.source
    name = args.profile_name or source.profile_name

    def plan() -> Plan:
        yield from create.import_profile(
            host, args.name, source, name, use=args.use
        )
        rules = pin.current_rules(host.qube(args.name))
        if pin.pinned_now(rules) is not None:
            yield from pin.pin_new_profile(host, args.name, _consent(args))

    return _perform(plan(), host)


def run_assign(args: argparse.Namespace, host: Host) -> int:
    """Put qubes behind the VPN qube."""
    return _perform(create.assign(host, args.name, args.qubes), host)


def run_unassign(args: argparse.Namespace, host: Host) -> int:
    """Take qubes from behind it: to no network, or to another net qube."""
    return _perform(create.unassign(host, args.qubes, args.to), host)


def run_pin(args: argparse.Namespace, host: Host) -> int:
    """Allow the VPN qube its endpoints only."""
    host.vpn_qube(args.name)
    plan = pin.pin(host, args.name, _consent(args), refresh=args.refresh)
    return _perform(plan, host)


def run_unpin(args: argparse.Namespace, host: Host) -> int:
    """Allow the VPN qube any address; its own lock stays."""
    host.vpn_qube(args.name)
    return _perform(pin.unpin(host, args.name), host)


def run_use(args: argparse.Namespace, host: Host) -> int:
    """Choose the profile."""
    return _perform(create.use(host, args.name, args.profiles), host)


def run_remove(args: argparse.Namespace, host: Host) -> int:
    """Remove a VPN qube, with its profiles."""
    if host.exists(args.name) and not (args.yes or host.dry_run):
        question = f"remove {args.name} with all its profiles and keys:"
        if not _ask([question]):
            return EX_FOUND
    plan = create.remove(host, args.name, unassign_first=args.unassign)
    return _perform(plan, host)


def run_status(args: argparse.Namespace, host: Host) -> int:
    """Print one line for each VPN qube."""
    named = [host.vpn_qube(name) for name in args.names]
    rows = [_row(host, qube) for qube in named or host.vpn_qubes()]
    if args.json:
        _say_json(qubes=rows)
        return EX_OK
    for row in rows:
        _say(
            f"{row['name']}: {row['state']}; {row['profile'] or 'no profile'}; "
            f"{'pinned' if row['pinned'] else 'NOT PINNED'}; "
            f"through {row['netvm'] or 'nothing'}; "
            f"for {', '.join(row['clients']) or 'no qube'}"
        )
    return EX_OK


def _row(host: Host, qube: Qube) -> dict[str, Any]:
    return {
        "name": str(qube),
        "state": _state(qube),
        "profile": qube.features.get(PROFILE_FEATURE, None) or "",
        "pinned": pin.pinned_now(pin.current_rules(qube)) is not None,
        "netvm": net_qube_name(qube) or "",
        "clients": [str(client) for client in host.clients(qube.name)],
    }


def _state(qube: Qube) -> str:
    """Return the phase, as one of our own words: the qube is not trusted."""
    if not qube.is_running():
        return "not running"
    try:
        answer, _ = qube.run_service_for_stdio("qubesvpn.Status+word")
    except (subprocess.CalledProcessError, OSError):
        return "running, no answer"
    match = _STATUS.fullmatch(answer)
    return match[0].decode().strip() if match else "running, strange answer"


def run_audit(args: argparse.Namespace, host: Host) -> int:
    """Print what is wrong, each with its fix."""
    findings = audit.audit(host, args.names)
    serious = sum(finding.serious for finding in findings)
    if args.json:
        _say_json(findings=[asdict(finding) for finding in findings])
    else:
        for finding in findings:
            _say(str(finding))
        _say(f"{serious} problems, {len(findings) - serious} notes")
    return EX_FOUND if serious else EX_OK


def run_leaktest(args: argparse.Namespace, host: Host) -> int:
    """Prove on this machine that nothing leaves beside the tunnel."""
    if host.dry_run:
        raise AdminError(
            "", "leaktest has no dry run: it changes nothing", "", EX_USAGE
        )
    say = _note if args.json else _say
    proof = leaktest.leaktest(host, args.name, args.dispvm, say)
    if args.json:
        _say_json(**asdict(proof), conclusive=proof.conclusive)
    else:
        for line in proof.lines():
            _say(line)
    if proof.clear:
        return EX_FOUND
    return EX_OK if proof.conclusive else EX_UNAVAILABLE


def run_updates(args: argparse.Namespace, host: Host) -> int:
    """Send updates through a VPN qube, or as Qubes has it; or tell which."""
    try:
        if args.verb == "status":
            target = updates.target()
            _say(f"updates: through {target or 'the default proxy'}")
            return EX_OK
        if args.verb == "off":
            return _perform(updates.turn_off(host), host)
        if not args.name:
            raise AdminError("", "updates on: which VPN qube?", "", EX_USAGE)
        return _perform(updates.turn_on(host, args.name), host)
    except ImportError as error:
        raise AdminError(
            "",
            "the qrexec policy tools are not installed here",
            "run this in dom0, or install qubes-core-qrexec-dom0",
        ) from error


def run_watch(args: argparse.Namespace, host: Host) -> int:
    """Report a protected qube that leaves the VPN, until interrupted."""
    import asyncio

    from qubes_vpn.qubes.admin.watch import Watcher, watch

    asyncio.run(watch(Watcher(host.app, _say, restore=args.restore)))
    return EX_OK


# --- the command line -------------------------------------------------------


def _source(text: str) -> create.Source:
    try:
        return create.Source.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="qvm-vpn",
        description="VPN qubes: make them, put qubes behind them, check them",
    )
    parser.add_argument(
        "--version", action="version", version=f"qvm-vpn {__version__}"
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be done, as commands of Qubes' own tools",
    )
    common.add_argument(
        "--yes", action="store_true", help="agree to what would be asked"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Run) -> argparse.ArgumentParser:
        text = run.__doc__ or ""
        command = commands.add_parser(name, parents=[common], help=text)
        command.description = text
        command.set_defaults(run=run)
        return command

    _add_create(add("create", run_create))
    _add_profile_commands(add)
    _add_client_commands(add)
    _add_check_commands(add)
    return parser


_Add: TypeAlias = Callable[[str, Run], argparse.ArgumentParser]


def _add_create(command: argparse.ArgumentParser) -> None:
    command.add_argument("name")
    command.add_argument("--template", required=True)
    command.add_argument("--netvm", default="sys-firewall")
    command.add_argument("--label", default="orange")
    command.add_argument("--memory", type=int, default=300, metavar="MIB")
    command.add_argument("--autostart", action="store_true")
    command.add_argument(
        "--disposable",
        action="store_true",
        help="a named disposable; --template is its disposable template",
    )
    command.add_argument(
        "--no-pin",
        dest="pin",
        action="store_false",
        help="let its net qube pass it any address",
    )
    command.add_argument("--profile", type=_source, metavar="QUBE:FILE")


def _add_profile_commands(add: _Add) -> None:
    command = add("import", run_import)
    command.add_argument("name")
    command.add_argument("source", type=_source, metavar="QUBE:FILE")
    command.add_argument("--profile-name", metavar="NAME")
    command.add_argument(
        "--no-use", dest="use", action="store_false", help="keep the choice"
    )
    command = add("use", run_use)
    command.add_argument("name")
    command.add_argument("profiles", metavar="PROFILE[,PROFILE...]")
    command = add("pin", run_pin)
    command.add_argument("name")
    command.add_argument(
        "--auto", action="store_true", help="widen without asking"
    )
    command.add_argument(
        "--refresh",
        action="store_true",
        help="let it look up its servers' names for five minutes",
    )
    add("unpin", run_unpin).add_argument("name")


def _add_client_commands(add: _Add) -> None:
    command = add("assign", run_assign)
    command.add_argument("name")
    command.add_argument("qubes", nargs="+", metavar="QUBE")
    command = add("unassign", run_unassign)
    command.add_argument("qubes", nargs="+", metavar="QUBE")
    command.add_argument(
        "--to", default="", metavar="NETVM", help="default: no network"
    )
    command = add("remove", run_remove)
    command.add_argument("name")
    command.add_argument("--unassign", action="store_true")


def _add_check_commands(add: _Add) -> None:
    def add_check(name: str, run: Run) -> argparse.ArgumentParser:
        command = add(name, run)
        command.add_argument("--json", action="store_true", help="for programs")
        return command

    add_check("status", run_status).add_argument("names", nargs="*")
    add_check("audit", run_audit).add_argument("names", nargs="*")
    command = add_check("leaktest", run_leaktest)
    command.add_argument("name")
    command.add_argument(
        "--dispvm", default="", metavar="DVM", help="default: the host's"
    )
    command = add("updates", run_updates)
    command.add_argument("verb", choices=("on", "off", "status"))
    command.add_argument("name", nargs="?", default="")
    command = add("watch", run_watch)
    command.add_argument(
        "--restore",
        action="store_true",
        help="move a qube that left back behind its VPN qube",
    )


if __name__ == "__main__":
    sys.exit(main())
