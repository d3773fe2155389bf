"""How a client begins: its TLS context, control channel, first words."""

from collections.abc import Callable
from dataclasses import dataclass, field

from qubes_vpn.config.model import ClientProfile
from qubes_vpn.crypto.identity import pkcs12_is_encrypted
from qubes_vpn.crypto.tls import TlsContext, TlsSession
from qubes_vpn.engine import settle
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.login import Login, Question
from qubes_vpn.engine.peer_info import Platform, options_string, peer_info
from qubes_vpn.engine.session import ChannelSettings, ControlChannel
from qubes_vpn.engine.states import Timing
from qubes_vpn.engine.timers import rekey_after
from qubes_vpn.errors import LocalStateError
from qubes_vpn.wire.control import ACKS_MAX, SESSION_ID_SIZE
from qubes_vpn.wire.key_method import (
    CLIENT_MATERIAL_SIZE,
    KeyMethodMessage,
    KeySource,
)

# What servers before 2.6, and Softether, take in one packet (ssl_pkt.c).
PLAIN_ACKS_MAX = 4


@dataclass(slots=True)
class Dial:
    """Everything that a session of this profile begins with.

    entropy: gives that many random bytes. passphrase: of the private key,
    as it was used last.
    """

    where: settle.Situation
    login: Login
    entropy: Callable[[int], bytes] = field(repr=False)
    platform: Platform
    passphrase: bytes | None = field(default=None, repr=False)
    _context: TlsContext | None = None

    @property
    def profile(self) -> ClientProfile:
        """The profile."""
        return self.where.profile

    def load(self, passphrase: bytes | None) -> None:
        """Make the TLS context. Raises ConfigError: profile unusable."""
        self._context = TlsContext(
            settle.tls_settings(self.profile, passphrase)
        )
        self.passphrase = passphrase

    def reload(self) -> None:
        """Make the TLS context again, for another profile. ConfigError."""
        if self._context is not None:
            self.load(self.passphrase)

    @property
    def locked(self) -> bool:
        """Whether our key is encrypted, and its passphrase unknown."""
        ours = self.profile.identity
        if ours.passphrase is not None:
            return False
        if ours.pkcs12:
            return pkcs12_is_encrypted(ours.pkcs12)
        return b"ENCRYPTED" in ours.key

    def question(self) -> Question | None:
        """What must be asked before anything is sent; None: nothing."""
        if self.profile.secret is not None:
            return None
        if self._context is None:
            return Question("passphrase", "passphrase of the private key")
        return self.login.question()

    def timing(self) -> Timing:
        """Return the session's times; the profile's, with jitter."""
        profile = self.profile
        return Timing(
            pull=profile.pull,
            hand_window=profile.hand_window,
            tran_window=profile.tran_window,
            reneg_sec=rekey_after(profile, self.entropy),
            reneg_bytes=max(profile.reneg_bytes, 0),
            reneg_pkts=profile.reneg_pkts,
        )

    def channel(self) -> ControlChannel:
        """Make the control channel of a new session."""
        profile = self.profile
        wrap = profile.control_wrap
        settings = ChannelSettings(
            is_server=False,
            hand_window=profile.hand_window,
            tls_timeout=profile.tls_timeout,
            max_packet_size=profile.max_packet_size,
            wkc_size=len(wrap.wkc) if wrap.kind == "tls-crypt-v2" else 0,
            acks_max=PLAIN_ACKS_MAX if wrap.kind == "plain" else ACKS_MAX,
        )
        return ControlChannel(
            settings,
            self.entropy(SESSION_ID_SIZE),
            settle.client_wrap(profile),
            self._new_tls,
            self._hello,
        )

    def _new_tls(self, now: Now) -> TlsSession:
        if self._context is None:
            raise LocalStateError("no TLS context")
        return self._context.session(now.unix)

    def _hello(self) -> KeyMethodMessage:
        where = self.where
        username, password = self.login.name_and_password()
        return KeyMethodMessage(
            KeySource.from_entropy(self.entropy(CLIENT_MATERIAL_SIZE)),
            options_string(where.profile, where.remote, where.features),
            username,
            password,
            peer_info(where.profile, where.features, self.platform),
        )
