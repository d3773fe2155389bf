"""One session with one server: the engine's effects, performed in order.

The contract with the engine: after EVERY input (`receive`, `expire`, `stop`,
`answer`) everything that `poll` gives is performed, in its order, and the
deadline is read again; `_drain` is the one place that does so. An effect
that needs privileges is a request to the keeper, which is in force when it
returns.
"""

import contextlib
import math
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final, assert_never

from qubes_vpn.config.profile import ClientProfile, Credentials, ServerCheck
from qubes_vpn.config.pulled import TunnelSettings
from qubes_vpn.crypto.keys import DataKeys
from qubes_vpn.dataplane.base import Counters, Slot
from qubes_vpn.dataplane.kernel import KernelPlane
from qubes_vpn.engine import effects
from qubes_vpn.engine.client import ClientEngine
from qubes_vpn.engine.data_channel import DataChannel
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.proxy import relay_header
from qubes_vpn.engine.states import Established
from qubes_vpn.engine.traffic import Traffic
from qubes_vpn.errors import ConfigError, OsRefusedError, SessionError
from qubes_vpn.keeper import messages
from qubes_vpn.keeper.client import KeeperClient
from qubes_vpn.qubes.qubesdb import DnsChoice
from qubes_vpn.runtime import mapping
from qubes_vpn.runtime.approach import Approach
from qubes_vpn.runtime.messages import Candidate
from qubes_vpn.runtime.planes import AnyPlane, Planes

# linux/in.h and in6.h
IP_MTU: Final = 14
IPV6_MTU: Final = 24


def clock() -> Now:
    """Read both clocks."""
    return Now(mono=time.monotonic(), unix=time.time())


class Session:
    """Connects to one candidate and carries traffic until it ends.

    tell: called with each effect that is for people (Progress, Notice,
    AskUser) after it happened. `ended` is set once the session is over; the
    network is closed by then.
    """

    def __init__(
        self,
        profile: ClientProfile,
        candidate: Candidate,
        index: int,
        keeper: KeeperClient,
        planes: Planes,
        credentials: Credentials | None,
        token: tuple[str, str] | None,
        passphrase: bytes | None,
        tell: Callable[[effects.Effect], None],
        dns: DnsChoice,
    ) -> None:
        self.candidate = candidate
        self.ended: effects.Ended | None = None
        self.settings: TunnelSettings | None = None
        self.connected_at = 0.0
        self.installs = 0
        self._profile = profile
        self._keeper = keeper
        self._planes = planes
        self._tell = tell
        self._dns = dns
        self._traffic = Traffic()
        self._plane: AnyPlane | None = None
        self._channel = DataChannel(self._traffic)
        remote = self._remote = profile.remotes[candidate.remote]
        self._stream = remote.proto == "tcp"
        self._header = relay_header(remote)
        self._index = index
        self._approach: Approach | None = None
        # a <connection> block may have these of its own
        if remote.control_wrap is not None:
            profile = replace(profile, control_wrap=remote.control_wrap)
        if remote.max_packet_size is not None:
            profile = replace(profile, max_packet_size=remote.max_packet_size)
        self.engine = ClientEngine(
            profile,
            remote,
            entropy=secrets.token_bytes,
            traffic=self._traffic,
            credentials=credentials,
            token=token,
            passphrase=passphrase,
            endpoint=candidate.endpoint.address,
            stream=self._stream,
        )
        now = clock()
        self.engine.ask(now)
        self._drain(now)

    # --- what the loop watches

    def readable(self) -> tuple[int, ...]:
        """Give the descriptors to watch for input."""
        if self.ended:
            return ()
        ours = self._approach.readable() if self._approach else ()
        return (*ours, *(self._plane.readable() if self._plane else ()))

    def writable(self) -> tuple[int, ...]:
        """Give the descriptors to watch for output."""
        if self.ended or self._approach is None:
            return ()
        return self._approach.writable()

    def deadline(self) -> float:
        """Give the monotonic second of the next timer."""
        if self._approach is None or self._approach.done:
            return self.engine.deadline()
        return self._approach.deadline

    # --- inputs

    def on_readable(self, descriptor: int) -> None:
        """Move packets; give the engine those of the control channel."""
        if self.ended:
            return
        approach = self._approach
        if approach is not None and descriptor in approach.readable():
            self._go_on(approach.on_readable)
            return
        assert self._plane is not None
        now = clock()
        try:
            control = self._plane.pump(descriptor, now.mono)
        except SessionError as error:
            self.fail(error)
            return
        for datagram in control:
            self.engine.receive(datagram, now)
        if control:
            self._drain(now)

    def on_writable(self) -> None:
        """Finish a TCP connect."""
        assert self._approach is not None
        self._go_on(self._approach.on_writable)

    def on_deadline(self) -> None:
        """Call when deadline() has passed."""
        now = clock()
        if self._approach is not None and not self._approach.done:
            self._go_on(self._approach.on_deadline)
            return
        self.engine.expire(now)
        self._drain(now)

    def stop(self) -> None:
        """Say goodbye and end."""
        now = clock()
        if self._plane is not None and not self.ended:
            self.engine.stop(now)
            self._drain(now)
        if not self.ended:
            self._end(effects.Ended("stopped", retry=False))

    def answer(self, kind: str, username: str, password: str) -> None:
        """Give the engine what a person answered."""
        now = clock()
        self.engine.answer(kind, username, password, now)
        self._drain(now)

    def trust(self, check: ServerCheck) -> None:
        """Judge the server by this from now on."""
        now = clock()
        try:
            self.engine.trust(check, now)
        except ConfigError as error:
            self.fail(SessionError("crl-unusable", str(error), "QV-549"))
        self._drain(now)

    def on_peer_event(self, event: messages.PeerEvent) -> None:
        """Take what the keeper heard from the kernel of our peer."""
        if isinstance(self._plane, KernelPlane) and not self.ended:
            try:
                self._plane.on_event(event)
            except SessionError as error:
                self.fail(error)

    def refresh(self) -> None:
        """Call at least every few seconds: asks for the kernel's counters."""
        if isinstance(self._plane, KernelPlane) and not self.ended:
            self._plane.refresh(time.monotonic())

    def fail(self, error: SessionError | OsRefusedError) -> None:
        """End the session for a reason that the engine did not see."""
        if isinstance(error, SessionError):
            self._end(effects.Ended(error.reason, error.code, str(error)))
        else:
            self._end(effects.Ended("refused", "QV-303", str(error)))

    # --- what there is to tell

    def counters(self) -> Counters:
        """Give the counters of the data plane."""
        return self._plane.counters() if self._plane else Counters()

    # --- inside

    def _connect(self) -> None:
        """Nothing is left to ask: open the link. OsRefusedError."""
        self._approach = Approach(
            self._planes,
            self._profile,
            self._remote,
            self.candidate,
            self._index,
        )
        if self._approach.done:
            self._start(self._approach.link)

    def _go_on(self, step: Callable[[], None]) -> None:
        """Take a step of the approach; begin once it is done."""
        try:
            step()
        except (SessionError, OsRefusedError) as error:
            self.fail(error)
            return
        if self._plane is None and self._approach and self._approach.done:
            self._start(self._approach.link)

    def _start(self, link: socket.socket) -> None:
        self._plane = self._planes.start(
            link, self._channel, stream=self._stream, header=self._header
        )
        now = clock()
        self.engine.attach(
            self._planes.features, link_mtu(link) - len(self._header)
        )
        self.engine.start(now)
        self._drain(now)
        self._planes.prepare()

    def _drain(self, now: Now) -> None:
        try:
            while not self.ended and (effect := self.engine.poll()):
                self._perform(effect, now)
        except (SessionError, OsRefusedError) as error:
            self.fail(error)

    def _perform(self, effect: effects.Effect, now: Now) -> None:
        match effect:
            case effects.Connect():
                self._connect()
            case effects.Ended():
                self._end(effect)
            case effects.Progress() | effects.Notice() | effects.AskUser():
                self._tell(effect)
            case (
                effects.ApplySettings()
                | effects.OpenForwarding()
                | effects.CloseForwarding()
            ):
                self._perform_outside(effect, now)
            case _:
                self._perform_inside(effect, now)

    def _perform_inside(
        self,
        effect: effects.Send
        | effects.SendData
        | effects.InstallKeys
        | effects.SwapKeys
        | effects.RemoveKeys,
        now: Now,
    ) -> None:
        plane = self._plane
        assert plane is not None
        match effect:
            case effects.Send(datagram):
                plane.send_control(datagram)
            case effects.SendData(payload):
                plane.send_data(payload, now.mono)
            case effects.InstallKeys(slot, keys):
                if self.installs:
                    plane.install(Slot(slot), keys)
                else:
                    self._plane = self._settle(plane, keys)
                self.installs += 1
            case effects.SwapKeys():
                plane.swap()
            case effects.RemoveKeys(slot):
                for each in Slot if slot is None else (Slot(slot),):
                    plane.remove(each)
            case _:
                assert_never(effect)

    def _settle(self, plane: AnyPlane, keys: DataKeys) -> AnyPlane:
        """The first keys are there: decide who moves the packets."""
        state = self.engine.state
        assert isinstance(state, Established)
        return self._planes.settle(plane, self._channel, state.settings, keys)

    def _perform_outside(
        self,
        effect: effects.ApplySettings
        | effects.OpenForwarding
        | effects.CloseForwarding,
        now: Now,
    ) -> None:
        match effect:
            case effects.ApplySettings(settings):
                if isinstance(self._plane, KernelPlane):
                    self._plane.apply(settings)
                settings = mapping.fitted(settings, self.candidate.endpoint)
                settings = mapping.on_path(settings)
                self._say_what_is_off(settings)
                self.settings = settings
                self._keeper.request(mapping.configure(settings, self._dns))
            case effects.OpenForwarding():
                assert self.settings is not None
                self._keeper.request(
                    mapping.open_forwarding(
                        self.settings,
                        self.candidate.endpoint,
                        known=self.engine.path_known,
                    )
                )
                self.connected_at = self.connected_at or now.mono
            case effects.CloseForwarding():
                self._keeper.request(messages.CloseForwarding())
            case _:
                assert_never(effect)

    def _say_what_is_off(self, settings: TunnelSettings) -> None:
        """Say once that the path has become too narrow for IPv6."""
        why = dict(settings.refused).get(mapping.NO_IPV6, "")
        before = self.settings.refused if self.settings else ()
        if why and mapping.NO_IPV6 not in dict(before):
            self._tell(effects.Notice("QV-306", f"IPv6 is off: {why}"))

    def _end(self, ended: effects.Ended) -> None:
        """Close the network, then forget the keys: in this order."""
        if self.ended:
            return
        self.ended = ended
        # when the keeper is gone this raises: the loop then ends this
        # process, and with it the device goes
        with contextlib.suppress(OsRefusedError):
            self._keeper.request(messages.Close())
        if self._plane is not None:
            self._plane.close()
        if self._approach is not None:
            self._approach.close()


def link_mtu(link: socket.socket) -> int:
    """Ask the kernel how large a packet this link's way out carries."""
    level, option = socket.IPPROTO_IP, IP_MTU
    if link.family == socket.AF_INET6:
        level, option = socket.IPPROTO_IPV6, IPV6_MTU
    with contextlib.suppress(OSError):
        return min(link.getsockopt(level, option), mapping.LINK_MTU)
    return mapping.LINK_MTU


def earliest(*times: float) -> float:
    """Give the earliest of some monotonic seconds; math.inf for none."""
    return min(times, default=math.inf)
