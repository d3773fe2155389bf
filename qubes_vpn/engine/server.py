"""The server's protocol engine: many clients, no input or output.

The driver gives it control datagrams (`receive`), the passing of time
(`expire`) and answers (`decide`), and after EVERY input drains `poll` and
reads `deadline` again. Data packets do not pass through here: the driver
finds the client by peer id or source, and its `traffic` is what the data
plane counts in.
"""

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from qubes_vpn.config.server_profile import ServerProfile
from qubes_vpn.crypto.tls import TlsContext, TlsSettings
from qubes_vpn.engine import settle
from qubes_vpn.engine.address_pool import Leases
from qubes_vpn.engine.auth_token import TokenMint
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.hello import (
    Answer,
    Greeter,
    RateLimit,
    Source,
    Welcome,
)
from qubes_vpn.engine.push_options import Lease
from qubes_vpn.engine.server_effects import (
    Admitted,
    Decision,
    ForClient,
    Removed,
    SendTo,
    ServerEffect,
)
from qubes_vpn.engine.server_session import ServerSession
from qubes_vpn.engine.server_states import Connected, Deciding
from qubes_vpn.errors import SessionError, UntrustedInputError
from qubes_vpn.wire.control import HEADER_SIZE

# Clients that one address may have on the way in, at one time.
HALF_OPEN_PER_ADDRESS = 256
PEER_ID_COUNT = 1 << 16


class ServerEngine:
    """All clients of one server. A client's number is its peer id.

    entropy: gives fresh random bytes. denied: user metadata of
    tls-crypt-v2 client keys that are not let in. epochs: the data plane has
    the data format of 2.7. Raises ConfigError for
    certificates or keys that cannot be used.
    """

    def __init__(
        self,
        profile: ServerProfile,
        *,
        entropy: Callable[[int], bytes],
        denied: frozenset[bytes] = frozenset(),
        epochs: bool = True,
    ) -> None:
        self._epochs = epochs
        self.profile = profile
        self.drops: Counter[str] = Counter()
        self._entropy = entropy
        self._greeter = Greeter(profile, entropy, denied)
        self._new_sessions = RateLimit(*profile.connect_freq)
        self._tls = TlsContext(_tls_settings(profile))
        self._mint = _mint(profile, entropy)
        self._sessions: dict[int, ServerSession] = {}
        self._by_sid: dict[tuple[bytes, Source], int] = {}
        self._half_open: dict[int, IPv4Address | IPv6Address] = {}
        self._half_open_at: Counter[IPv4Address | IPv6Address] = Counter()
        self._next_client = 0
        self._effects: deque[ServerEffect] = deque()
        self._heap: list[tuple[float, int]] = []
        self._queued: dict[int, float] = {}
        self._stopping = False
        self.leases = Leases(profile)

    # --- inputs

    def receive(self, untrusted: bytes, source: Source, now: Now) -> None:
        """Take one control datagram; what is wrong with it is counted."""
        try:
            sid = untrusted[1:HEADER_SIZE]
            client = self._by_sid.get((sid, source))
            if client is None:
                client = self._greet(untrusted, source, now)
            if client is not None:
                session = self._sessions[client]
                try:
                    session.receive(untrusted, now)
                finally:
                    self._settle(session)
        except UntrustedInputError as error:
            self.drops[error.reason] += 1

    def expire(self, now: Now) -> None:
        """Do what is due by now."""
        due: list[ServerSession] = []
        while self._heap and self._heap[0][0] <= now.mono:
            when, client = heapq.heappop(self._heap)
            # else an earlier one was queued since
            if self._queued.get(client) == when:
                del self._queued[client]
                due.append(self._sessions[client])
        for session in due:
            if session.deadline() <= now.mono:
                session.expire(now)
            self._settle(session)

    def decide(
        self, client: int, number: int, decision: Decision, now: Now
    ) -> None:
        """Answer an Authenticate; for a client that is gone it is nothing."""
        session = self._sessions.get(client)
        if session is None:
            return
        lease = Lease()
        if decision.allowed and isinstance(session.state, Deciding):
            try:
                name = self._make_room(session)
                lease = self.leases.give(client, name, decision.config)
            except SessionError as error:
                decision = Decision(
                    allowed=False,
                    reason=error.reason,
                    temporary=True,
                    backoff=30,
                )
        session.decide(number, decision, lease, now)
        self._settle(session)

    def float_to(self, client: int, source: Source) -> bool:
        """Note that authenticated data came from a new address.

        False when it must be dropped: the address is another client's,
        unless that is the same person with the same certificate.
        """
        session = self._sessions.get(client)
        if session is None:
            return False
        for other in list(self._sessions.values()):
            if other is session or other.source != source:
                continue
            if not _same_person(session, other):
                return False
            other.vanish("replaced")
            self._settle(other)
        del self._by_sid[session.client_sid, session.source]
        session.source = source
        self._by_sid[session.client_sid, source] = client
        return True

    def disconnect(self, client: int, message: str, now: Now) -> None:
        """End one client with a last message, such as "HALT"."""
        session = self._sessions.get(client)
        if session is not None:
            session.leave(message, "disconnected", now)
            self._settle(session)

    def remove(self, client: int, reason: str) -> None:
        """End one client without a word: its data plane lost it."""
        session = self._sessions.get(client)
        if session is not None:
            session.vanish(reason)
            self._settle(session)

    def lost(self, source: Source) -> None:
        """End whoever was at this source: its TCP connection is closed."""
        for session in list(self._sessions.values()):
            if session.source == source:
                session.vanish("connection-closed")
                self._settle(session)

    def stop(self, now: Now) -> None:
        """Let nobody in any more, and send everybody away."""
        self._stopping = True
        next_server = self.profile.explicit_exit_notify == 2
        for session in list(self._sessions.values()):
            session.leave(
                "RESTART,[N]" if next_server else "RESTART", "shutdown", now
            )
            self._settle(session)

    def reload_crl(
        self, crl: bytes, revoked: frozenset[str] = frozenset()
    ) -> None:
        """Use a new revocation list from the next handshake on.

        revoked: serial numbers in decimal. Raises ConfigError; then the old
        one stays.
        """
        check = replace(self.profile.client_check, crl=crl, revoked=revoked)
        profile = replace(self.profile, client_check=check)
        self._tls = TlsContext(_tls_settings(profile))

    # --- outputs

    def poll(self) -> ServerEffect | None:
        """Give the next effect, None when all are given."""
        return self._effects.popleft() if self._effects else None

    def deadline(self) -> float:
        """When to call expire, in mono seconds; inf: no need."""
        return self._heap[0][0] if self._heap else math.inf

    def session(self, client: int) -> ServerSession:
        """Give a client's session. Raises KeyError."""
        return self._sessions[client]

    def connected(self) -> Iterator[tuple[ServerSession, Connected]]:
        """Give every client that is in, with its state."""
        for session in self._sessions.values():
            if isinstance(session.state, Connected):
                yield session, session.state

    def __len__(self) -> int:
        return len(self._sessions)

    # --- coming in

    def _greet(self, untrusted: bytes, source: Source, now: Now) -> int | None:
        if self._stopping:
            # who is answered would wait for us for its whole hand-window
            raise UntrustedInputError("stopping")
        verdict = self._greeter.judge(untrusted, source, now)
        if isinstance(verdict, Answer):
            self._effects.append(SendTo(source, verdict.datagram))
            return None
        if self._half_open_at[source.address] >= HALF_OPEN_PER_ADDRESS:
            raise UntrustedInputError("too-many-half-open")
        if len(self._sessions) >= 2 * self.profile.max_clients:
            raise UntrustedInputError("max-clients")
        if not self._new_sessions.allow(now.mono):
            raise UntrustedInputError("connect-freq")
        return self._begin(verdict, source, now)

    def _begin(self, welcome: Welcome, source: Source, now: Now) -> int:
        client = self._free_number()
        session = ServerSession(
            self.profile,
            client,
            source,
            welcome,
            lambda: self._tls,
            self._mint,
            self._entropy,
            now,
            epochs=self._epochs,
        )
        self._sessions[client] = session
        self._by_sid[welcome.client_sid, source] = client
        self._half_open[client] = source.address
        self._half_open_at[source.address] += 1
        return client

    def _free_number(self) -> int:
        """Give the next number that is free: late packets of one that left
        do not meet its successor."""
        while self._next_client in self._sessions:
            self._next_client = (self._next_client + 1) % PEER_ID_COUNT
        client = self._next_client
        self._next_client = (client + 1) % PEER_ID_COUNT
        return client

    def _make_room(self, session: ServerSession) -> str:
        """End sessions that this one replaces.

        Returns the name that its lease is remembered by, "" for none.
        Raises SessionError "max-clients".
        """
        assert isinstance(session.state, Deciding)
        name = session.state.identity.common_name
        count = 0
        for other, state in list(self.connected()):
            again = other.source == session.source
            same = state.identity.common_name == name
            if again or (same and not self.profile.duplicate_cn):
                other.vanish("replaced")
                self._settle(other)
            else:
                count += 1
        if count >= self.profile.max_clients:
            raise SessionError("max-clients")
        return "" if self.profile.duplicate_cn else name

    # --- after an input

    def _settle(self, session: ServerSession) -> None:
        """Take over what the session wants done; forget it when it is gone."""
        for datagram in session.outbox:
            self._effects.append(SendTo(session.source, datagram))
        session.outbox.clear()
        gone = False
        while session.effects:
            effect = session.effects.popleft()
            if isinstance(effect, Removed):
                gone = True
                effect = self._with_source(session, effect)
            elif isinstance(effect, Admitted):
                self._no_longer_half_open(session.client)
            self._effects.append(ForClient(session.client, effect))
        if gone:
            self._forget(session)
        else:
            self._schedule(session)

    def _with_source(self, session: ServerSession, removed: Removed) -> Removed:
        shared = any(
            other.source == session.source and other is not session
            for other in self._sessions.values()
        )
        return removed if shared else replace(removed, source=session.source)

    def _forget(self, session: ServerSession) -> None:
        del self._sessions[session.client]
        self._queued.pop(session.client, None)
        self._by_sid.pop((session.client_sid, session.source), None)
        self._no_longer_half_open(session.client)
        self.leases.release(session.client)

    def _no_longer_half_open(self, client: int) -> None:
        address = self._half_open.pop(client, None)
        if address is None:
            return
        self._half_open_at[address] -= 1
        if not self._half_open_at[address]:
            del self._half_open_at[address]

    def _schedule(self, session: ServerSession) -> None:
        """Queue the session's deadline, unless an earlier one is queued.

        A timer that moves later is found out when the earlier one is due.
        """
        due = session.deadline()
        if due < self._queued.get(session.client, math.inf):
            self._queued[session.client] = due
            heapq.heappush(self._heap, (due, session.client))


def _same_person(one: ServerSession, other: ServerSession) -> bool:
    match one.state, other.state:
        case Connected(), Connected():
            return one.state.identity == other.state.identity
        case _:
            return False


def _mint(
    profile: ServerProfile, entropy: Callable[[int], bytes]
) -> TokenMint | None:
    options = profile.auth_gen_token
    if options is None:
        return None
    return TokenMint(options, options.renewal or profile.reneg_sec, entropy)


def _tls_settings(profile: ServerProfile) -> TlsSettings:
    identity, check = profile.identity, profile.client_check
    return settle.tls_of(
        identity,
        check,
        profile.tls,
        identity.passphrase,
        check.crl,
        is_server=True,
        verify=profile.verify_client_cert,
    )
