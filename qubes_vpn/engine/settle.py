"""From pushed options to what is used: settings, cipher, key suite."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

from qubes_vpn.config import pulled
from qubes_vpn.config.model import (
    ClientProfile,
    Identity,
    Remote,
    ServerCheck,
    TlsOptions,
)
from qubes_vpn.config.pulled import TunnelSettings
from qubes_vpn.crypto.aead import cipher_spec, usage_limit
from qubes_vpn.crypto.cbc import static_key_directions
from qubes_vpn.crypto.control_wrap import (
    ControlWrap,
    PlainWrap,
    TlsAuthWrap,
    TlsCryptV2ClientWrap,
    TlsCryptWrap,
)
from qubes_vpn.crypto.keys import DataKeys
from qubes_vpn.crypto.tls import TlsSession, TlsSettings
from qubes_vpn.crypto.verify import PeerCheck
from qubes_vpn.engine.inner import STUB_OF
from qubes_vpn.engine.keying import KeySuite
from qubes_vpn.engine.peer_info import PlaneFeatures, offered_ciphers
from qubes_vpn.engine.pull import choose_cipher
from qubes_vpn.engine.push_options import IvProto
from qubes_vpn.errors import SessionError
from qubes_vpn.wire.key_method import KeyMethodMessage

Address: TypeAlias = IPv4Address | IPv6Address

P2P_PEER_ID_LABEL: Final = b"EXPORTER-OpenVPN-p2p-peerid"
P2P_PEER_ID: Final = int.from_bytes(b"vpn")
GCM_LIMIT: Final = usage_limit("AES-256-GCM")


def client_wrap(profile: ClientProfile) -> ControlWrap:
    """Return the control wrap that the profile says."""
    wrap = profile.control_wrap
    window, seconds = profile.replay_window, float(profile.replay_time)
    match wrap.kind:
        case "tls-auth":
            return TlsAuthWrap(
                wrap.key,
                wrap.direction,
                wrap.digest,
                window=window,
                seconds=seconds,
            )
        case "tls-crypt":
            return TlsCryptWrap(
                wrap.key, is_server=False, window=window, seconds=seconds
            )
        case "tls-crypt-v2":
            return TlsCryptV2ClientWrap(
                wrap.key, wrap.wkc, window=window, seconds=seconds
            )
        case _:
            return PlainWrap()


def tls_settings(
    profile: ClientProfile, passphrase: bytes | None
) -> TlsSettings:
    """Return what our TLS context is made of."""
    check = profile.server_check
    return tls_of(profile.identity, check, profile.tls, passphrase, check.crl)


def tls_of(
    ours: Identity,
    check: ServerCheck,
    tls: TlsOptions,
    passphrase: bytes | None,
    crl: bytes,
    *,
    is_server: bool = False,
    verify: str = "require",
) -> TlsSettings:
    """Return what a TLS context is made of, for either side.

    check: what the peer must be. verify: whether a client must show a
    certificate (none, optional, require).
    """
    return TlsSettings(
        is_server=is_server,
        ca=check.ca,
        certificate=ours.certificate,
        chain=ours.chain,
        key=ours.key,
        passphrase=passphrase,
        pkcs12=ours.pkcs12,
        crl=crl,
        version_min=tls.version_min,
        version_max=tls.version_max,
        cipher=tls.cipher,
        ciphersuites=tls.ciphersuites,
        groups=tls.groups,
        cert_profile=tls.cert_profile,
        check=PeerCheck(
            fingerprints=check.fingerprints,
            verify_hash=check.verify_hash,
            name=check.name,
            name_type=check.name_type,
            eku=check.eku,
            ku=check.ku,
            ns_cert_type=check.ns_cert_type,
            username_field=check.username_field,
            revoked=check.revoked,
        ),
        verify=verify,
    )


@dataclass(frozen=True, slots=True)
class Situation:
    """What settings depend on, besides what the peer says.

    endpoint: the server's address in use. gateway: of the uplink.
    stream: TCP, whose end the peer notices by itself. link_mtu: of the
    uplink, in bytes; 0 when it is not known.
    """

    profile: ClientProfile
    remote: Remote
    features: PlaneFeatures
    endpoint: Address | None = None
    gateway: Address | None = None
    stream: bool = False
    link_mtu: int = 0

    def merge(
        self, options: Sequence[str], peer_options: str
    ) -> TunnelSettings:
        """Merge pushed options with the profile; decide the cipher.

        peer_options: the peer's options string.
        Raises SessionError when the settings cannot be used.
        """
        settings = pulled.merge(
            self.profile,
            self.remote,
            options,
            endpoint=self.endpoint,
            gateway=self.gateway,
        )
        cipher = choose_cipher(
            self.profile, self.features, options, peer_options
        )
        settings = replace(settings, cipher=cipher)
        if self.stream:
            settings = replace(settings, explicit_exit_notify=0)
        return self.checked(settings)

    def checked(self, settings: TunnelSettings) -> TunnelSettings:
        """Return the settings if the data plane can do what they say."""
        if settings.compression and not self.features.framing:
            raise SessionError("bad-push", "this data plane has no framing")
        if not settings.aead_epoch:
            return settings
        if settings.peer_id is None:
            raise SessionError("epoch-without-peer-id")
        if not self.features.epoch:
            raise SessionError("bad-push", "aead-epoch was not offered")
        if cipher_spec(settings.cipher).kind != "aead":
            raise SessionError("bad-push", "aead-epoch needs an AEAD cipher")
        return settings


def own_settings(
    where: Situation, peer: KeyMethodMessage, tls: TlsSession
) -> TunnelSettings:
    """Return the settings without pull: the profile's, and p2p NCP.

    Both sides come to the same result from each other's peer info.
    Source: OpenVPN 2 ssl_ncp.c, p2p_mode_ncp.
    """
    theirs = peer.peer_info_pairs()
    bits = IvProto(_number(theirs.get("IV_PROTO", "")))
    if IvProto.NCP_P2P not in bits:
        return where.merge((), peer.options)
    ours = offered_ciphers(where.profile, where.features)
    listed = theirs.get("IV_CIPHERS", "").split(":")
    # the TLS server's order decides, and that is not us
    common = next((one for one in listed if one in ours), "")
    said = f"cipher {common}" if common else peer.options
    settings = where.merge((), said)
    ekm = IvProto.TLS_KEY_EXPORT in bits
    peer_id: int | None = None
    if IvProto.DATA_V2 in bits:
        peer_id = P2P_PEER_ID
        if ekm:
            peer_id = int.from_bytes(tls.export(P2P_PEER_ID_LABEL, 3))
    settings = replace(
        settings,
        peer_id=peer_id,
        tls_ekm=ekm,
        cc_exit=IvProto.CC_EXIT_NOTIFY in bits,
        dyn_tls_crypt=IvProto.DYN_TLS_CRYPT in bits,
        aead_epoch=where.features.epoch
        and IvProto.DATA_EPOCH in bits
        and cipher_spec(settings.cipher).kind == "aead",
    )
    return where.checked(settings)


def static_keys(
    where: Situation, unix: float
) -> tuple[TunnelSettings, DataKeys]:
    """Return settings and keys of static-key mode: all in the profile.

    unix: seconds now.
    Source: OpenVPN 2 init.c, do_init_crypto_static.
    """
    profile = where.profile
    assert profile.secret is not None
    key, direction = profile.secret
    settings = pulled.merge(profile, where.remote, ())
    settings = replace(settings, cipher=profile.cipher, peer_id=None)
    encrypt, decrypt = static_key_directions(
        key, direction, profile.cipher, profile.auth
    )
    return settings, DataKeys(
        0,
        None,
        profile.cipher,
        encrypt,
        decrypt,
        profile.auth,
        _framing(profile, settings.compression),
        replay_window=profile.replay_window,
        replay_time=profile.replay_time,
        static=True,
        began=unix,
        fragment=bool(settings.fragment),
    )


def _framing(profile: ClientProfile, compression: str) -> str:
    """Return the framing of packets: without permission none is unpacked."""
    if profile.allow_compression == "no":
        return STUB_OF.get(compression, compression)
    return compression


def key_suite(profile: ClientProfile, settings: TunnelSettings) -> KeySuite:
    """Return what every key of the session has in common."""
    return KeySuite(
        settings.cipher,
        settings.digest,
        settings.peer_id,
        settings.tls_ekm,
        settings.aead_epoch,
        _framing(profile, settings.compression),
        profile.replay_window,
        profile.replay_time,
        bool(settings.fragment),
    )


def block_limit(settings: TunnelSettings) -> int:
    """Return how many AEAD blocks and packets one key may see; 0: any."""
    return 0 if settings.aead_epoch else usage_limit(settings.cipher)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0
