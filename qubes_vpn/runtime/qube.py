"""The agent in a qube: Agent, joined with QubesDB, files and notifications.

Keeper and engine are units of systemd: they come to us by their sockets and
are started again by systemd. With no usable profile, with the service turned
off, or beside another VPN program there are no endpoints: everything stays
closed, and the status says why.
"""

import contextlib
import os
import pwd
import selectors
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from qubes_vpn.config.profile import ClientProfile, parse_client_profile
from qubes_vpn.config.profile import ServerCheck as _ServerCheck
from qubes_vpn.errors import OsRefusedError, VpnError
from qubes_vpn.keeper import messages as keeper_messages
from qubes_vpn.keeper.client import KeeperClient
from qubes_vpn.qubes import agent as qube
from qubes_vpn.qubes.profiles import FOLDER, Profiles, choose
from qubes_vpn.qubes.qubesdb import Change, Database
from qubes_vpn.runtime import messages
from qubes_vpn.runtime.agent import Agent, Task
from qubes_vpn.runtime.control import DEFAULT_PATH
from qubes_vpn.runtime.files import profile_reader, read_profile
from qubes_vpn.runtime.foreground import ENGINE_ID, read_login
from qubes_vpn.runtime.job import Job, RecordingReader
from qubes_vpn.runtime.resolve import AddressCache
from qubes_vpn.system.notify import notify

ENGINE_USER: Final = "qubes-vpn-engine"
QREXEC: Final = "/usr/bin/qrexec-client-vm"
ENGINE_WAIT_S: Final = 5.0
RUN_MAX_S: Final = 20.0

_KIND_OF_CODE: Final = (
    ("QV-320", "authentication needed"),
    ("QV-404", "leak attempt undone"),
    ("QV-405", "forwarding"),
    ("QV-54", "the server's certificate"),
    ("QV-51", "authentication"),
    ("QV-50", "the server"),
    ("QV-310", "the server"),
    ("QV-33", "closed"),
    ("QV-4", "closed"),
)


def notice_kind(code: str) -> str:
    """Give the kind of notification that a code is; "": none."""
    kinds = (kind for start, kind in _KIND_OF_CODE if code.startswith(start))
    return next(kinds, "")


@dataclass(frozen=True, slots=True)
class Places:
    """Where the agent finds what it works with."""

    folder: Path = FOLDER
    control: str = DEFAULT_PATH
    keeper: str = "/run/qubes-vpn/keeper.sock"
    engine: str = "/run/qubes-vpn/agent.sock"
    resolv_conf: Path = qube.RESOLV_CONF
    proc: Path = Path("/proc")


class Units:
    """Keeper and engine as units; a Wiring. systemd starts and ends them."""

    def __init__(self, places: Places, engine_uid: int) -> None:
        self._places = places
        self._engine_uid = engine_uid
        path = Path(places.engine)
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(places.engine)
        # who may speak is decided by SO_PEERCRED
        path.chmod(0o666)
        self._listener.listen(1)
        self._listener.settimeout(ENGINE_WAIT_S)

    def start_keeper(self) -> socket.socket:
        """Connect to the keeper. Raises OsRefusedError."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(self._places.keeper)
        except OSError as error:
            sock.close()
            raise OsRefusedError(
                f"the keeper is not there ({error.strerror}): see"
                " systemctl status qubes-vpn-keeper"
            ) from error
        return sock

    def start_engine(self, keeper: KeeperClient) -> socket.socket:  # noqa: ARG002  the engine has connected to it by itself
        """Wait for the engine to connect. Raises OsRefusedError."""
        end = time.monotonic() + ENGINE_WAIT_S
        while time.monotonic() < end:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                break
            if _peer_uid(sock) in (0, self._engine_uid):
                return sock
            sock.close()
        raise OsRefusedError(
            "the engine is not there: see systemctl status qubes-vpn-engine"
        )

    def end_keeper(self) -> int | None:
        """Leave it to systemd."""
        return None

    def end_engine(self) -> None:
        """Leave it to systemd: it ends when its socket to us is closed."""


def _peer_uid(sock: socket.socket) -> int:
    raw = sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    uid: int = struct.unpack("3i", raw)[1]
    return uid


def engine_uid() -> int:
    """Give the engine's uid; a fixed number where its name is missing."""
    try:
        return pwd.getpwnam(ENGINE_USER).pw_uid
    except KeyError:
        return ENGINE_ID


def run_command(command: Sequence[str]) -> int:
    """Run one of Qubes' programs. Raises OSError if it does not run."""
    try:
        return subprocess.run(  # noqa: S603  fixed programs, no shell
            list(command),
            stdin=subprocess.DEVNULL,
            timeout=RUN_MAX_S,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{command[0]} does not end") from error


class Screen:
    """The journal, and the user's screen; a People."""

    def __init__(self, user: str) -> None:
        self._user = user
        self._shown: list[subprocess.Popen[bytes]] = []

    def line(self, text: str) -> None:
        """Write a line to the journal."""
        with contextlib.suppress(OSError):
            print(qube.printable(text), flush=True)  # noqa: T201

    def ask(
        self,
        prompt: messages.Prompt,
        done: Callable[[str, str], None],
    ) -> None:
        """Leave it to `qubes-vpn answer`: a notice has been shown."""

    def open_url(self, url: str) -> None:
        """Have another qube open an address; the policy asks which one."""
        self._reap()
        with contextlib.suppress(OSError):
            child = subprocess.Popen(  # noqa: S603  fixed program, no shell
                [QREXEC, "@dispvm", "qubes.OpenURL"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
            )
            self._shown.append(child)
            assert child.stdin is not None
            with child.stdin as pipe:
                pipe.write(f"{url}\n".encode())

    def _reap(self) -> None:
        self._shown = [each for each in self._shown if each.poll() is None]

    def notice(self, title: str, text: str) -> None:
        """Show a notification, where there is a session."""
        self._reap()
        try:
            uid = pwd.getpwnam(self._user).pw_uid
            command = qube.notify_command(self._user, uid, title, text)
            if Path(f"/run/user/{uid}/bus").exists():
                self._shown.append(
                    subprocess.Popen(  # noqa: S603  fixed program, no shell
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                    )
                )
        except (KeyError, OSError):
            # a minimal template has no session: the journal has it
            pass


@dataclass(frozen=True, slots=True)
class Closed:
    """Why nothing is connected to. code and text for the status."""

    code: str
    text: str


_NO_REMOTES: Final = ClientProfile(remotes=(), server_check=_ServerCheck())


class QubeAgent(Agent):
    """Follows QubesDB, and keeps the qube's files in step with the tunnel."""

    def __init__(
        self,
        database: Database,
        profiles: Profiles,
        places: Places,
        wiring: Units,
        screen: Screen,
        run: qube.Run = run_command,
    ) -> None:
        self._database = database
        self._profiles = profiles
        self._places = places
        self._screen = screen
        self._notices = qube.Notices(screen.notice)
        self._dns = qube.DnsFiles(run, places.resolv_conf)
        self._on = True
        self._closed: Closed | None = None
        self._told: Closed | None = None
        self._before = "blocked"
        self._stamp: tuple[object, ...] = ()
        task = self._choose()
        super().__init__(task, wiring, places.control, screen)
        self._selector.register(
            database.watch(), selectors.EVENT_READ, self._on_database
        )

    def _step(self) -> None:
        # it returns every few seconds, whatever happens
        super()._step()
        notify("WATCHDOG=1")

    # --- the profile

    def _choose(self) -> Task:
        """Make the task for the profile that is wanted now."""
        self._stamp = self._profiles.stamp()
        wanted = self._database.profiles()
        available = self._profiles.names()
        choice = choose(wanted, available, self._profiles.current)
        if not choice.name:
            self._closed = _no_profile(wanted, available)
            return self._nothing()
        try:
            task = self._load(choice.name)
        except VpnError as error:
            first = str(error).splitlines()[0]
            self._closed = Closed(
                "QV-335", f"the profile {choice.name} cannot be used: {first}"
            )
            return self._nothing(choice.name)
        self._closed = None
        return task

    def _nothing(self, name: str = "") -> Task:
        return Task(name, _NO_REMOTES, Job("", ""))

    def _load(self, name: str) -> Task:
        path = str(self._profiles.path(name))
        text = read_profile(path)
        dns = self._database.dns()
        if dns.address:
            text += qube.dns_directives(dns.address)
        read = profile_reader(path)
        reader = RecordingReader(read)
        profile = parse_client_profile(text, path, reader)
        login = self._profiles.credentials(name)
        username, password = read_login(str(login)) if login else (None, None)
        cache = AddressCache(str(self._profiles.state))
        cache.load()
        resolver = self._database.resolver()
        return Task(
            name=name,
            profile=profile,
            job=Job(path, text, reader.files, username, password, dns),
            resolver=ip_address(resolver) if resolver else None,
            cache=cache,
            uplink6=self._database.uplink6(),
            read=read,
        )

    def _choose_again(self) -> None:
        """Switch, if another profile or another text of it is wanted now.

        The network closes with the engine, before anything else changes.
        """
        before = self._task
        task = self._choose()
        if (task.name, task.job) != (before.name, before.job):
            self._candidates = ()
            self.switch(task)

    def _give_endpoints(self) -> bool:
        """Give none while there is a reason to stay closed."""
        closed = self._reason()
        if closed is None:
            self._told = None
            return super()._give_endpoints()
        assert self._keeper is not None
        self._keeper.request(keeper_messages.SetEndpoints(()))
        self._candidates = ()
        if closed != self._told:
            self._told = closed
            self._say(closed.code, closed.text)
        self._report = messages.Report("wait", closed.code, closed.text)
        return False

    def _reason(self) -> Closed | None:
        if not self._on:
            return Closed("QV-333", "the service qubes-vpn was turned off")
        others = qube.foreign_programs(qube.running_commands(self._places.proc))
        if others:
            return Closed(
                "QV-332",
                f"{', '.join(others)} runs in this qube: see qubes-vpn adopt",
            )
        return self._closed

    # --- QubesDB

    def _on_database(self) -> None:
        change = self._database.changed()
        match change:
            case Change.PROFILE:
                # dom0 has spoken: what was chosen here before is void
                self._profiles.choose("")
                self._choose_again()
            case Change.DNS:
                self._choose_again()
            case Change.UPLINK:
                self._uplink_changed()
            case Change.SERVICE:
                self._service_changed(on=self._database.service_on())
            case Change.CLIENTS | None:
                # groups of devices, not addresses, are what the rules match
                self._changed()

    def _uplink_changed(self) -> None:
        resolver = self._database.resolver()
        self._task = replace(
            self._task,
            resolver=ip_address(resolver) if resolver else None,
            uplink6=self._database.uplink6(),
        )
        self._tell(messages.Reconnect("the net qube changed"))
        self._start_at = 0.0
        self._dns.check()

    def _service_changed(self, *, on: bool) -> None:
        if on == self._on:
            return
        self._on = on
        self._start_at = 0.0
        if not on:
            self._tell(messages.Disconnect())
            self._say("QV-333", "the service was turned off: closed")
            self._lose_engine("the service was turned off")

    # --- what the tunnel brings

    def on_dns(self, notice: keeper_messages.DnsChanged) -> None:
        """Put the tunnel's resolvers in force in this qube."""
        if not self._dns.set(list(map(str, notice.dns)), notice.search):
            self._say("QV-334", "resolv.conf cannot be written")

    def _check_keeper(self) -> None:
        super()._check_keeper()
        # `qubes-vpn profile` writes files, and nothing else
        if self._profiles.stamp() != self._stamp:
            self._choose_again()
            self._start_at = 0.0
        if self._phase == "connected" and not self._dns.check():
            self._say("QV-334", "resolv.conf cannot be written")

    def _on_notice(self, notice: keeper_messages.Notice) -> None:
        super()._on_notice(notice)
        if isinstance(notice, keeper_messages.PhaseChanged):
            self._notify_phase(notice)

    def _notify_phase(self, notice: keeper_messages.PhaseChanged) -> None:
        before, self._before = self._before, notice.phase
        now = time.monotonic()
        if notice.phase == "connected":
            self._notices.show("up", f"connected by {self._task.name}", now)
        elif before == "connected":
            why = notice.reason or "the tunnel is down"
            self._notices.show("down", f"{why}; nothing leaves", now)

    def _say(self, code: str, text: str) -> None:
        super()._say(code, text)
        kind = notice_kind(code)
        if kind:
            self._notices.show(kind, f"{code} {text}", time.monotonic())

    def _on_prompt(self, prompt: messages.Prompt) -> None:
        super()._on_prompt(prompt)
        if prompt.kind != "url":
            return
        try:
            self._screen.open_url(qube.web_login_url(prompt.prompt))
        except ValueError as error:
            self._say("QV-336", f"the server's web login is refused: {error}")

    # --- the control socket

    def _on_verb(self, verb: str, request: dict[str, Any]) -> dict[str, Any]:
        match verb:
            case "switch":
                return self._switch_to(str(request.get("profile", "")))
            case "reload":
                self._choose_again()
                self._start_at = 0.0
                return {"ok": True}
            case "endpoints":
                return self._endpoints(anew=request.get("refresh") is True)
            case "connect":
                self._start_at = 0.0
                return super()._on_verb(verb, request)
            case _:
                return super()._on_verb(verb, request)

    def _switch_to(self, name: str) -> dict[str, Any]:
        wanted, available = self._database.profiles(), self._profiles.names()
        if name not in available:
            return {"ok": False, "error": f"there is no profile {name!r}"}
        if wanted and name not in wanted:
            return {
                "ok": False,
                "error": f"vm-config.vpn-profile allows {', '.join(wanted)}",
            }
        self._profiles.choose(name)
        self._choose_again()
        return {"ok": True}

    def _endpoints(self, *, anew: bool) -> dict[str, Any]:
        """Give the addresses to pin; resolve names when asked to."""
        if (anew or not self._candidates) and self._keeper is not None:
            with contextlib.suppress(OsRefusedError):
                if self._give_endpoints() and self._engine is not None:
                    self._tell(messages.Candidates(self._candidates))
        found = {
            f"{each.endpoint.address} {each.endpoint.transport}"
            f" {each.endpoint.port}"
            for each in self._candidates
        }
        return {"ok": True, "endpoints": sorted(found)}

    def status(self) -> dict[str, Any]:
        """Give the status, with what only a qube has."""
        return {
            **super().status(),
            "profiles": list(self._profiles.names()),
            "clients": self._database.clients(),
        }


def _no_profile(wanted: tuple[str, ...], available: tuple[str, ...]) -> Closed:
    if wanted:
        return Closed(
            "QV-331",
            f"none of the wanted profiles is here: {', '.join(wanted)}",
        )
    if available:
        return Closed(
            "QV-331",
            f"which profile? {', '.join(available)}: choose one with"
            " qubes-vpn menu switch, or with qvm-vpn use in dom0",
        )
    return Closed(
        "QV-330", "there is no profile yet: qvm-vpn import in dom0 brings one"
    )


def run_in_qube(database: Database, places: Places) -> int:
    """Be the agent of this qube until stopped. Gives the exit status."""
    screen = Screen(database.text("/default-user") or "user")
    wiring = Units(places, engine_uid())
    agent = QubeAgent(
        database,
        Profiles(places.folder, owner=os.geteuid()),
        places,
        wiring,
        screen,
    )
    return agent.run()
