"""python -m lab up | demo | down.

up: build the lab with names for `ip netns exec`, and stay until Ctrl-C.
demo: the main job, shown in a lab of its own, against this project's server
(--server openvpn for Debian's). down: remove what a lab that was
killed left behind. Exit 77, with one line, where the machine cannot.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from lab import demo
from lab.openvpn import OPENVPN, Server, Settings
from lab.topology import SCRATCH, Lab

CANNOT = 77
NAMES = Path("/run/netns")
PREFIX = "qv"
TUN = "/dev/net/tun"
PROGRAMS = ("ip", "nft", "nsenter", "unshare", "setpriv")


def _cannot(why: str) -> int:
    print(f"lab: {why}", file=sys.stderr)
    return CANNOT


def missing(*programs: str) -> str:
    """Why no lab can be built here, in a sentence; or nothing.

    programs: what is needed besides.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    os.environ["PATH"] = path
    wanted = (*PROGRAMS, *filter(None, programs))
    lacking = [name for name in wanted if not shutil.which(name)]
    if lacking:
        return f"needs {', '.join(lacking)}: run `make setup` as root first"
    if not os.access(TUN, os.R_OK | os.W_OK):
        return f"needs {TUN}, readable and writable for this user: run as root"
    return ""


def _in_user_namespace() -> None:
    """Become root of a user namespace; comes back only where that fails.

    It needs the subordinate ids of this user: keeper and engine are users of
    their own there too.
    """
    enter = ["unshare", "--user", "--map-root-user", "--map-auto"]
    enter += ["--net", "--mount"]
    trial = subprocess.run([*enter, "true"], capture_output=True)
    if trial.returncode == 0:
        again = [sys.executable, "-m", "lab", *sys.argv[1:]]
        os.execvp(enter[0], [*enter, *again])


def _up(lab: Lab) -> None:
    """Name the namespaces, start a server, print how to get in, and wait."""
    with contextlib.ExitStack() as closing:
        NAMES.mkdir(exist_ok=True)
        for role, namespace in lab.namespaces().items():
            path = NAMES / f"{lab.name}-{role}"
            path.touch()
            closing.callback(path.unlink)
            bind = ["mount", "--bind", namespace.path, str(path)]
            subprocess.run(bind, check=True)
            closing.callback(subprocess.run, ["umount", str(path)])
            print(f"ip netns exec {path.name} sh")
        server = closing.enter_context(
            Server(lab.internet, lab.scratch, Settings())
        )
        profile = lab.scratch / "client.ovpn"
        profile.write_text(server.client_profile())
        print(f"profile: {profile}\nserver's log: {server.log_path}")
        print("Ctrl-C removes it all", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


def up() -> int:
    """Build a lab for a person, until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Lab() as lab:
        _up(lab)
    return 0


def _ended(pid: str) -> bool:
    return pid.isdigit() and not Path("/proc", pid).exists()


def down() -> int:
    """Remove names and scratch directories of labs whose process is gone."""
    removed = 0
    for path in NAMES.glob(f"{PREFIX}[0-9]*-*"):
        if _ended(path.name.removeprefix(PREFIX).partition("-")[0]):
            subprocess.run(["umount", str(path)], capture_output=True)
            path.unlink(missing_ok=True)
            removed += 1
    for path in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        if _ended(path.name.removeprefix(SCRATCH).partition("-")[0]):
            shutil.rmtree(path, ignore_errors=True)
            removed += 1
    print(f"lab: {removed} left-over names and directories removed")
    return 0


def main() -> int:
    """Run one verb."""
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    parser.add_argument("verb", choices=("up", "demo", "down"))
    parser.add_argument(
        "--server",
        choices=("ours", "openvpn"),
        default="ours",
        help="of the demo: this project's, or Debian's",
    )
    args = parser.parse_args()
    verb = args.verb
    if verb == "down":
        return down()
    needs_openvpn = verb == "up" or args.server == "openvpn"
    if why := missing(OPENVPN if needs_openvpn else ""):
        return _cannot(why)
    if os.geteuid() != 0:
        _in_user_namespace()
        return _cannot(
            "needs root, or user namespaces, newuidmap (package uidmap) and "
            "subordinate ids for this user in /etc/subuid and /etc/subgid"
        )
    return up() if verb == "up" else demo.main(args.server)


if __name__ == "__main__":
    sys.exit(main())
