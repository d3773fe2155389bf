"""`qubes-vpn client`: the agent in the foreground, its two children below.

The children are started before the profile is parsed, so that three
interpreters start at once; none of them does anything until told.
"""

import contextlib
import getpass
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final, TextIO

from qubes_vpn.config.profile import parse_client_profile
from qubes_vpn.errors import (
    ConfigError,
    OsRefusedError,
    Problem,
    UnreadableError,
    UsageError,
)
from qubes_vpn.keeper import messages as keeper_messages
from qubes_vpn.keeper.client import KeeperClient
from qubes_vpn.policy.firewall import DEVICE
from qubes_vpn.policy.phase import Address
from qubes_vpn.policy.routes import DEVICES
from qubes_vpn.runtime import messages
from qubes_vpn.runtime.agent import Agent
from qubes_vpn.runtime.files import (
    profile_reader,
    read_bounded,
    read_profile,
    why,
)
from qubes_vpn.runtime.job import Job, RecordingReader
from qubes_vpn.runtime.resolve import AddressCache
from qubes_vpn.runtime.task import Task
from qubes_vpn.system.privileges import CAP_NET_ADMIN, capabilities

# fixed numbers where the names of sysusers are missing (decisions)
KEEPER_ID: Final = 7078
ENGINE_ID: Final = 7079
LOGIN_MAX: Final = 4096
NOT_PROTECTED: Final = (
    "no privileges: nothing is configured either, and nothing is protected:"
    " what is not routed into the tunnel leaves in clear"
)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said."""

    profile: str
    device: str | None = None
    uplink: str = "eth0"
    auth_user_pass: str | None = None
    control: str = "/run/qubes-vpn/control.sock"
    resolver: str | None = None
    resolve: bool = True
    state: str | None = None
    uplink6: str | None = None
    unlocked: bool = False
    plane: str = "auto"
    existing: bool = False


class Children:
    """Keeper and engine as children, on socketpairs; a Wiring."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._split = os.getuid() == 0
        self._keeper: subprocess.Popen[bytes] | None = None
        self._engine: subprocess.Popen[bytes] | None = None
        self._keeper_sock: socket.socket | None = None
        self._engine_socks: tuple[socket.socket, socket.socket] | None = None

    @property
    def split(self) -> bool:
        """Tell whether the children run as users of their own."""
        return self._split

    def spawn(self) -> None:
        """Start both interpreters, to be used by the next start_ calls."""
        if self._keeper is None:
            self._spawn_keeper()
        if self._engine is None:
            self._spawn_engine()

    def _spawn_keeper(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        options = self._options
        extra = ["--unlocked"] if options.unlocked else []
        if options.existing:
            extra.append("--existing")
        if self._split:
            extra += ["--uid", str(KEEPER_ID), "--gid", str(KEEPER_ID)]
        with theirs:
            self._keeper = _python(
                "qubes_vpn.keeper",
                [
                    f"--agent-fd={theirs.fileno()}",
                    f"--uplink={options.uplink}",
                    f"--device={options.device or DEVICES[0]}",
                    *extra,
                ],
                (theirs.fileno(),),
            )
        self._keeper_sock = ours

    def _spawn_engine(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        keeper_end, engine_end = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET
        )
        extra = (
            [f"--uid={ENGINE_ID}", f"--gid={ENGINE_ID}"] if self._split else []
        )
        with theirs, engine_end:
            self._engine = _python(
                "qubes_vpn.runtime.engine",
                [
                    f"--keeper-fd={engine_end.fileno()}",
                    f"--agent-fd={theirs.fileno()}",
                    *extra,
                ],
                (theirs.fileno(), engine_end.fileno()),
            )
        self._engine_socks = ours, keeper_end

    def start_keeper(self) -> socket.socket:
        """Give the socket of a fresh keeper."""
        if self._keeper_sock is None:
            self._spawn_keeper()
        sock, self._keeper_sock = self._keeper_sock, None
        assert sock is not None
        return sock

    def start_engine(self, keeper: KeeperClient) -> socket.socket:
        """Have the keeper adopt a fresh engine; give our socket to it."""
        if self._engine_socks is None:
            self._spawn_engine()
        assert self._engine_socks is not None
        ours, keeper_end = self._engine_socks
        self._engine_socks = None
        with keeper_end:
            keeper.request(
                keeper_messages.AdoptEngine(), (keeper_end.fileno(),)
            )
        return ours

    def end_keeper(self) -> int | None:
        """Ask the keeper to end, and see that it does."""
        child, self._keeper = self._keeper, None
        if self._keeper_sock is not None:
            self._keeper_sock.close()
            self._keeper_sock = None
        return _end(child, signal.SIGTERM, 2.0)

    def end_engine(self) -> None:
        """End the engine at once: the keeper closes when it goes."""
        child, self._engine = self._engine, None
        if self._engine_socks is not None:
            for sock in self._engine_socks:
                sock.close()
            self._engine_socks = None
        _end(child, signal.SIGTERM, 0.5)


def _python(
    module: str, words: list[str], descriptors: tuple[int, ...]
) -> subprocess.Popen[bytes]:
    # -I: neither the current folder nor the environment names code
    return subprocess.Popen(  # noqa: S603 our own interpreter, no shell
        [sys.executable, "-I", "-m", module, *words],
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
    )


def _end(
    child: subprocess.Popen[bytes] | None, number: int, patience: float
) -> int | None:
    if child is None:
        return None
    child.send_signal(number)
    try:
        return child.wait(patience)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


class Terminal:
    """Lines to a stream; prompts to a terminal, where there is one."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def line(self, text: str) -> None:
        """Show one line of printable characters."""
        safe = "".join(c if c.isprintable() else "?" for c in text)
        with contextlib.suppress(OSError):
            print(safe, file=self._out, flush=True)

    def ask(
        self, prompt: messages.Prompt, done: Callable[[str, str], None]
    ) -> None:
        """Ask in a thread: the loop goes on."""
        if not sys.stdin.isatty():
            return

        def work() -> None:
            with contextlib.suppress(EOFError, OSError):
                username = (
                    input("User name: ") if prompt.kind == "credentials" else ""
                )
                read = input if prompt.echo else getpass.getpass
                done(username, read("Answer: "))

        threading.Thread(target=work, daemon=True).start()


def read_login(path: str) -> tuple[str, str]:
    """Read a user name and a password, a line each.

    Raises UnreadableError and ConfigError; neither repeats what it read.
    """
    try:
        text = read_bounded(path, LOGIN_MAX, private=True).decode()
    except OSError as error:
        raise UnreadableError(f"{path}: {why(error)}") from error
    except UnicodeDecodeError:
        raise ConfigError([Problem(path, 1, 1, "not UTF-8 text")]) from None
    lines = [line.rstrip("\r") for line in text.split("\n")]
    if len(lines) < 2 or not lines[0] or not lines[1]:
        raise ConfigError(
            [Problem(path, 1, 1, "auth-user-pass: a name, then a password")]
        )
    return lines[0], lines[1]


def system_resolver() -> Address | None:
    """Give the qube's own resolver: the first of resolv.conf."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/etc/resolv.conf").read_text().splitlines():
            words = line.split()
            if words[:1] == ["nameserver"]:
                return ip_address(words[1])
    return None


def two_addresses(text: str | None) -> tuple[IPv6Address, IPv6Address] | None:
    """Parse "ADDRESS,GATEWAY". Raises UsageError."""
    if text is None:
        return None
    try:
        address, gateway = map(IPv6Address, text.split(","))
    except ValueError as error:
        raise UsageError(f"--uplink6 {text}: {error}") from None
    return address, gateway


def load_task(options: Options) -> Task:
    """Read and parse the profile and all that it names."""
    text = read_profile(options.profile)
    read = profile_reader(options.profile)
    reader = RecordingReader(read)
    profile = parse_client_profile(text, options.profile, reader)
    username = password = None
    if options.auth_user_pass is not None:
        username, password = read_login(options.auth_user_pass)
    cache = AddressCache(options.state or "")
    cache.load()
    try:
        resolver = (
            ip_address(options.resolver)
            if options.resolver
            else system_resolver()
        )
    except ValueError as error:
        raise UsageError(f"--resolver: {error}") from None
    return Task(
        name=Path(options.profile).name,
        profile=profile,
        job=Job(options.profile, text, reader.files, username, password),
        resolver=resolver if options.resolve else None,
        cache=cache,
        uplink=options.uplink,
        uplink6=two_addresses(options.uplink6),
        plane=options.plane,
        read=read,
    )


def with_existing_device(options: Options, dev: str) -> Options:
    """Give the options for a user who may not configure the network.

    dev: of the profile. Raises UsageError and OsRefusedError.
    """
    # netlink: in this process for these users only
    from qubes_vpn.keeper.existing import try_device

    if options.plane == "kernel":
        raise UsageError("--plane kernel needs CAP_NET_ADMIN")
    if options.uplink6 is not None:
        raise UsageError("--uplink6 needs CAP_NET_ADMIN")
    name = options.device or dev
    if name == "tun" or not DEVICE.fullmatch(name):
        raise UsageError(
            "without CAP_NET_ADMIN a tun device must exist: name it, with"
            " --dev or with `dev` in the profile"
        )
    try_device(name)
    return replace(options, device=name, existing=True)


def run_foreground(options: Options, out: TextIO, err: TextIO) -> int:
    """Connect and stay. Gives the exit status."""
    if not Path("/dev/net/tun").exists():
        raise OsRefusedError("/dev/net/tun is missing: load the tun module")
    task = None
    if options.unlocked and not capabilities() >> CAP_NET_ADMIN & 1:
        task = load_task(options)
        options = with_existing_device(options, task.profile.dev)
        task.plane, task.any_family = "userspace", True
    children = Children(options)
    try:
        children.spawn()
        task = task or load_task(options)
        agent = Agent(task, children, options.control, Terminal(out))
    except BaseException:
        children.end_engine()
        children.end_keeper()
        raise
    if options.unlocked:
        print("unlocked: nothing is closed on this machine", file=out)
    if options.existing:
        print(NOT_PROTECTED, file=out)
    if not children.split:
        print("keeper and engine share this user: not root", file=err)
    return agent.run()
