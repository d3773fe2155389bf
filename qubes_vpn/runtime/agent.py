"""The agent's loop: one profile, a keeper, an engine, and people.

It parses the profile, resolves names, gives the keeper the endpoints and the
engine its job, shows what they report, and starts again whatever died. It
touches no packet. How keeper and engine come to be is the Wiring's business:
children of a foreground process, or units of systemd.
"""

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from qubes_vpn.errors import OsRefusedError
from qubes_vpn.keeper import messages as keeper_messages
from qubes_vpn.keeper.client import KeeperClient
from qubes_vpn.keeper.codec import MessageError
from qubes_vpn.policy.phase import Address
from qubes_vpn.runtime import messages
from qubes_vpn.runtime.calls import Calls
from qubes_vpn.runtime.control import ControlServer
from qubes_vpn.runtime.engine_talk import EngineTalk
from qubes_vpn.runtime.resolve import candidates, lookup
from qubes_vpn.runtime.task import People, Task, Wiring
from qubes_vpn.runtime.view import View
from qubes_vpn.system import uplink6
from qubes_vpn.system.inotify import Folders
from qubes_vpn.system.notify import notify

# Notices tell what happens: this finds what no notice came for. Shorter than
# half of our unit's WatchdogSec.
LOOK_S: Final = 20.0
RESTART_FIRST_S: Final = 0.2
RESTART_MAX_S: Final = 5.0
STOP_S: Final = 3.0
KEEPER_START_S: Final = 30.0
RESOLVE_RETRY_S: Final = 5.0
FINAL: Final = frozenset(
    {os.EX_OK, os.EX_NOPERM, os.EX_UNAVAILABLE, os.EX_CONFIG}
)


class Agent:
    """Keeps one task going until told to stop."""

    def __init__(
        self, task: Task, wiring: Wiring, control: str, people: People
    ) -> None:
        self._task = task
        self._wiring = wiring
        self._people = people
        self._selector = selectors.DefaultSelector()
        self._control = ControlServer(control, self._selector, self._on_verb)
        self._keeper: KeeperClient | None = None
        self._engine: EngineTalk | None = None
        self._view = View(task.name)
        self._start_at = self._look_at = 0.0
        self._backoff = RESTART_FIRST_S
        self._stop_by: float | None = None
        self._status: int | None = None
        self._shown = ""
        self._calls = Calls(self._selector)
        self._folders = Folders()
        self._selector.register(
            self._folders, selectors.EVENT_READ, self._on_files
        )

    # --- the loop

    def run(self) -> int:
        """Work until stopped. Gives the exit status."""
        self._calls.on_signal(signal.SIGTERM, self.stop)
        self._calls.on_signal(signal.SIGINT, self.stop)
        self._calls.on_signal(signal.SIGUSR1, self._reconnect)
        notify("READY=1")
        try:
            while self._status is None:
                self._step()
        finally:
            self._shut_down()
        return self._status

    def _step(self) -> None:
        now = time.monotonic()
        if self._stop_by is not None and now >= self._stop_by:
            self._status = os.EX_OK
            return
        if self._engine is None and now >= self._start_at:
            self._start(now)
        ready = self._selector.select(self._wait(time.monotonic()))
        for key, _ in ready:
            # one that was handled just now may have closed the others
            if self._selector.get_map().get(key.fd) == key:
                key.data()
        now = time.monotonic()
        if self._keeper is not None and now >= self._look_at:
            self._look_at = now + LOOK_S
            self._check_keeper()
            self._on_files()

    def _wait(self, now: float) -> float:
        times = [self._look_at if self._keeper else now + LOOK_S]
        if self._engine is None:
            times.append(self._start_at)
        if self._stop_by is not None:
            times.append(self._stop_by)
        return max(min(times) - now, 0.0)

    def _reconnect(self) -> None:
        self._tell(messages.Reconnect("asked"))

    def stop(self) -> None:
        """Say goodbye to the server, and end with status 0."""
        if self._stop_by is None:
            self._stop_by = time.monotonic() + STOP_S
            notify("STOPPING=1")
            if self._engine is None:
                self._status = os.EX_OK
            else:
                self._tell(messages.Stop())

    def switch(self, task: Task) -> None:
        """Take another profile; the network stays closed between the two."""
        self._task = task
        self._view.profile = task.name
        self._lose_engine("switched")
        self._start_at = 0.0

    # --- keeper and engine

    def _start(self, now: float) -> None:
        """Start what is missing. The order is: keeper, endpoints, engine."""
        try:
            if self._keeper is None:
                sock = self._wiring.start_keeper()
                self._keeper = KeeperClient(sock, on_notice=self._on_notice)
                self._selector.register(
                    sock, selectors.EVENT_READ, self._on_keeper
                )
                self._look_at = 0.0
            if not self._give_endpoints():
                self._start_at = now + RESOLVE_RETRY_S
                return
            self._start_engine(self._keeper)
        except (OsRefusedError, OSError) as error:
            # OSError: no descriptor or no process is left
            self._say("QV-401", str(error))
            self._lose_keeper()
            self._put_off(now)

    def _start_engine(self, keeper: KeeperClient) -> None:
        self._engine = EngineTalk(self._wiring.start_engine(keeper))
        self._selector.register(
            self._engine, selectors.EVENT_READ, self._on_engine
        )
        self._engine.tell_job(
            messages.Start(self._view.candidates, self._task.plane),
            self._task.job,
        )

    def _on_files(self) -> None:
        """Look at the files that we follow, and hear of the next change."""
        self._folders.receive()
        self._folders.follow(
            folder
            for path in self._files()
            for folder in (path.parent, path.resolve().parent)
        )
        task = self._task.reread()
        if task is not self._task:
            self._task = task
            if self._engine is not None:
                self._engine.tell_job(messages.Revocations(), task.job)

    def _files(self) -> Iterator[Path]:
        """Give what is followed; of a folder, a file in it."""
        yield from self._task.followed()

    def _put_off(self, now: float) -> None:
        self._start_at = now + self._backoff
        self._backoff = min(self._backoff * 2, RESTART_MAX_S)

    def _give_endpoints(self) -> bool:
        """Number the endpoints and tell the keeper; False: none was found."""
        assert self._keeper is not None
        found = candidates(self._task.profile, self._lookup)
        if self._task.uplink6 is None and not self._task.any_family:
            found = tuple(c for c in found if c.endpoint.address.version == 4)
        if not found:
            remotes = self._task.profile.remotes
            hosts = {remote.host for remote in remotes}
            self._say(
                "QV-310",
                f"no address for {', '.join(sorted(hosts))} (remote); next try"
                f" in {RESOLVE_RETRY_S:.0f} s",
            )
            return False
        self._view.candidates = found
        endpoints = tuple(each.endpoint for each in found)
        # a fresh keeper answers once it has closed everything
        self._keeper.request(
            keeper_messages.SetEndpoints(endpoints), timeout=KEEPER_START_S
        )
        # the keeper has just let IPv6 onto the uplink, and only then
        six = any(each.endpoint.address.version == 6 for each in found)
        if six and self._task.uplink6 is not None:
            uplink6.configure(self._task.uplink, *self._task.uplink6)
        return True

    def _lookup(self, name: str, family: int) -> list[Address]:
        if self._task.resolver is None:
            return self._task.cache.get(name, family)
        assert self._keeper is not None
        self._show(f"resolve {name}")
        ask = (self._keeper, self._task.resolver, self._task.cache)
        return lookup(*ask, name, family)

    def _on_keeper(self) -> None:
        assert self._keeper is not None
        try:
            self._keeper.receive()
        except OsRefusedError as error:
            self._say("QV-402", f"{error}; the network is closed")
            self._lose_keeper()
            self._put_off(time.monotonic())

    def _check_keeper(self) -> None:
        """See whether the keeper answers; a silent one is replaced."""
        assert self._keeper is not None
        try:
            reply, _ = self._keeper.request(keeper_messages.GetStatus())
        except OsRefusedError as error:
            self._say("QV-402", f"the keeper does not answer ({error})")
            self._lose_keeper()
            self._put_off(time.monotonic())
            return
        if isinstance(reply, keeper_messages.KeeperStatus):
            self._view.take(reply)

    def _on_notice(self, notice: keeper_messages.Notice) -> None:
        match notice:
            case keeper_messages.PhaseChanged(phase, _):
                self._on_phase(phase)
            case keeper_messages.EngineLost(reason):
                self._say("QV-403", f"the engine was lost: {reason}")
                self._calls.soon(lambda: self._lose_engine(reason))
            case keeper_messages.Repaired(layer, what, culprit):
                self._view.repairs += 1
                self._view.culprit = culprit or self._view.culprit
                self._say("QV-404", f"{layer}: {what} undone ({culprit})")
            case keeper_messages.ForwardingChanged(reason):
                self._view.stopped = reason
                what = f"nothing is forwarded: {reason}"
                self._say("QV-405", what if reason else "forwarding goes on")
                self._changed()
            case keeper_messages.DnsChanged():
                self.on_dns(notice)
            case keeper_messages.Commands(lines):
                for line in lines:
                    self._people.line(line)
            case keeper_messages.PeerEvent():
                pass  # the engine's

    def _on_phase(self, phase: str) -> None:
        self._view.phase = phase
        if phase == "connected":
            self._backoff = RESTART_FIRST_S
        if self._view.connected:
            self._show_view()
        self._changed()

    def on_dns(self, notice: keeper_messages.DnsChanged) -> None:
        """Take note of the tunnel's resolvers; in a qube, files follow."""

    def _lose_keeper(self) -> None:
        if self._keeper is not None:
            self._selector.unregister(self._keeper.fileno())
            self._keeper.close()
            self._keeper = None
        if self._wiring.end_keeper() == os.EX_UNAVAILABLE:
            # it needs a lock that is not there: no second try changes that
            self._status = os.EX_UNAVAILABLE
        self._lose_engine("the keeper is gone")

    def _lose_engine(self, reason: str) -> None:
        if self._engine is None:
            return
        self._selector.unregister(self._engine)
        self._engine.close()
        self._engine = None
        self._wiring.end_engine()
        self._view.report = messages.Report("wait", "QV-403", reason)
        self._put_off(time.monotonic())
        self._look_at = 0.0  # it may have ended because the keeper hangs
        self._changed()

    # --- the engine's words

    def _on_engine(self) -> None:
        assert self._engine is not None
        try:
            message = self._engine.receive()
        except (OSError, MessageError) as error:
            if self._stop_by is not None:
                self._status = os.EX_OK
                return
            self._say("QV-403", f"the engine ended ({error}); starting again")
            self._lose_engine(str(error))
            return
        self._heard(message)

    def _heard(self, message: object) -> None:
        match message:
            case messages.Report():
                before, self._view.report = self._view.report, message
                if message.stage != before.stage:
                    self._show_view()
                self._changed()
            case messages.Told(code, text):
                self._say(code, text)
            case messages.Prompt():
                self._on_prompt(message)
            case messages.NeedAddresses():
                if self._give_endpoints():
                    self._tell(messages.Candidates(self._view.candidates))
            case messages.Finished(status, code, reason):
                if self._stop_by is None and reason:
                    self._say(code, reason)
                self._status = status if status in FINAL else os.EX_SOFTWARE
            case _:
                self._lose_engine("it said what engines do not say")

    def _tell(self, message: object) -> None:
        if self._engine is not None:
            self._engine.tell(message)

    # --- people

    def _say(self, code: str, text: str) -> None:
        self._people.line(f"{code} {text}".strip())
        notify(f"STATUS={self._view.phase}: {text[:200]}")

    def _show(self, text: str) -> None:
        if text and text != self._shown:
            self._shown = text
            self._people.line(text)

    def _show_view(self) -> None:
        if self._view.connected:
            notify("STATUS=connected")
        self._show(self._view.line())

    def _on_prompt(self, prompt: messages.Prompt) -> None:
        self._view.ask(prompt, time.monotonic())
        self._say("QV-320", prompt.prompt)
        self._changed()

        def done(username: str, password: str) -> None:
            self._calls.soon(lambda: self._answer(username, password))

        self._people.ask(prompt, done)

    def _answer(self, username: str, password: str) -> bool:
        prompt = self._view.answered()
        if prompt is None:
            return False
        self._tell(messages.Answer(prompt.kind, username, password))
        return True

    def _on_verb(self, verb: str, request: dict[str, Any]) -> dict[str, Any]:
        match verb:
            case "status" | "watch":
                if self._view.stopped:  # no notice says for how much longer
                    self._check_keeper()
                return self.status()
            case "connect":
                self._reconnect()
            case "disconnect":
                self._tell(messages.Disconnect())
            case "answer":
                username = str(request.get("username", ""))
                if not self._answer(username, str(request.get("password", ""))):
                    return {"ok": False, "error": "nothing was asked"}
            case _:
                return {"ok": False, "error": f"no verb {verb!r}"}
        return {"ok": True}

    def _changed(self) -> None:
        self._control.changed(self.status())

    def status(self) -> dict[str, Any]:
        """Give the status, schema version 1."""
        return self._view.status(time.monotonic())

    def _shut_down(self) -> None:
        """End everything; the lock stays, and so the network is closed."""
        if self._keeper is not None:
            with contextlib.suppress(OsRefusedError):
                self._keeper.request(
                    keeper_messages.Close(final=self._status != os.EX_OK)
                )
            self._keeper.close()
        if self._engine is not None:
            self._engine.close()
        self._wiring.end_engine()
        self._wiring.end_keeper()
        self._control.close()
        self._calls.close()
        self._folders.close()
