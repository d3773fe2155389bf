"""What a client says of itself: peer info (IV_*) and the options string.

Source: OpenVPN 2.7 ssl.c, push_peer_info; options_string.c.
"""

from dataclasses import dataclass
from typing import Final

from qubes_vpn.config.model import ClientProfile, Remote
from qubes_vpn.crypto.aead import cipher_spec, digest_size
from qubes_vpn.engine.push_options import IvProto

# The protocol that we speak, as OpenVPN's version of it.
PROTOCOL_VERSION: Final = "2.7.0"
_PULL_BITS: Final = (
    IvProto.REQUEST_PUSH | IvProto.AUTH_PENDING_KW | IvProto.AUTH_FAIL_TEMP
)
_ALWAYS_BITS: Final = (
    IvProto.DATA_V2
    | IvProto.TLS_KEY_EXPORT
    | IvProto.CC_EXIT_NOTIFY
    | IvProto.DYN_TLS_CRYPT
    | IvProto.DNS_OPTION_V2
    | IvProto.PUSH_UPDATE
)


@dataclass(frozen=True, slots=True)
class PlaneFeatures:
    """What the data plane that will be used can do.

    epoch: the 2.7 epoch data format. framing: compression stubs.
    ciphers: all that it has, None for everything. occ: it hands the peer's
    OCC messages over (Traffic.occ), and sends ours.
    """

    epoch: bool = False
    framing: bool = True
    ciphers: frozenset[str] | None = None
    occ: bool = False


@dataclass(frozen=True, slots=True)
class Platform:
    """What only the program knows. details: sent with push-peer-info."""

    gui: str = "qubes_vpn"
    sso: str = "webauth,crtext"
    details: tuple[tuple[str, str], ...] = ()


def offered_ciphers(
    profile: ClientProfile, features: PlaneFeatures
) -> tuple[str, ...]:
    """Return the data-ciphers that profile and data plane both have."""
    return tuple(
        cipher
        for cipher in profile.data_ciphers
        if features.ciphers is None or cipher in features.ciphers
    )


def peer_info(
    profile: ClientProfile, features: PlaneFeatures, platform: Platform
) -> str:
    """Return the peer info: lines NAME=value, as 2.7 sends them."""
    ciphers = offered_ciphers(profile, features)
    bits = _ALWAYS_BITS
    pairs = [("IV_VER", PROTOCOL_VERSION), ("IV_PLAT", "linux")]
    pairs.append(("IV_TCPNL", "1"))
    if profile.pull:
        bits |= _PULL_BITS
        pairs.append(("IV_MTU", str(profile.tun_mtu_max)))
        if {"AES-128-GCM", "AES-256-GCM"} <= set(ciphers):
            pairs.append(("IV_NCP", "2"))
    else:
        bits |= IvProto.NCP_P2P
    if features.epoch:
        bits |= IvProto.DATA_EPOCH
    pairs.append(("IV_CIPHERS", ":".join(ciphers)))
    pairs.append(("IV_PROTO", str(int(bits))))
    if features.framing:
        # stubs only: nothing is ever compressed by us
        stubs = ("IV_LZO_STUB", "IV_COMP_STUB", "IV_COMP_STUBv2")
        pairs.extend((stub, "1") for stub in stubs)
    pairs.extend((("IV_GUI_VER", platform.gui), ("IV_SSO", platform.sso)))
    if profile.push_peer_info:
        pairs.extend((*platform.details, *profile.peer_info))
    return "".join(f"{name}={value}\n" for name, value in pairs)


def options_string(
    profile: ClientProfile, remote: Remote, features: PlaneFeatures
) -> str:
    """Return the options string: what OpenVPN compares, and only warns of.

    A server without NCP takes our cipher from it.
    """
    family = 6 if remote.family == 6 else 4
    stream = remote.proto.startswith("tcp")
    proto = f"TCPv{family}_CLIENT" if stream else f"UDPv{family}"
    mtu = remote.tun_mtu or profile.tun_mtu
    cipher = profile.data_ciphers_fallback or profile.cipher
    parts = [
        "V4",
        "dev-type tun",
        f"link-mtu {mtu + _overhead(cipher, profile.auth, stream=stream)}",
        f"tun-mtu {mtu}",
        f"proto {proto}",
    ]
    if profile.compression:
        parts.append("comp-lzo")
    if remote.fragment or profile.fragment:
        parts.append("mtu-dynamic")
    wrap = profile.control_wrap
    if wrap.kind == "tls-auth" and wrap.direction is not None:
        parts.append(f"keydir {wrap.direction}")
    if not profile.pull or cipher in offered_ciphers(profile, features):
        parts.append(f"cipher {cipher}")
    aead = _kind(cipher) == "aead"
    parts.append(f"auth {'[null-digest]' if aead else profile.auth}")
    parts.append(f"keysize {_key_bits(cipher)}")
    if wrap.kind == "tls-auth":
        parts.append("tls-auth")
    parts.extend(("key-method 2", "tls-client"))
    return ",".join(parts)


def _kind(cipher: str) -> str:
    # never spoken, but what a profile without `cipher` stands for
    return "cbc" if cipher == "BF-CBC" else cipher_spec(cipher).kind


def _key_bits(cipher: str) -> int:
    return 128 if cipher == "BF-CBC" else cipher_spec(cipher).key_size * 8


def _overhead(cipher: str, digest: str, *, stream: bool) -> int:
    """Return what a data packet adds: opcode, packet id, IV, padding."""
    length = 2 if stream else 0
    if _kind(cipher) == "aead":
        return length + 1 + 4 + 16
    block = 8 if cipher == "BF-CBC" else 16
    return length + 1 + 4 + 2 * block + digest_size(digest)
