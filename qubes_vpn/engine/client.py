"""The client: packets, time and answers in; effects out.

`receive`, `expire`, `answer` and `stop` are the inputs. After EVERY input,
drain `poll()`, perform what it gives in its order, and arm a timer for
`deadline()`. What happens when is decided by `states.step`; this module
turns what the control channel and the timers report into its events, and
performs its commands.
"""

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, assert_never

from qubes_vpn.config.model import (
    ClientProfile,
    Credentials,
    Remote,
    ServerCheck,
)
from qubes_vpn.config.pulled import TunnelSettings
from qubes_vpn.crypto.keys import DataKeys
from qubes_vpn.crypto.verify import subject_text
from qubes_vpn.engine import dialog, settle
from qubes_vpn.engine.conversation import Conversation
from qubes_vpn.engine.dial import Dial
from qubes_vpn.engine.effects import (
    AskUser,
    Connect,
    Effect,
    InstallKeys,
    Notice,
    OpenForwarding,
    Send,
    SendData,
    SwapKeys,
)
from qubes_vpn.engine.events import (
    Answered,
    DeadlinePassed,
    Event,
    Failed,
    KeysReady,
    Now,
    PeerEnded,
    Pushed,
    RenegotiationBegan,
    ServerReset,
    StopRequested,
    TlsDone,
)
from qubes_vpn.engine.keying import HandshakeDone, KeysExchanged, Record
from qubes_vpn.engine.lifecycle import begin, step
from qubes_vpn.engine.login import Login, challenge_answer
from qubes_vpn.engine.path_mtu import PathMtu, overhead, room
from qubes_vpn.engine.peer_info import PlaneFeatures, Platform
from qubes_vpn.engine.session import (
    ChannelEvent,
    ControlChannel,
    PeerFound,
    RenegotiationStarted,
)
from qubes_vpn.engine.states import (
    Asking,
    Begin,
    Challenged,
    ClientState,
    Closed,
    Established,
    Negotiating,
    Pulling,
    Renegotiate,
    Resetting,
    Say,
    Step,
    Timing,
)
from qubes_vpn.engine.timers import Inactivity, timers
from qubes_vpn.engine.traffic import Traffic
from qubes_vpn.errors import (
    ConfigError,
    LocalStateError,
    SessionError,
    UntrustedInputError,
)
from qubes_vpn.wire import messages
from qubes_vpn.wire.key_method import KeyMethodMessage

ASK_TIMEOUT: Final = 120.0


@dataclass(frozen=True, slots=True)
class Status:
    """A snapshot for people.

    server_name: the subject of the server's certificate. since: mono
    seconds, 0.0 before connected.
    """

    state: str
    server_name: str = ""
    tls: str = ""
    cipher: str = ""
    key_id: int = 0
    since: float = 0.0


class ClientEngine:
    """One session with one server, from the first packet to the last.

    entropy: gives that many random bytes. traffic: what the data plane
    counts. credentials: when the profile wants some; what is missing is
    asked for. token: (user, auth-token) of an earlier session. passphrase:
    of the private key, when an earlier session has asked for it.
    features: of the data plane. stream: TCP. endpoint, gateway: the
    server's address in use, and the uplink's gateway, for checking routes.
    link_mtu: what the uplink carries; packets of a larger tunnel would be
    lost, so it is made to fit (0: not known).
    drops: datagrams that changed nothing, by reason slug.
    Raises ConfigError when TLS cannot use the profile.
    """

    def __init__(
        self,
        profile: ClientProfile,
        remote: Remote,
        *,
        entropy: Callable[[int], bytes],
        traffic: Traffic,
        credentials: Credentials | None = None,
        token: tuple[str, str] | None = None,
        passphrase: bytes | None = None,
        features: PlaneFeatures | None = None,
        stream: bool = False,
        platform: Platform | None = None,
        endpoint: settle.Address | None = None,
        gateway: settle.Address | None = None,
        link_mtu: int = 0,
    ) -> None:
        self.drops: Counter[str] = Counter()
        self._profile = profile
        self._traffic = traffic
        self._where = settle.Situation(
            profile,
            remote,
            features or PlaneFeatures(),
            endpoint,
            gateway,
            stream,
            link_mtu,
        )
        self._login = Login(profile, credentials, token)
        self._dial = Dial(
            self._where, self._login, entropy, platform or Platform()
        )
        known = profile.identity.passphrase or passphrase
        if profile.secret is None and (known or not self._dial.locked):
            self._dial.load(known)
        self._effects: deque[Effect] = deque()
        self._state: ClientState = Closed("not-started")
        self._channel: ControlChannel | None = None
        self._talk = Conversation(self._where, self._login)
        self._inactivity = Inactivity(0, 0, 0.0, 0)
        self._path: PathMtu | None = None
        self._linked = True
        self._status = Status("")

    # --- what there is to know

    @property
    def state(self) -> ClientState:
        """Where the session is."""
        return self._state

    @property
    def token(self) -> tuple[str, str] | None:
        """The (user, auth-token) that the next session should begin with."""
        return self._login.token

    @property
    def credentials(self) -> Credentials | None:
        """What was given or answered; None with auth-nocache and a token."""
        return self._login.credentials

    @property
    def passphrase(self) -> bytes | None:
        """The private key's passphrase, given or answered."""
        return self._dial.passphrase

    @property
    def status(self) -> Status:
        """A snapshot for people."""
        since = 0.0
        if isinstance(self._state, Established):
            since = self._state.since
        name = type(self._state).__name__.lower()
        return replace(self._status, state=name, since=since)

    def poll(self) -> Effect | None:
        """Return the next effect to perform, or None."""
        return self._effects.popleft() if self._effects else None

    def deadline(self) -> float:
        """When to call expire, in mono seconds; inf: no need.

        Ask again after each input and after the data plane has worked: what
        it counts moves it.
        """
        if isinstance(self._state, Closed):
            return math.inf
        due = [when for _, when in timers(self._state, self._traffic)]
        if self._channel is not None:
            due.append(self._channel.deadline())
        if isinstance(self._state, Established):
            due.append(self._inactivity.deadline())
            if self._path is not None:
                due.append(self._path.deadline())
            if self._traffic.occ:
                return 0.0
        return min(due, default=math.inf)

    # --- inputs

    def ask(self, now: Now) -> None:
        """Ask for what is missing; Connect comes when nothing is."""
        self._linked = False
        self._state = Asking(self._dial.timing(), now.mono + ASK_TIMEOUT)
        self._ask_or_begin(now)

    def attach(self, features: PlaneFeatures, link_mtu: int) -> None:
        """Take note of what the link brought; see the constructor."""
        self._situate(
            replace(self._where, features=features, link_mtu=link_mtu)
        )

    def _situate(self, where: settle.Situation) -> None:
        self._where = self._dial.where = self._talk.where = where

    def start(self, now: Now) -> None:
        """Begin: with a question if credentials are missing."""
        self._linked = True
        timing = self._dial.timing()
        if self._profile.secret is not None:
            self._start_static(timing, now)
            return
        self._state = Asking(timing, now.mono + ASK_TIMEOUT)
        self._ask_or_begin(now)

    def receive(self, datagram: bytes, now: Now) -> None:
        """Take one control packet; a bad one is counted in `drops`."""
        if self._channel is None:
            self.drops["no-session"] += 1
            return
        try:
            self._channel.receive(datagram, now)
        except UntrustedInputError as error:
            self.drops[error.reason] += 1
        except SessionError as error:
            self._drain(now)
            self._fail(error, now)
        self._drain(now)

    def expire(self, now: Now) -> None:
        """Do what is due: call it when deadline() has passed."""
        if self._channel is not None:
            try:
                self._channel.expire(now)
            except SessionError as error:
                self._fail(error, now)
        done: set[str] = set()
        while slug := self._due(done, now):
            done.add(slug)
            self._on_timer(slug, now)
        if (
            isinstance(self._state, Established)
            and now.mono >= self._inactivity.deadline()
            and self._inactivity.over(self._traffic, now.mono)
        ):
            self._event(DeadlinePassed("inactive"), now)
        self._look_at_path(now)
        self._drain(now)

    def stop(self, now: Now) -> None:
        """Say goodbye and end."""
        if not isinstance(self._state, Closed):
            self._event(StopRequested(), now)
            self._drain(now)

    def answer(self, kind: str, username: str, password: str, now: Now) -> None:
        """Take the answer to an AskUser.

        kind: as it was asked; credentials: name and password; challenge and
        crtext: the answer stands in `password`.
        """
        if isinstance(self._state, Asking):
            self._take_answer(kind, username, password, now)
        elif isinstance(self._state, Challenged) and self._talk.challenge:
            following = challenge_answer(self._talk.challenge, password)
            self._event(Answered(following), now)
        elif kind == "crtext" and self._channel is not None:
            response = messages.encode_cr_response(password.encode())
            self._channel.say(response, now)
        self._drain(now)

    def trust(self, check: ServerCheck, now: Now) -> None:
        """Judge the server by this from now on; one that is known, again.

        A tunnel gets a new key for it; what is on its way to a key ends, and
        begins anew. Raises ConfigError when TLS cannot use it.
        """
        if self._profile.secret is not None:
            return
        profile = replace(self._profile, server_check=check)
        self._situate(replace(self._where, profile=profile))
        self._dial.reload()
        match self._state:
            case Established(negotiating=False):
                self._event(DeadlinePassed("renegotiate"), now)
            case Resetting() | Negotiating() | Pulling() | Established():
                self._fail(SessionError("crl-changed"), now)
            case _:
                pass
        self._drain(now)

    # --- the state machine

    def _event(self, event: Event, now: Now) -> None:
        self._take(step(self._state, event, now), now)

    def _take(self, taken: Step, now: Now) -> None:
        self._state = taken.state
        for effect in taken.effects:
            match effect:
                case Begin():
                    self._begin(now)
                case Say(text):
                    self._need_channel().say(messages.encode_message(text), now)
                case Renegotiate():
                    self._need_channel().renegotiate(now)
                case _:
                    self._count(effect)
                    self._effects.append(effect)
            self._flush()
        if isinstance(self._state, Closed):
            # TLS, windows and keys go with the state that held them
            self._channel = None

    def _count(self, effect: Effect) -> None:
        first = isinstance(effect, InstallKeys) and effect.slot == 0
        if first or isinstance(effect, SwapKeys):
            self._traffic.restart()

    def _flush(self) -> None:
        if self._channel is not None:
            while self._channel.outbox:
                self._effects.append(Send(self._channel.outbox.popleft()))

    def _drain(self, now: Now) -> None:
        """Handle everything that the control channel reports."""
        while self._channel is not None:
            self._flush()
            if not self._channel.events:
                return
            event = self._channel.events.popleft()
            try:
                self._on_channel(event, now)
            except SessionError as error:
                self._fail(error, now)

    def _fail(self, error: SessionError, now: Now) -> None:
        failed = Failed(error.reason, error.detail, error.code)
        self._flush()
        self._event(failed, now)

    # --- timers

    def _due(self, done: set[str], now: Now) -> str:
        for slug, when in timers(self._state, self._traffic):
            if when <= now.mono and slug not in done:
                return slug
        return ""

    def _on_timer(self, slug: str, now: Now) -> None:
        if slug == "peer-exit":
            self._event(PeerEnded("server-exit"), now)
        else:
            self._event(DeadlinePassed(slug), now)
        self._drain(now)

    # --- beginning

    def _ask_or_begin(self, now: Now) -> None:
        assert isinstance(self._state, Asking)
        question = self._dial.question()
        if question is None:
            if self._linked:
                self._take(begin(self._state.timing), now)
            else:
                self._effects.append(Connect())
            return
        self._effects.append(
            AskUser(question.kind, question.prompt, question.echo, ASK_TIMEOUT)
        )

    def _take_answer(
        self, kind: str, username: str, password: str, now: Now
    ) -> None:
        if kind == "passphrase":
            try:
                self._dial.load(password.encode())
            except ConfigError as error:
                failed = Failed("wrong-passphrase", str(error), retry=False)
                self._event(failed, now)
                return
        else:
            self._login.answer(kind, username, password)
        self._ask_or_begin(now)

    def _begin(self, now: Now) -> None:
        self._channel = self._dial.channel()
        self._channel.begin(now)

    def _need_channel(self) -> ControlChannel:
        if self._channel is None:
            raise LocalStateError("no control channel")
        return self._channel

    # --- what the control channel reports

    def _on_channel(self, event: ChannelEvent, now: Now) -> None:
        match event:
            case PeerFound():
                self._event(ServerReset(), now)
            case HandshakeDone():
                self._note_tls()
                self._event(TlsDone(), now)
            case KeysExchanged(peer):
                self._on_keys(peer, now)
            case RenegotiationStarted():
                self._event(RenegotiationBegan(), now)
            case Record(plaintext):
                self._on_record(plaintext, now)
            case _:
                assert_never(event)

    def _note_tls(self) -> None:
        tls = self._need_channel().key.tls
        peer = tls.peer_certificate()
        name = subject_text(peer) if peer else ""
        self._status = replace(
            self._status,
            server_name=dialog.printable(name),
            tls=f"{tls.version} {tls.cipher}",
        )

    def _on_keys(self, peer: KeyMethodMessage, now: Now) -> None:
        self._talk.peer_options = peer.options
        if isinstance(self._state, Established):
            self._event(KeysReady(self._data_keys(self._state.settings)), now)
            return
        self._event(KeysReady(), now)
        if not self._profile.pull:
            tls = self._need_channel().key.tls
            settings = settle.own_settings(self._where, peer, tls)
            self._establish(settings, now)

    def _data_keys(self, settings: TunnelSettings) -> DataKeys:
        suite = settle.key_suite(self._profile, settings)
        keys = self._need_channel().data_keys(suite)
        self._status = replace(
            self._status, cipher=settings.cipher, key_id=keys.key_id
        )
        return keys

    def _on_record(self, plaintext: bytes, now: Now) -> None:
        for message in messages.parse_messages(plaintext):
            if isinstance(self._state, Closed):
                return
            outcome = self._talk.hear(message, self._state, self.drops, now)
            match outcome:
                case None:
                    pass
                case TunnelSettings() if isinstance(self._state, Established):
                    self._event(Pushed(self._fitted(outcome)), now)
                case TunnelSettings():
                    self._establish(outcome, now)
                case AskUser() | Notice():
                    self._effects.append(outcome)
                case _:
                    self._event(outcome, now)

    def _establish(self, settings: TunnelSettings, now: Now) -> None:
        settings = self._fitted(settings)
        keys = self._data_keys(settings)
        if settings.dyn_tls_crypt:
            wrap = self._profile.control_wrap
            self._need_channel().use_dynamic_tls_crypt(wrap.key or None)
        assert isinstance(self._state, Pulling)
        limit = settle.block_limit(settings)
        timing = replace(self._state.timing, block_limit=limit)
        self._state = replace(self._state, timing=timing)
        self._watch(settings, now)
        self._event(Pushed(settings, keys), now)

    def _watch(self, settings: TunnelSettings, now: Now) -> None:
        """Begin to look at what the data plane counts."""
        self._inactivity = Inactivity(
            settings.inactive,
            settings.inactive_bytes,
            now.mono,
            self._traffic.tun_bytes,
        )
        self._traffic.occ.clear()
        size = settings.path_mtu
        if self._where.features.occ and size:
            static = self._profile.secret is not None
            more = overhead(settings, static=static)
            self._path = PathMtu(size, more, now.mono)

    # --- what fits through the path

    @property
    def path_known(self) -> bool:
        """Whether nobody is still finding out what the path carries."""
        return self._path is None or self._path.known

    def _fitted(self, settings: TunnelSettings) -> TunnelSettings:
        limit = room(self._where, settings)
        if self._path is not None:
            limit = self._path.found
        return replace(settings, path_mtu=min(limit, settings.mtu))

    def _look_at_path(self, now: Now) -> None:
        """Send probes, hear their answers, and make the tunnel fit."""
        heard = self._traffic.occ
        known = self.path_known
        path, state = self._path, self._state
        if path is None or not isinstance(state, Established):
            heard.clear()
            return
        while heard:
            opcode, size, _ = heard.popleft()
            path.heard(opcode, size, now.mono)
        for payload in path.expire(self._traffic.tun_bytes, now.mono):
            self._effects.append(SendData(payload))
        if path.found != state.settings.path_mtu:
            self._event(Pushed(self._fitted(state.settings)), now)
        elif path.known and not known:
            # segments may be longer now
            self._effects.append(OpenForwarding())

    # --- static-key mode

    def _start_static(self, timing: Timing, now: Now) -> None:
        """Traffic flows at once: the keys are in the profile."""
        settings, keys = settle.static_keys(self._where, now.unix)
        settings = self._fitted(settings)
        self._status = replace(self._status, cipher=settings.cipher)
        # nothing ever renegotiates, for there is no control channel
        timing = replace(timing, reneg_sec=0, renewable=False)
        self._state = Pulling(timing, now.mono)
        self._watch(settings, now)
        self._event(Pushed(settings, keys), now)
