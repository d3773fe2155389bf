"""The agent in a qube: Agent, joined with QubesDB, files and notifications.

Keeper and engine are units of systemd: they come to us by their sockets and
are started again by systemd. With no usable profile, with the service turned
off, or beside another VPN program there are no endpoints: everything stays
closed, and the status says why.
"""

import contextlib
import os
import selectors
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from qubes_vpn.config.profile import ClientProfile, parse_client_profile
from qubes_vpn.config.profile import ServerCheck as _ServerCheck
from qubes_vpn.errors import OsRefusedError, VpnError
from qubes_vpn.keeper import messages as keeper_messages
from qubes_vpn.qubes import agent as qube
from qubes_vpn.qubes.profiles import Profiles, choose
from qubes_vpn.qubes.qubesdb import Change, Database
from qubes_vpn.runtime import messages
from qubes_vpn.runtime.agent import Agent
from qubes_vpn.runtime.files import profile_reader, read_profile
from qubes_vpn.runtime.foreground import read_login
from qubes_vpn.runtime.job import Job, RecordingReader
from qubes_vpn.runtime.resolve import AddressCache
from qubes_vpn.runtime.screen import Screen, notice_kind, run_command
from qubes_vpn.runtime.task import Task
from qubes_vpn.runtime.units import Places, Units, engine_uid
from qubes_vpn.system.notify import notify


@dataclass(frozen=True, slots=True)
class Closed:
    """Why nothing is connected to. code and text for the status."""

    code: str
    text: str


# Of a provider's hundreds: names in the status, and in a sentence.
SHOWN_MAX: Final = 500
NAMED_MAX: Final = 6
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
        self._chosen = ""
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
        # each stamp is taken before that is read which it is of
        there = self._profiles.stamp()
        wanted = self._database.profiles()
        available = self._profiles.names()
        choice = choose(wanted, available, self._profiles.current)
        self._chosen = choice.name
        self._stamp = there + self._profiles.stamp(choice.name)
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
            self._view.candidates = ()
            self.switch(task)

    def _give_endpoints(self) -> bool:
        """Give none while there is a reason to stay closed."""
        closed = self._reason()
        if closed is None:
            self._told = None
            return super()._give_endpoints()
        assert self._keeper is not None
        self._keeper.request(keeper_messages.SetEndpoints(()))
        self._view.candidates = ()
        if closed != self._told:
            self._told = closed
            self._say(closed.code, closed.text)
        self._view.report = messages.Report("wait", closed.code, closed.text)
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

    def _files(self) -> Iterator[Path]:
        yield from super()._files()
        yield self._places.resolv_conf
        yield from self._profiles.followed(self._chosen)

    def _on_files(self) -> None:
        super()._on_files()
        # `qubes-vpn profile` writes files, and nothing else
        now = self._profiles.stamp() + self._profiles.stamp(self._chosen)
        if now != self._stamp:
            self._choose_again()
            self._start_at = 0.0
        if self._view.phase == "connected" and not self._dns.check():
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
        if (anew or not self._view.candidates) and self._keeper is not None:
            with contextlib.suppress(OsRefusedError):
                if self._give_endpoints() and self._engine is not None:
                    self._tell(messages.Candidates(self._view.candidates))
        found = {
            f"{each.endpoint.address} {each.endpoint.transport}"
            f" {each.endpoint.port}"
            for each in self._view.candidates
        }
        return {"ok": True, "endpoints": sorted(found)}

    def status(self) -> dict[str, Any]:
        """Give the status, with what only a qube has."""
        return {
            **super().status(),
            "profiles": list(self._profiles.names()[:SHOWN_MAX]),
            "clients": self._database.clients(),
        }


def _some(names: tuple[str, ...]) -> str:
    """Name a few."""
    more = len(names) - NAMED_MAX
    tail = (f"and {more:,} more",) if more > 0 else ()
    return ", ".join((*names[:NAMED_MAX], *tail))


def _no_profile(wanted: tuple[str, ...], available: tuple[str, ...]) -> Closed:
    if wanted:
        return Closed(
            "QV-331",
            f"none of the wanted profiles is here: {_some(wanted)}",
        )
    if available:
        return Closed(
            "QV-331",
            f"which profile? {_some(available)}: choose one with"
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
