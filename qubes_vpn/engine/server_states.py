"""The states of one client of a server, and what is negotiated with it."""

from dataclasses import dataclass
from typing import Final, TypeAlias

from qubes_vpn.config.server_model import ServerProfile
from qubes_vpn.crypto.aead import cipher_spec
from qubes_vpn.engine.keying import KeySuite
from qubes_vpn.engine.push_options import Abilities, IvProto, Lease
from qubes_vpn.engine.server_effects import Removed


@dataclass(frozen=True, slots=True)
class Identity:
    """Who it is; a renegotiation must not change it."""

    common_name: str
    username: str
    leaf: bytes


@dataclass(frozen=True, slots=True)
class Negotiating:
    """TLS and key method 2 are on their way."""

    push_wanted: bool = False


@dataclass(frozen=True, slots=True)
class Deciding:
    """Whoever decides was asked, and must answer before `until`."""

    until: float
    identity: Identity
    abilities: Abilities
    cipher: str
    push_wanted: bool


@dataclass(frozen=True, slots=True)
class Connected:
    """It is in. push: the messages of its PUSH_REPLY; sent: they were.

    called: its user name from now on (override-username).
    """

    identity: Identity
    called: str
    abilities: Abilities
    suite: KeySuite
    lease: Lease
    push: tuple[bytes, ...]
    sent: bool
    since: float


@dataclass(frozen=True, slots=True)
class Leaving:
    """A last message is on its way."""

    removed: Removed
    until: float


@dataclass(frozen=True, slots=True)
class Gone:
    """Nothing is left."""


SessionState: TypeAlias = Negotiating | Deciding | Connected | Leaving | Gone


_EPOCH_NEEDS: Final = (
    IvProto.DATA_EPOCH
    | IvProto.DATA_V2
    | IvProto.TLS_KEY_EXPORT
    | IvProto.CC_EXIT_NOTIFY
)


def key_suite(
    profile: ServerProfile, client: int, state: Deciding, *, epochs: bool
) -> KeySuite:
    """Say what the data channel of a client is like; `client`: its peer id.

    epochs: the data plane has them.
    """
    proto = state.abilities.proto
    aead = cipher_spec(state.cipher).kind == "aead"
    return KeySuite(
        state.cipher,
        profile.auth,
        client if proto & IvProto.DATA_V2 else None,
        ekm=bool(proto & IvProto.TLS_KEY_EXPORT),
        epoch=epochs and aead and _EPOCH_NEEDS in proto,
        replay_window=profile.replay_window,
        replay_time=profile.replay_time,
    )


def negotiated(state: Deciding, suite: KeySuite) -> tuple[str, ...]:
    """List the options that the session itself needs."""
    proto = state.abilities.proto
    options = []
    if suite.peer_id is not None:
        options.append(f"peer-id {suite.peer_id}")
    if state.abilities.ciphers:
        options.append(f"cipher {suite.cipher}")
    flags = []
    if proto & IvProto.CC_EXIT_NOTIFY:
        flags.append("cc-exit")
        if suite.ekm:
            flags.append("tls-ekm")
    elif suite.ekm:
        options.append("key-derivation tls-ekm")
    if proto & IvProto.DYN_TLS_CRYPT:
        flags.append("dyn-tls-crypt")
    if suite.epoch:
        flags.append("aead-epoch")
    if flags:
        options.append(f"protocol-flags {' '.join(flags)}")
    return tuple(options)
