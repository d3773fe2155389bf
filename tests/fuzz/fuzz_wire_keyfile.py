"""Any key file is a key that prints to its equal, or one ValueError."""

from qubes_vpn.wire.keyfile import (
    ClientKeyV2,
    format_client_key_v2,
    format_pem,
    format_static_key,
    parse_client_key_v2,
    parse_server_key,
    parse_static_key,
)

KEY = bytes(range(256))
SEEDS = (
    format_static_key(KEY).encode(),
    format_client_key_v2(
        ClientKeyV2(KEY, bytes(288) + (290).to_bytes(2))
    ).encode(),
    format_pem(bytes(128), "OpenVPN tls-crypt-v2 server key").encode(),
    b"-----BEGIN OpenVPN Static key V1-----\n0x\n-----END OpenVPN Static key V1-----",
)


def one_input(data: bytes) -> None:
    """Parse as each kind."""
    text = data.decode("utf-8", "surrogateescape")
    for parse, show in (
        (parse_static_key, format_static_key),
        (parse_client_key_v2, format_client_key_v2),
        (parse_server_key, None),
    ):
        try:
            key = parse(text)
        except ValueError as error:
            said = str(error)
            # a sentence, which quotes nothing of the file
            assert said.isascii()
            assert len(said) < 100
            continue
        assert show is None or parse(show(key)) == key
