"""The keeper's process: CAP_NET_ADMIN, and nothing else.

    python -m qubes_vpn.keeper --agent-fd N [--uplink DEV] [--device DEV]
    python -m qubes_vpn.keeper --listen PATH

In the foreground the parent is the agent, on an inherited socketpair. As a
unit it listens: uid 0 is the agent, the engine's uid the engine.
"""

import argparse
import functools
import grp
import os
import pwd
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Final

from qubes_vpn.errors import LocalStateError, OsRefusedError, UnavailableError
from qubes_vpn.keeper.device import Device
from qubes_vpn.keeper.existing import ExistingDevice, ToldLayers
from qubes_vpn.keeper.forwarding import NOTE
from qubes_vpn.keeper.guardian import Guardian
from qubes_vpn.keeper.layers import Layers
from qubes_vpn.keeper.messages import Commands
from qubes_vpn.keeper.server import Keeper
from qubes_vpn.keeper.unlocked import UnlockedLayers
from qubes_vpn.policy import firewall
from qubes_vpn.policy.routes import DEVICES
from qubes_vpn.system.notify import notify
from qubes_vpn.system.privileges import CAP_NET_ADMIN, drop_privileges
from qubes_vpn.system.rtnl import Rtnl
from qubes_vpn.system.tun import TunSource

# Devices that can be made where only root may open /dev/net/tun.
TUN_RESERVE: Final = 64
ENGINE_USER: Final = "qubes-vpn-engine"
_PEERCRED: Final = struct.Struct("=iII")


def main(args: list[str] | None = None) -> int:
    """Run the keeper. Gives the exit status."""
    options = _parse(args)
    try:
        return _run(options)
    except UnavailableError as error:
        _say(error)
        return os.EX_UNAVAILABLE
    except (OsRefusedError, OSError) as error:
        _say(error)
        return os.EX_OSERR
    except LocalStateError as error:
        _say(error)
        return os.EX_USAGE


def _parse(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="qubes-vpn-keeper")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--agent-fd", type=int, help="an inherited socket")
    where.add_argument("--listen", type=Path, help="a socket to make")
    parser.add_argument("--uplink", default=firewall.UPLINK)
    parser.add_argument("--device", default=DEVICES[0])
    parser.add_argument(
        "--unlocked", action="store_true", help="no lock: close nothing"
    )
    parser.add_argument(
        "--existing",
        action="store_true",
        help="without privileges: the device exists, root runs what is told",
    )
    parser.add_argument("--uid", type=int, help="drop to this user")
    parser.add_argument("--gid", type=int, help="the group of our sockets")
    parser.add_argument("--engine-uid", type=int, default=_engine_uid())
    return parser.parse_args(args)


def _run(options: argparse.Namespace) -> int:
    if options.existing:
        return _run_existing(options)
    uid, gid = _identity(options)
    source = TunSource(TUN_RESERVE if _will_need_reserve(uid) else 0)
    listener = _listen(options.listen) if options.listen else None
    drop_privileges(uid, gid, keep=(CAP_NET_ADMIN,))
    if options.unlocked:
        layers: Layers = UnlockedLayers(options.uplink, os.getegid())
    else:
        note = options.listen.with_name(NOTE) if options.listen else None
        layers = Layers(options.uplink, os.getegid(), note)
    layers.require_lock()
    device = Device(firewall.device_name(options.device), layers.rtnl, source)
    keeper = Keeper(layers, device, outlive_agent=listener is not None)
    if not options.unlocked:
        Guardian(keeper).attach()
    return _serve(options, keeper, listener)


def _run_existing(options: argparse.Namespace) -> int:
    drop_privileges(None, None)
    name = firewall.device_name(options.device)
    device = ExistingDevice(name, Rtnl(), TunSource())
    layers = ToldLayers(options.uplink, os.getegid(), device)
    keeper = Keeper(layers, device)
    layers.tell = lambda lines: keeper.notice(Commands(lines))
    return _serve(options, keeper, None)


def _serve(
    options: argparse.Namespace, keeper: Keeper, listener: socket.socket | None
) -> int:
    keeper.start()
    _stop_on_signal(keeper)
    if listener is None:
        keeper.adopt_agent(socket.socket(fileno=options.agent_fd))
    else:
        accept = functools.partial(
            _accept, keeper, listener, options.engine_uid
        )
        keeper.watch(listener, accept)
    notify("READY=1")
    keeper.run()
    notify("STOPPING=1")
    return os.EX_OK


def _engine_uid() -> int:
    """Give the package's engine user; a fixed number where it is missing."""
    try:
        return pwd.getpwnam(ENGINE_USER).pw_uid
    except KeyError:
        return firewall.ENGINE_UID


def _identity(options: argparse.Namespace) -> tuple[int | None, int | None]:
    """Give whom to become: as asked; root becomes the package's user.

    Fixed numbers where its names are missing, and that is said.
    """
    uid, gid = options.uid, options.gid
    if os.geteuid() != 0 or (uid is not None and gid is not None):
        return uid, gid
    try:
        found = (
            pwd.getpwnam(firewall.USER).pw_uid,
            grp.getgrnam(firewall.GROUP).gr_gid,
        )
    except KeyError:
        found = (firewall.KEEPER_GID, firewall.KEEPER_GID)
        _say(f"no user {firewall.USER}: running as number {found[0]}")
    return (
        found[0] if uid is None else uid,
        found[1] if gid is None else gid,
    )


def _will_need_reserve(uid: int | None) -> bool:
    return bool(uid) and os.geteuid() == 0 and TunSource.needs_reserve()


def _listen(path: Path) -> socket.socket:
    """Make the socket. Who may speak is decided by SO_PEERCRED."""
    path.unlink(missing_ok=True)
    sock = socket.socket(
        socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
    )
    sock.bind(str(path))
    path.chmod(0o666)
    sock.listen(2)
    return sock


def _accept(keeper: Keeper, listener: socket.socket, engine_uid: int) -> None:
    """Take a connection for its role; one too many is closed."""
    sock, _ = listener.accept()
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    uid = _PEERCRED.unpack(raw)[1]
    keeper.forget_the_dead()
    if uid == 0 and not keeper.has_agent:
        keeper.adopt_agent(sock)
    elif uid == engine_uid and not keeper.has_engine:
        keeper.adopt_engine(sock)
    else:
        sock.close()


def _stop_on_signal(keeper: Keeper) -> None:
    """Have SIGTERM end the loop, which closes the network."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    # detached: it stays open as long as this process lives
    signal.set_wakeup_fd(theirs.detach())
    signal.signal(signal.SIGTERM, lambda *_: None)
    # a person's interrupt goes to the agent, which then ends us
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wake() -> None:
        if signal.SIGTERM in ours.recv(64):
            keeper.stop()

    keeper.watch(ours, wake)


def _say(error: object) -> None:
    print(f"qubes-vpn-keeper: {error}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
