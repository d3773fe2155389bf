"""The engine process: no capability, two sockets, one loop.

    python -m qubes_vpn.runtime.engine --keeper-fd N --agent-fd M
    python -m qubes_vpn.runtime.engine --keeper PATH --agent PATH

It receives its job and the numbered candidates from the agent, its sockets
and its device from the keeper, and ends when either of them is gone.
"""

import argparse
import contextlib
import errno
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from typing import Final

from qubes_vpn.config.profile import (
    ClientProfile,
    Credentials,
    parse_client_profile,
)
from qubes_vpn.engine import effects
from qubes_vpn.errors import (
    ConfigError,
    OsRefusedError,
    SessionError,
    VpnError,
)
from qubes_vpn.keeper import messages as keeper_messages
from qubes_vpn.keeper.client import KeeperClient
from qubes_vpn.keeper.codec import (
    MessageError,
    receive_record,
    send_record,
)
from qubes_vpn.runtime import job as jobs
from qubes_vpn.runtime import messages
from qubes_vpn.runtime.memory import Memory
from qubes_vpn.runtime.planes import Planes
from qubes_vpn.runtime.rotation import STABLE_S, Rotation
from qubes_vpn.runtime.session import Session, earliest
from qubes_vpn.system.notify import WATCHDOG_S, Watchdog, notify
from qubes_vpn.system.privileges import drop_privileges

RESOLVE_TIMEOUT: Final = 30.0
# Longer than any usual ping-restart: such a session was not pushed out.
TURN_S: Final = 900.0
SAME_NAME: Final = "is its certificate or login also used elsewhere?"
STATUS_OF_REASON: Final = {
    "auth-failed": os.EX_NOPERM,
    "profile": os.EX_CONFIG,
}


class AgentGoneError(VpnError):
    """Nobody is there to report to: end."""


class EngineProcess:
    """Runs sessions, one after the other, until told to stop."""

    def __init__(self, keeper: socket.socket, agent: socket.socket) -> None:
        self._keeper = KeeperClient(keeper, self._on_notice)
        self._peer_events: deque[keeper_messages.PeerEvent] = deque()
        self._agent = agent
        self._poll = select.epoll()
        self._watched: dict[int, int] = {}
        self._session: Session | None = None
        self._stage = "wait"
        self._cause = ("", "")
        self._silences = 0
        self._idle = False
        self._stopping = False
        self._begin_at = 0.0
        self._beaten_at = 0.0
        self._watchdog = Watchdog()
        self._reported: messages.Report | None = None
        self._status: int | None = None
        self._sequence = 0
        start, descriptors = self._receive()
        if not isinstance(start, messages.Start) or len(descriptors) != 1:
            raise AgentGoneError("no job")
        self._job = jobs.unpack(descriptors[0])
        self._profile: ClientProfile = _parse(self._job)
        self._distrust = ""
        self._memory = Memory(self._given_credentials())
        self._rotation = Rotation(
            start.candidates,
            self._profile.connect_retry,
            self._profile.connect_retry_max,
        )
        self._planes = Planes(self._keeper, start.plane)
        self._watch(keeper.fileno(), select.EPOLLIN)
        self._watch(agent.fileno(), select.EPOLLIN)

    def _given_credentials(self) -> Credentials | None:
        if self._job.username is not None:
            return Credentials(self._job.username, self._job.password)
        return self._profile.auth_user_pass

    # --- the loop

    def run(self) -> int:
        """Work until stopped. Gives the exit status."""
        while self._status is None:
            now = time.monotonic()
            try:
                ready = self._poll.poll(max(self._next_timer() - now, 0.0))
            except InterruptedError:
                continue
            for descriptor, _ in ready:
                self._dispatch(descriptor)
            self._housekeeping(time.monotonic())
        return self._status

    def _next_timer(self) -> float:
        beat_at = self._beaten_at + keeper_messages.IDLE_S
        if self._session is not None:
            return earliest(self._session.deadline(), beat_at)
        if self._idle:
            return beat_at
        return earliest(self._begin_at, beat_at)

    def _dispatch(self, descriptor: int) -> None:
        if descriptor == self._agent.fileno():
            self._on_agent()
        elif descriptor == self._keeper.fileno():
            self._keeper.receive()
        elif self._session is not None:
            # reading may close a link, and the next one gets its number
            writes = descriptor in self._session.writable()
            if descriptor in self._session.readable():
                self._session.on_readable(descriptor)
            if writes and descriptor in self._session.writable():
                self._session.on_writable()

    def _on_notice(self, notice: keeper_messages.Notice) -> None:
        # in the middle of a request, maybe: looked at by the loop
        if isinstance(notice, keeper_messages.PeerEvent):
            self._peer_events.append(notice)

    def _housekeeping(self, now: float) -> None:
        if now - self._beaten_at >= keeper_messages.HEARTBEAT_S:
            self._beaten_at = now
            self._keeper.beat()
            self._watchdog.feed(now)
            if self._session is not None:
                self._session.refresh()
            self._report()
        session = self._session
        while self._peer_events:
            event = self._peer_events.popleft()
            if session is not None:
                session.on_peer_event(event)
        if session is not None and not session.ended:
            if now >= session.deadline():
                session.on_deadline()
            if session.connected_at and self._stage != "connected":
                self._set_stage("connected")
                self._rotation.succeeded()
        if session is not None and session.ended:
            self._after(session.ended)
        elif session is None and not self._idle and now >= self._begin_at:
            self._begin()
        self._rewatch()

    def _watch(self, descriptor: int, mask: int) -> None:
        self._poll.register(descriptor, mask)

    def _rewatch(self) -> None:
        """Make epoll's set what the session wants now."""
        wanted: dict[int, int] = {}
        if self._session is not None:
            for descriptor in self._session.readable():
                wanted[descriptor] = select.EPOLLIN
            for descriptor in self._session.writable():
                wanted[descriptor] = wanted.get(descriptor, 0) | select.EPOLLOUT
        if wanted == self._watched:
            return
        for descriptor in self._watched.keys() - wanted.keys():
            # a closed descriptor has left the set by itself
            with contextlib.suppress(OSError):
                self._poll.unregister(descriptor)
        for descriptor, mask in wanted.items():
            try:
                self._poll.modify(descriptor, mask)
            except FileNotFoundError:
                self._poll.register(descriptor, mask)
        self._watched = wanted

    # --- sessions

    def _begin(self) -> None:
        candidate = self._rotation.current
        self._set_stage("reach")
        if self._distrust:
            self._after(effects.Ended("crl-unusable", "QV-549", self._distrust))
            return
        try:
            self._session = Session(
                self._profile,
                candidate,
                self._rotation.index,
                self._keeper,
                self._planes,
                self._memory.credentials,
                self._memory.token,
                self._memory.passphrase,
                self._tell,
                self._job.dns,
            )
        except OsRefusedError as error:
            self._after(effects.Ended("refused", "QV-303", str(error)))
        except ConfigError as error:
            self._after(effects.Ended("profile", "", str(error), retry=False))
        if self._session is not None and self._session.ended:
            self._after(self._session.ended)

    def _after(self, ended: effects.Ended) -> None:
        self._learn()
        session, self._session = self._session, None
        self._rewatch()
        now = time.monotonic()
        self._cause = (ended.code, ended.detail or ended.reason)
        if session and session.connected_at:
            self._count_silence(ended, now - session.connected_at)
        if self._stopping:
            self._finish(os.EX_OK)
            return
        if ended.reason == "stopped" or not ended.retry:
            self._stay_closed(ended)
            return
        if ended.next_credentials is not None:
            # no failure: the server waits for the answer to its question
            self._begin_at = now
            self._set_stage("wait")
            return
        lived = 0.0
        if session and session.connected_at:
            lived = now - session.connected_at
        if lived >= STABLE_S:
            self._rotation.succeeded()
        passes = self._rotation.passes
        wait = self._rotation.failed(ended, lived)
        self._begin_at = now + wait
        when = f"in {wait:.0f} s" if wait else "now"
        self._say(ended.code, f"{self._cause[1]}; next try {when}")
        self._set_stage("wait")
        if self._rotation.exhausted:
            self._finish(os.EX_UNAVAILABLE)
        elif self._rotation.passes > passes and self._has_names():
            self._begin_at = max(self._begin_at, now + RESOLVE_TIMEOUT)
            self._send(messages.NeedAddresses())

    def _count_silence(self, ended: effects.Ended, lived: float) -> None:
        """Name the cause of a server that falls silent again and again.

        It drops a client for one that comes with the same name: two of them
        take turns, and each connects at once.
        """
        self._silences += 1
        if ended.reason != "ping-restart" or lived > TURN_S:
            self._silences = 0
        elif self._silences > 1:
            code, text = self._cause
            self._cause = code, f"{text}, once more: {SAME_NAME}"

    def _learn(self) -> None:
        session = self._session
        if session is not None and session.ended:
            self._memory.learn(session.engine, self._profile, session.ended)

    def _stay_closed(self, ended: effects.Ended) -> None:
        """Do not try again by ourselves: a person has to act."""
        self._idle = True
        self._keeper.request(keeper_messages.Close(final=True))
        self._set_stage("stopped")
        if ended.reason in STATUS_OF_REASON:
            self._finish(STATUS_OF_REASON[ended.reason])
        elif ended.reason != "stopped":
            self._say(ended.code, self._cause[1])

    def _has_names(self) -> bool:
        return any(
            candidate.host != str(candidate.endpoint.address)
            for candidate in self._rotation.candidates
        )

    def _finish(self, status: int) -> None:
        self._report()
        self._send(messages.Finished(status, *self._cause))
        self._status = status

    def _tell(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Progress(stage, _):
                self._set_stage(stage)
            case effects.Notice(code, text):
                self._say(code, text)
            case effects.AskUser(kind, prompt, echo, timeout):
                self._send(messages.Prompt(kind, prompt, echo, timeout))
            case _:
                raise AssertionError(effect)

    # --- the agent

    def _on_agent(self) -> None:
        message, descriptors = self._receive()
        if isinstance(message, messages.Revocations) and len(descriptors) == 1:
            self._on_revocations(jobs.unpack(descriptors[0]))
            return
        for descriptor in descriptors:
            os.close(descriptor)
        self._obey(message)

    def _obey(self, message: object) -> None:
        match message:
            case messages.Stop():
                self._stopping = True
                self._leave()
                if self._session is None:
                    self._finish(os.EX_OK)
            case messages.Reconnect():
                self._leave()
                self._learn()
                self._session = None
                self._idle = False
                self._begin_at = 0.0
            case messages.Disconnect():
                self._idle = True
                self._leave()
            case messages.Candidates(candidates):
                self._rotation.replace(candidates)
                self._begin_at = 0.0
            case messages.Answer(kind, username, password):
                if self._session is not None:
                    self._session.answer(kind, username, password)
            case _:
                raise AgentGoneError(type(message).__name__)

    def _on_revocations(self, job: jobs.Job) -> None:
        """Judge servers by another list; without a list, trust none."""
        session = self._session
        try:
            self._profile, self._distrust = _parse(job), ""
        except ConfigError as error:
            self._distrust = str(error)
            if session is not None:
                session.fail(
                    SessionError("crl-unusable", self._distrust, "QV-549")
                )
            return
        if session is not None:
            session.trust(self._profile.server_check)

    def _leave(self) -> None:
        if self._session is not None:
            self._session.stop()

    def _receive(self) -> tuple[object, list[int]]:
        try:
            data, descriptors = receive_record(self._agent)
        except OSError as error:
            raise AgentGoneError(str(error)) from error
        if not data:
            raise AgentGoneError("the agent is gone")
        return messages.CODEC.decode(data)[1], descriptors

    def _send(self, message: object) -> None:
        self._sequence += 1
        try:
            send_record(
                self._agent, messages.CODEC.encode(self._sequence, message)
            )
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                raise AgentGoneError(str(error)) from error

    def _say(self, code: str, text: str) -> None:
        self._send(messages.Told(code, text))

    def _set_stage(self, stage: str) -> None:
        self._stage = stage
        if stage == "connected":
            self._cause = ("", "")
        self._report()

    def _report(self) -> None:
        report = self._describe()
        if report != self._reported:
            self._reported = report
            self._send(report)

    def _describe(self) -> messages.Report:
        session = self._session
        code, reason = self._cause
        if session is None:
            return messages.Report(
                self._stage,
                code,
                reason,
                attempt=self._rotation.attempts,
                device=self._planes.device,
            )
        settings, counters = session.settings, session.counters()
        status = session.engine.status
        return messages.Report(
            stage=self._stage,
            code=code,
            reason=reason,
            candidate=self._rotation.index,
            attempt=self._rotation.attempts,
            cipher=settings.cipher if settings else "",
            tls=status.tls,
            server_name=status.server_name,
            device=self._planes.device,
            plane=self._planes.plane,
            plane_reason=self._planes.reason,
            addresses=tuple(
                str(address)
                for address in (settings.ifconfig4, settings.ifconfig6)
                if address
            )
            if settings
            else (),
            dns=tuple(map(str, settings.dns)) if settings else (),
            routes=tuple(str(route.network) for route in settings.routes)
            if settings
            else (),
            mtu=settings.mtu if settings else 0,
            connected_at=session.connected_at,
            rekeys=max(session.installs - 1, 0),
            rx_packets=counters.rx_packets,
            rx_bytes=counters.rx_bytes,
            tx_packets=counters.tx_packets,
            tx_bytes=counters.tx_bytes,
            drops=(*counters.drops, *session.engine.drops.items()),
            refused=settings.refused if settings else (),
        )


def _parse(job: jobs.Job) -> ClientProfile:
    return parse_client_profile(job.text, job.name, job.read_file)


def _connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(path)
    return sock


def _await_job(agent: socket.socket) -> None:
    """Wait until the agent speaks; without a profile it may never do so.

    The keeper would take who is silent for dead: it is asked afterwards.
    """
    notify("READY=1")
    while not select.select([agent], [], [], WATCHDOG_S)[0]:
        notify("WATCHDOG=1")


def main(args: list[str] | None = None) -> int:
    """Run the engine. Gives the exit status."""
    parser = argparse.ArgumentParser(prog="qubes-vpn-engine")
    parser.add_argument("--keeper-fd", type=int)
    parser.add_argument("--agent-fd", type=int)
    parser.add_argument("--keeper")
    parser.add_argument("--agent")
    parser.add_argument("--uid", type=int, help="drop to this user")
    parser.add_argument("--gid", type=int, help="drop to this group")
    options = parser.parse_args(args)
    # the agent says when to stop; a person's interrupt goes to the agent
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        drop_privileges(options.uid, options.gid, keep=())
        agent = (
            _connect(options.agent)
            if options.agent
            else socket.socket(fileno=options.agent_fd)
        )
        _await_job(agent)
        keeper = (
            _connect(options.keeper)
            if options.keeper
            else socket.socket(fileno=options.keeper_fd)
        )
        return EngineProcess(keeper, agent).run()
    except (AgentGoneError, MessageError):
        return os.EX_UNAVAILABLE
    except OsRefusedError as error:
        _complain(str(error))
        return os.EX_OSERR
    except Exception as error:  # noqa: BLE001 a mistake of ours: the text of
        # an exception may hold a secret, its type and place do not
        _complain(f"internal error: {type(error).__name__} at {place(error)}")
        return os.EX_SOFTWARE


def place(error: BaseException) -> str:
    """Give file and line of where an exception was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "?"
    name = os.path.basename(trace.tb_frame.f_code.co_filename)
    return f"{name}:{trace.tb_lineno}"


def _complain(text: str) -> None:
    print(f"qubes-vpn-engine: {text}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
