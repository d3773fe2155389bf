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
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address
from typing import Any, Final, Protocol

from qubes_vpn.config.profile import ClientProfile
from qubes_vpn.errors import OsRefusedError
from qubes_vpn.keeper import messages as keeper_messages
from qubes_vpn.keeper.client import KeeperClient
from qubes_vpn.keeper.codec import MessageError, receive_record, send_record
from qubes_vpn.policy.phase import Address
from qubes_vpn.runtime import job as jobs
from qubes_vpn.runtime import messages
from qubes_vpn.runtime.control import ControlServer
from qubes_vpn.runtime.resolve import AddressCache, candidates, query
from qubes_vpn.system import uplink6
from qubes_vpn.system.notify import notify

PING_S: Final = 2.0
RESTART_FIRST_S: Final = 0.2
RESTART_MAX_S: Final = 5.0
STOP_S: Final = 3.0
KEEPER_START_S: Final = 30.0
RESOLVE_RETRY_S: Final = 5.0
FINAL: Final = frozenset(
    {os.EX_OK, os.EX_NOPERM, os.EX_UNAVAILABLE, os.EX_CONFIG}
)


class Wiring(Protocol):
    """Brings keeper and engine to life, and ends them."""

    def start_keeper(self) -> socket.socket:
        """Start a keeper; give the agent's end of its socket."""

    def start_engine(self, keeper: KeeperClient) -> socket.socket:
        """Start an engine that `keeper` serves; give our end of its socket."""

    def end_keeper(self) -> int | None:
        """Make sure that no keeper of ours runs; give its exit status."""

    def end_engine(self) -> None:
        """Make sure that no engine of ours runs."""


@dataclass(slots=True)
class Task:
    """What to connect with.

    resolver: who is asked for the names of servers; None: nobody.
    uplink6: our IPv6 address on the uplink and its gateway's, if there are
    any: without them only IPv4 endpoints are tried. plane: auto, userspace
    or kernel. read: reads the profile's files again; raises OSError.
    """

    name: str
    profile: ClientProfile
    job: jobs.Job
    resolver: Address | None = None
    cache: AddressCache = field(default_factory=AddressCache)
    uplink: str = "eth0"
    uplink6: tuple[IPv6Address, IPv6Address] | None = None
    plane: str = "auto"
    read: Callable[[str], bytes] | None = None


def void(_: object) -> None:
    """Drop a result."""


class People(Protocol):
    """Where lines for a person go, and where prompts are asked."""

    def line(self, text: str) -> None:
        """Show one line."""

    def ask(
        self, prompt: messages.Prompt, done: Callable[[str, str], None]
    ) -> None:
        """Ask, if somebody is there; `done` may be called from a thread."""


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
        self._engine: socket.socket | None = None
        self._candidates: tuple[messages.Candidate, ...] = ()
        self._phase = "blocked"
        self._repairs, self._culprit = 0, ""
        self._stopped, self._resumes_in = "", 0
        self._report = messages.Report("wait")
        self._prompt: messages.Prompt | None = None
        self._prompt_until = 0.0
        self._start_at = self._ping_at = 0.0
        self._backoff = RESTART_FIRST_S
        self._stop_by: float | None = None
        self._status: int | None = None
        self._sequence = 0
        self._shown = ""
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK)
        self._calls: list[Callable[[], None]] = []
        self._selector.register(
            self._wake_read, selectors.EVENT_READ, self._on_wake
        )

    # --- the loop

    def run(self) -> int:
        """Work until stopped. Gives the exit status."""
        previous = signal.set_wakeup_fd(
            self._wake_write, warn_on_full_buffer=False
        )
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._on_signal)
        notify("READY=1")
        try:
            while self._status is None:
                self._step()
        finally:
            signal.set_wakeup_fd(previous)
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
        if self._keeper is not None and now >= self._ping_at:
            self._ping_at = now + PING_S
            self._check_keeper()
            self._look_at_revocations()

    def _wait(self, now: float) -> float:
        times = [self._ping_at if self._keeper else now + PING_S]
        if self._engine is None:
            times.append(self._start_at)
        if self._stop_by is not None:
            times.append(self._stop_by)
        return max(min(times) - now, 0.0)

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGUSR1:
            self._calls.append(lambda: self._tell(messages.Reconnect("asked")))
        else:
            self._calls.append(self.stop)

    def call_soon(self, function: Callable[[], None]) -> None:
        """Have the loop call `function`; safe from any thread."""
        self._calls.append(function)
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        while self._calls:
            self._calls.pop(0)()

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
                self._ping_at = now + PING_S
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
        self._engine = self._wiring.start_engine(keeper)
        self._selector.register(
            self._engine, selectors.EVENT_READ, self._on_engine
        )
        self._tell_job(messages.Start(self._candidates, self._task.plane))

    def _tell_job(self, message: object) -> None:
        descriptor = jobs.pack(self._task.job)
        try:
            self._tell(message, (descriptor,))
        finally:
            os.close(descriptor)

    def _look_at_revocations(self) -> None:
        """Read the list of crl-verify again; tell the engine of a change."""
        task = self._task
        path = task.profile.server_check.crl_path
        if not path or task.read is None:
            return
        job = task.job.reread(path, task.read)
        if job != task.job:
            self._task = replace(task, job=job)
            self._tell_job(messages.Revocations())

    def _put_off(self, now: float) -> None:
        self._start_at = now + self._backoff
        self._backoff = min(self._backoff * 2, RESTART_MAX_S)

    def _give_endpoints(self) -> bool:
        """Number the endpoints and tell the keeper; False: none was found."""
        assert self._keeper is not None
        found = candidates(self._task.profile, self._lookup)
        if self._task.uplink6 is None:
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
        self._candidates = found
        endpoints = tuple(each.endpoint for each in found)
        # a fresh keeper answers once it has closed everything
        self._keeper.request(
            keeper_messages.SetEndpoints(endpoints), timeout=KEEPER_START_S
        )
        # the keeper has just let IPv6 onto the uplink, and only then
        if any(each.endpoint.address.version == 6 for each in found):
            assert self._task.uplink6 is not None
            uplink6.configure(self._task.uplink, *self._task.uplink6)
        return True

    def _lookup(self, name: str, family: int) -> list[Address]:
        cache, resolver = self._task.cache, self._task.resolver
        if resolver is None:
            return cache.get(name, family)
        keeper = self._keeper
        assert keeper is not None

        def open_socket(address: Address) -> socket.socket:
            _, descriptors = keeper.request(
                keeper_messages.OpenResolver(address)
            )
            return socket.socket(fileno=descriptors[0])

        self._show(f"resolve {name}")
        try:
            found = query(name, family, resolver, open_socket)
        finally:
            keeper.request(keeper_messages.CloseResolver())
        if found:
            cache.store(name, family, found)
        return found or cache.get(name, family)

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
            self._repairs, self._culprit = reply.repairs, reply.culprit
            self._stopped, self._resumes_in = reply.stopped, reply.resumes_in
            if self._phase == "connected":
                self._backoff = RESTART_FIRST_S

    def _on_notice(self, notice: keeper_messages.Notice) -> None:
        match notice:
            case keeper_messages.PhaseChanged(phase, _):
                self._phase = phase
                self._show_connected()
                self._changed()
            case keeper_messages.EngineLost(reason):
                self._say("QV-403", f"the engine was lost: {reason}")
                self.call_soon(lambda: self._lose_engine(reason))
            case keeper_messages.Repaired(layer, what, culprit):
                self._repairs += 1
                self._culprit = culprit
                self._say("QV-404", f"{layer}: {what} undone ({culprit})")
            case keeper_messages.ForwardingChanged(reason):
                self._stopped = reason
                what = f"nothing is forwarded: {reason}"
                self._say("QV-405", what if reason else "forwarding goes on")
                self._changed()
            case keeper_messages.DnsChanged():
                self.on_dns(notice)
            case keeper_messages.PeerEvent():
                pass  # the engine's

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
        self._report = messages.Report("wait", "QV-403", reason)
        self._put_off(time.monotonic())
        self._changed()

    # --- the engine's words

    def _on_engine(self) -> None:
        assert self._engine is not None
        try:
            data, descriptors = receive_record(self._engine)
            for descriptor in descriptors:
                os.close(descriptor)
            if not data:
                raise OSError("end of file")
            message = messages.CODEC.decode(data)[1]
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
                before, self._report = self._report, message
                if message.stage != before.stage:
                    self._show_stage(message)
                    self._show_connected()
                self._changed()
            case messages.Told(code, text):
                self._say(code, text)
            case messages.Prompt():
                self._on_prompt(message)
            case messages.NeedAddresses():
                if self._give_endpoints():
                    self._tell(messages.Candidates(self._candidates))
            case messages.Finished(status, code, reason):
                if self._stop_by is None and reason:
                    self._say(code, reason)
                self._status = status if status in FINAL else os.EX_SOFTWARE
            case _:
                self._lose_engine("it said what engines do not say")

    def _tell(self, message: object, descriptors: tuple[int, ...] = ()) -> None:
        if self._engine is None:
            return
        self._sequence += 1
        # a dead engine is noticed by the end of its socket
        with contextlib.suppress(OSError):
            send_record(
                self._engine,
                messages.CODEC.encode(self._sequence, message),
                descriptors,
            )

    # --- people

    def _say(self, code: str, text: str) -> None:
        self._people.line(f"{code} {text}".strip())
        notify(f"STATUS={self._phase}: {text[:200]}")

    def _show(self, text: str) -> None:
        if text != self._shown:
            self._shown = text
            self._people.line(text)

    def _show_stage(self, report: messages.Report) -> None:
        if report.stage in ("reach", "tls", "authenticate", "configure"):
            remote = self._remote(report)
            self._show(f"{report.stage} {remote.get('address', '')}".strip())

    def _show_connected(self) -> None:
        """Say so once both the keeper and the engine do."""
        report = self._report
        if (self._phase, report.stage) != ("connected", "connected"):
            return
        remote = self._remote(report)
        notify("STATUS=connected")
        self._show(
            f"connected {remote.get('address', '?')} port"
            f" {remote.get('port', '?')}/{remote.get('proto', '?')}"
            f" {report.cipher} {report.device} {' '.join(report.addresses)}"
        )

    def _on_prompt(self, prompt: messages.Prompt) -> None:
        self._prompt = prompt
        self._prompt_until = time.monotonic() + prompt.timeout
        self._say("QV-320", prompt.prompt)
        self._changed()

        def done(username: str, password: str) -> None:
            self.call_soon(lambda: void(self._answer(username, password)))

        self._people.ask(prompt, done)

    def _answer(self, username: str, password: str) -> bool:
        prompt, self._prompt = self._prompt, None
        if prompt is None:
            return False
        self._tell(messages.Answer(prompt.kind, username, password))
        return True

    def _on_verb(self, verb: str, request: dict[str, Any]) -> dict[str, Any]:
        match verb:
            case "status" | "watch":
                return self.status()
            case "connect":
                self._tell(messages.Reconnect("asked"))
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

    def _remote(self, report: messages.Report) -> dict[str, Any]:
        if not 0 <= report.candidate < len(self._candidates):
            return {}
        candidate = self._candidates[report.candidate]
        return {
            "host": candidate.host,
            "address": str(candidate.endpoint.address),
            "port": candidate.endpoint.port,
            "proto": str(candidate.endpoint.transport),
        }

    def status(self) -> dict[str, Any]:
        """Give the status, schema version 1."""
        report, prompt = self._report, self._prompt
        if prompt is not None and time.monotonic() > self._prompt_until:
            prompt = self._prompt = None
        return {
            "ok": True,
            "phase": self._phase,
            "stage": report.stage,
            "reason": {"code": report.code, "text": report.reason},
            "profile": self._task.name,
            "remote": self._remote(report),
            "cipher": report.cipher,
            "tls": report.tls,
            "server_name": report.server_name,
            "device": report.device,
            "plane": {"name": report.plane, "why": report.plane_reason},
            "addresses": list(report.addresses),
            "dns": list(report.dns),
            "routes": list(report.routes),
            "mtu": report.mtu,
            "connected_for": report.connected_for,
            "attempt": report.attempt,
            "rekeys": report.rekeys,
            "counters": {
                "rx_packets": report.rx_packets,
                "rx_bytes": report.rx_bytes,
                "tx_packets": report.tx_packets,
                "tx_bytes": report.tx_bytes,
            },
            "drops": dict(report.drops),
            "refused": [list(item) for item in report.refused],
            "prompt": {"kind": prompt.kind, "text": prompt.prompt}
            if prompt
            else None,
            "repairs": self._repairs,
            "culprit": self._culprit,
            "stopped": self._stopped,
            "resumes_in": self._resumes_in,
        }

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
        os.close(self._wake_read)
        os.close(self._wake_write)
