"""Any wrapped client key is a key with its metadata, or is dropped."""

from qubes_vpn.config.model import ControlWrapKey
from qubes_vpn.config.server_profile import ServerProfile
from qubes_vpn.crypto.control_wrap import (
    metadata_time,
    split_wkc,
    timestamp_metadata,
    wrap_client_key,
)
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.hello import WrapKeys
from qubes_vpn.errors import UntrustedInputError

KEY, SERVER_KEY = bytes(range(256)), bytes(range(128))
NOW = Now(1000.0, 1_795_000_000.0)
PROFILE = ServerProfile(
    control_wrap=ControlWrapKey(),
    tls_crypt_v2=SERVER_KEY,
    tls_crypt_v2_max_age=30,
)
HEAD = bytes([0x50, *range(1, 49)])
SEEDS = (
    b"r" + HEAD + wrap_client_key(SERVER_KEY, KEY, b"\0user"),
    b"r" + HEAD + wrap_client_key(SERVER_KEY, KEY, timestamp_metadata(1.79e9)),
    b"r" + HEAD + wrap_client_key(SERVER_KEY, KEY, b""),
    b"r" + bytes(400) + b"\x01\x22",
    b"m" + timestamp_metadata(NOW.unix),
    b"m\x00user",
    b"m\x01\xff\xff\xff\xff\xff\xff\xff\xff",
)
REASONS = {
    *("bad-wkc-length", "bad-wkc", "denied-wkc", "old-wkc"),
    "no-tls-crypt-v2",
}


def one_input(data: bytes) -> None:
    """Unwrap a datagram's end, or a key with metadata as given."""
    keys = WrapKeys(PROFILE, frozenset({b"user"}))
    try:
        if data[:1] == b"m":
            given = data[1:701]
            wkc = wrap_client_key(SERVER_KEY, KEY, given)
            metadata_time(given)
        else:
            body, wkc = split_wkc(data[1:])
            assert body + wkc == data[1:]
        found = keys.of_client(wkc, NOW)
    except UntrustedInputError as error:
        assert error.reason in REASONS
        assert data[:1] != b"m" or error.reason in {"old-wkc", "denied-wkc"}
        return
    assert len(found.settings.key) == 256
