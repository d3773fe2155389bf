"""One client of a server: from its cookie to its removal.

The states are values; what a state needs is in it. The control channel, the
traffic record and the outbox are the session's own and live as long as it.
"""

import base64
import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final, assert_never

from cryptography.hazmat.primitives.hashes import SHA256

from qubes_vpn.config.server_model import NAME_MAX
from qubes_vpn.config.server_profile import ServerProfile
from qubes_vpn.crypto.tls import TlsContext
from qubes_vpn.crypto.verify import common_name
from qubes_vpn.engine.auth_token import TokenMint, is_token
from qubes_vpn.engine.effects import (
    InstallKeys,
    RemoveKeys,
    SendData,
    SwapKeys,
)
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.hello import Source, Welcome
from qubes_vpn.engine.inner import PING
from qubes_vpn.engine.keying import (
    HandshakeDone,
    KeysExchanged,
    KeySuite,
    Record,
)
from qubes_vpn.engine.push_options import (
    Abilities,
    IvProto,
    Lease,
    choose_cipher,
    push_messages,
    push_options,
)
from qubes_vpn.engine.server_effects import (
    Admitted,
    Authenticate,
    ClientEffect,
    Decision,
    Removed,
)
from qubes_vpn.engine.server_states import (
    Connected,
    Deciding,
    Gone,
    Identity,
    Leaving,
    Negotiating,
    SessionState,
    key_suite,
    negotiated,
)
from qubes_vpn.engine.server_timers import Timers
from qubes_vpn.engine.session import (
    ChannelEvent,
    ChannelSettings,
    ControlChannel,
    PeerFound,
    RenegotiationStarted,
)
from qubes_vpn.engine.traffic import Traffic
from qubes_vpn.errors import SessionError
from qubes_vpn.wire.key_method import (
    SERVER_MATERIAL_SIZE,
    KeyMethodMessage,
    KeySource,
)
from qubes_vpn.wire.messages import (
    ControlMessage,
    Exit,
    PushRequest,
    encode_message,
    encode_push,
    parse_messages,
)

# How long a last message may take to arrive, in seconds.
FAREWELL_S: Final = 5.0
# What a client without TLS keying material exporters gets to read.
_NO_EXPORT: Final = "this server needs a client of OpenVPN 2.6 or later"


class ServerSession:
    """One client. `outbox` and `effects` are drained after every input.

    source: where control packets go. tls: gives the context of a new key;
    the revocation list may have changed since the last one. What a client
    does wrong ends its own session, and no other. epochs: the data plane
    has them.
    """

    def __init__(
        self,
        profile: ServerProfile,
        client: int,
        source: Source,
        welcome: Welcome,
        tls: Callable[[], TlsContext],
        mint: TokenMint | None,
        entropy: Callable[[int], bytes],
        now: Now,
        *,
        epochs: bool = True,
    ) -> None:
        self.client = client
        self._epochs = epochs
        self.source = source
        self.client_sid = welcome.client_sid
        self.began = now
        self.state: SessionState = Negotiating()
        self.traffic = Traffic()
        self.effects: deque[ClientEffect] = deque()
        self.peer_info: dict[str, str] = {}
        self.tls_version = ""
        self._profile = profile
        self._mint = mint
        self._static_key = welcome.static_key
        self._entropy = entropy
        self._number = 0
        self._shown_token = ""
        self._timers = Timers(profile, self.traffic, now.mono, entropy)
        self._channel = ControlChannel(
            ChannelSettings(
                is_server=True,
                hand_window=profile.hand_window,
                tls_timeout=profile.tls_timeout,
                max_packet_size=profile.max_packet_size,
            ),
            welcome.server_sid,
            welcome.wrap,
            lambda at: tls().session(at.unix),
            self._hello,
            peer_session_id=welcome.client_sid if welcome.skip_reset else None,
        )
        self._channel.begin(now)

    @property
    def outbox(self) -> deque[bytes]:
        """Control datagrams to send to `source`."""
        return self._channel.outbox

    # --- inputs

    def receive(self, untrusted: bytes, now: Now) -> None:
        """Take one control datagram of this session.

        Raises UntrustedInputError for one that changed nothing.
        """
        try:
            self._channel.receive(untrusted, now)
            self._timers.heard = now.mono
        except SessionError as error:
            self._remove(error.reason, str(error))
        self._after(now)

    def expire(self, now: Now) -> None:
        """Do what is due by now."""
        try:
            self._channel.expire(now)
        except SessionError as error:
            if not self._farewell_over(now):
                self._remove(error.reason, str(error))
        match self.state:
            case Connected():
                self._expire_connected(now)
            case Leaving(removed, until):
                if now.mono >= until or self._channel.key.reliable.empty:
                    self._remove(removed.reason, removed.detail)
            case Deciding(until):
                if now.mono >= until:
                    self._remove("undecided")
            case Negotiating() | Gone():
                pass
            case _:
                assert_never(self.state)
        self._after(now)

    def decide(
        self, number: int, decision: Decision, lease: Lease, now: Now
    ) -> None:
        """Take the answer to Authenticate; a late one means nothing.

        lease: the addresses; of a client that is connected it is ignored.
        """
        if number != self._number:
            return
        try:
            match self.state:
                case Deciding() if decision.allowed:
                    self._admit(self.state, decision, lease, now)
                case Deciding() | Connected() if not decision.allowed:
                    self._refuse(decision, now)
                case Connected():
                    self._renew_token(self.state, now)
                case _:
                    pass
        except SessionError as error:
            self._remove(error.reason, str(error))
        self._after(now)

    def leave(self, message: str, reason: str, now: Now) -> None:
        """Say a last message, then end."""
        match self.state:
            case Connected() | Deciding():
                self._say_goodbye(message, Removed(reason), now)
            case Negotiating():
                self._remove(reason)
            case Leaving() | Gone():
                pass
            case _:
                assert_never(self.state)
        self._after(now)

    def vanish(self, reason: str) -> None:
        """End without a word: another took the place, or the link broke."""
        self._remove(reason)

    def deadline(self) -> float:
        """When to call expire, in mono seconds."""
        due = self._channel.deadline()
        match self.state:
            case Connected():
                negotiating = self._channel.negotiating
                return min(due, self._timers.deadline(negotiating=negotiating))
            case Leaving(_, until) | Deciding(until):
                return min(due, until)
            case Gone():
                return math.inf
            case Negotiating():
                return due
            case _:
                assert_never(self.state)

    # --- what the channel tells

    def _after(self, now: Now) -> None:
        """Act on what the control channel has found."""
        events = self._channel.events
        try:
            while events and not isinstance(self.state, Gone):
                self._take(events.popleft(), now)
            self._maybe_swap(now)
        except SessionError as error:
            self._remove(error.reason, str(error))

    def _take(self, event: ChannelEvent, now: Now) -> None:
        match event:
            case PeerFound():
                pass
            case RenegotiationStarted():
                if self._timers.swap_waits:
                    # both sides keep one older key, so the newer one
                    # must be the one in use by now
                    self._swap(now)
            case HandshakeDone():
                self.tls_version = self._channel.key.tls.version
            case KeysExchanged(peer):
                self._keys_exchanged(peer, now)
            case Record(plaintext):
                for message in parse_messages(plaintext):
                    self._message(message, now)
            case _:
                assert_never(event)

    def _keys_exchanged(self, peer: KeyMethodMessage, now: Now) -> None:
        identity = self._identify(peer)
        match self.state:
            case Negotiating(push_wanted):
                self.peer_info = peer.peer_info_pairs()
                abilities = Abilities.read(self.peer_info, peer.options)
                asked = bool(abilities.proto & IvProto.REQUEST_PUSH)
                cipher = choose_cipher(self._profile, abilities)
                self.state = Deciding(
                    now.mono + self._profile.hand_window,
                    identity,
                    abilities,
                    cipher,
                    push_wanted or asked,
                )
                self._ask(identity, peer.password, now, again=False)
            case Connected():
                if identity != self.state.identity:
                    raise SessionError("identity-changed")
                self._install(self.state.suite, slot=1)
                self._ask(identity, peer.password, now, again=True)
            case Deciding() | Leaving() | Gone():
                pass
            case _:
                assert_never(self.state)

    def _identify(self, peer: KeyMethodMessage) -> Identity:
        """Say who it is. Raises SessionError "bad-name" or "no-password"."""
        peers = self._channel.key.tls.peer_certificate()
        check = self._profile.client_check
        name = ""
        leaf = b""
        if peers:
            name = common_name(peers, check.username_field)
            leaf = peers.fingerprint(SHA256())
        profile = self._profile
        username = peer.username
        if isinstance(self.state, Connected) and username == self.state.called:
            username = self.state.identity.username
        if profile.wants_password and (
            not name or profile.username_as_common_name
        ):
            # never a name that nobody checks
            name = username or name
        for text in (name, username):
            # they reach logs, status files and file names
            if not text.isprintable() or len(text) > NAME_MAX:
                raise SessionError("bad-name")
        return Identity(name, username, leaf)

    def _ask(
        self, identity: Identity, password: str, now: Now, *, again: bool
    ) -> None:
        self._number += 1
        leaf = self._channel.key.tls.peer_certificate()
        trusted = not self._profile.wants_password
        called = identity.username
        if isinstance(self.state, Connected):
            called = self.state.called
        if self._mint is not None and is_token(password):
            if not self._mint.check(called, password, now):
                expired = "SESSION: token expired"
                self._refuse(Decision(allowed=False, reason=expired), now)
                return
            trusted = not self._mint.external
            self._shown_token = password
        self.effects.append(
            Authenticate(
                self._number,
                identity.common_name,
                identity.username,
                password,
                leaf.serial_number if leaf else 0,
                again,
                trusted,
            )
        )

    def _message(self, message: ControlMessage, now: Now) -> None:
        match message, self.state:
            case PushRequest(), Negotiating():
                self.state = Negotiating(push_wanted=True)
            case PushRequest(), Deciding():
                self.state = replace(self.state, push_wanted=True)
            case PushRequest(), Connected():
                self._push(self.state, now)
            case Exit(), _:
                self._remove("exit")
            case _:
                pass

    # --- coming in

    def _admit(
        self, state: Deciding, decision: Decision, lease: Lease, now: Now
    ) -> None:
        exports = state.abilities.proto & IvProto.TLS_KEY_EXPORT
        if self._profile.force_tls_key_material_export and not exports:
            self._refuse(Decision(allowed=False, reason=_NO_EXPORT), now)
            return
        identity = state.identity
        called = decision.config.username or identity.username
        if called != identity.username and (
            not identity.leaf or self._profile.username_as_common_name
        ):
            # the next time another file of client-config-dir would be its
            raise SessionError("override-username")
        suite = key_suite(
            self._profile, self.client, state, epochs=self._epochs
        )
        options = push_options(
            self._profile,
            decision.config,
            lease,
            state.abilities,
            (*negotiated(state, suite), *self._token(identity, called, now)),
        )
        connected = Connected(
            identity,
            called,
            state.abilities,
            suite,
            lease,
            tuple(push_messages(options)),
            sent=False,
            since=now.mono,
        )
        self.state = connected
        self._install(suite, slot=0)
        self._timers.admitted(now.mono, suite)
        if state.abilities.proto & IvProto.DYN_TLS_CRYPT:
            self._channel.use_dynamic_tls_crypt(self._static_key)
        self.effects.append(
            Admitted(
                identity.common_name,
                called,
                lease,
                decision.config,
                suite.cipher,
            )
        )
        if state.push_wanted:
            self._push(connected, now)

    def _token(
        self, identity: Identity, called: str, now: Now
    ) -> tuple[str, ...]:
        """Make a token that follows the one that the client showed."""
        if self._mint is None or not called:
            return ()
        token = self._mint.make(called, now, self._shown_token)
        if called == identity.username:
            return (f"auth-token {token}",)
        name = base64.b64encode(called.encode()).decode()
        return f"auth-token {token}", f"auth-token-user {name}"

    def _renew_token(self, state: Connected, now: Now) -> None:
        """Give a new one at each renegotiation: they do not live long."""
        options = self._token(state.identity, state.called, now)
        if options:
            self._channel.say(encode_push("PUSH_REPLY", options), now)

    def _push(self, state: Connected, now: Now) -> None:
        for message in state.push:
            self._channel.say(message, now)
        self.state = replace(state, sent=True)

    def _install(self, suite: KeySuite, *, slot: int) -> None:
        keys = self._channel.data_keys(suite)
        self.effects.append(InstallKeys(slot, keys))
        self._timers.swap_waits = slot == 1
        self._timers.retire_at = math.inf

    def _maybe_swap(self, now: Now) -> None:
        """Encrypt with the new key once the client must have it too."""
        if not self._timers.swap_waits or not isinstance(self.state, Connected):
            return
        if not self._channel.negotiating and self._channel.key.reliable.empty:
            self._swap(now)

    def _swap(self, now: Now) -> None:
        self._timers.swapped(now.mono)
        self.effects.append(SwapKeys())

    # --- being in

    def _expire_connected(self, now: Now) -> None:
        timers, mono = self._timers, now.mono
        ended = timers.ended(mono)
        if ended:
            self._remove(ended)
            return
        if timers.retire_due(mono):
            self.effects.append(RemoveKeys(1))
        if timers.ping_due(mono):
            self.effects.append(SendData(PING))
        if timers.rekey_due(mono, negotiating=self._channel.negotiating):
            self._channel.renegotiate(now)

    # --- going out

    def _refuse(self, decision: Decision, now: Now) -> None:
        reason = decision.reason
        state = self.state
        assert isinstance(state, Deciding | Connected)
        if decision.temporary and (
            state.abilities.proto & IvProto.AUTH_FAIL_TEMP
        ):
            reason = f"TEMP[backoff {decision.backoff}]:{reason}"
        message = f"AUTH_FAILED,{reason}" if reason else "AUTH_FAILED"
        self._say_goodbye(message, Removed("auth-failed", reason), now)

    def _say_goodbye(self, message: str, removed: Removed, now: Now) -> None:
        self.effects.append(RemoveKeys())
        self._channel.say(encode_message(message), now)
        self.state = Leaving(removed, now.mono + FAREWELL_S)

    def _farewell_over(self, now: Now) -> bool:
        match self.state:
            case Leaving(removed, until) if now.mono >= until:
                self._remove(removed.reason, removed.detail)
                return True
            case _:
                return False

    def _remove(self, reason: str, detail: str = "") -> None:
        if isinstance(self.state, Gone):
            return
        if isinstance(self.state, Leaving):
            reason = self.state.removed.reason
            detail = self.state.removed.detail
        self.state = Gone()
        self.effects.append(RemoveKeys())
        self.effects.append(Removed(reason, detail))

    # --- what we say

    def _hello(self) -> KeyMethodMessage:
        profile = self._profile
        parts = [
            "V4",
            "dev-type tun",
            f"tun-mtu {profile.tun_mtu}",
            f"auth {profile.auth}",
            "key-method 2",
            "tls-server",
        ]
        return KeyMethodMessage(
            KeySource.from_entropy(self._entropy(SERVER_MATERIAL_SIZE)),
            ",".join(parts),
        )
