"""Packets and keys of real openvpn processes: see tests/vectors/README.md."""

import json
from pathlib import Path

import pytest

from qubes_vpn.crypto import prf
from qubes_vpn.crypto.control_wrap import (
    TlsCryptV2ClientWrap,
    TlsCryptV2ServerWrap,
    TlsCryptWrap,
    dynamic_tls_crypt_key,
    unwrap_client_key,
)
from qubes_vpn.crypto.keys import DataKeys, DirectionKeys
from qubes_vpn.engine.data_channel import DataChannel
from qubes_vpn.engine.inner import PING
from qubes_vpn.engine.traffic import Traffic
from qubes_vpn.errors import UntrustedInputError
from qubes_vpn.wire.key_method import KeySource
from qubes_vpn.wire.keyfile import (
    parse_client_key_v2,
    parse_server_key,
    parse_static_key,
)
from qubes_vpn.wire.opcode import Opcode

VECTORS = Path(__file__).parents[2] / "vectors"
PACKETS = json.loads((VECTORS / "data-packets.json").read_text())
EPOCHS = json.loads((VECTORS / "epoch-packets.json").read_text())
DERIVATIONS = json.loads((VECTORS / "derivations.json").read_text())
COOKIE = json.loads((VECTORS / "cookie-handshake.json").read_text())
ROLES = ("client", "server")
EPOCH_CIPHERS = [name for name in DERIVATIONS if name not in {"PRF", "EKM"}]
IMPLICIT_IV = slice(4, 12)


def direction(of, way):
    return DirectionKeys(
        bytes.fromhex(of[f"{way} cipher"]), bytes.fromhex(of[f"{way} hmac"])
    )


def channel_with(name, ours, theirs, *, epoch=False):
    """What one side has, with the keys that it printed."""
    cipher, _, digest = name.partition(" ")
    encrypt, decrypt = direction(ours, "encrypt"), direction(ours, "decrypt")
    if not digest and not epoch:
        encrypt, decrypt = (
            DirectionKeys(
                keys.cipher_key,
                implicit_iv=bytes.fromhex(of["nonce"])[IMPLICIT_IV],
            )
            for keys, of in ((encrypt, ours), (decrypt, theirs))
        )
    first = bytes.fromhex(ours["packets"][0])
    peer_id = int.from_bytes(first[1:4])
    made = DataChannel(Traffic())
    made.install(
        0, DataKeys(0, peer_id, cipher, encrypt, decrypt, digest, epoch=epoch)
    )
    return made


CASES = [
    *((PACKETS[name], name, False) for name in PACKETS),
    *((EPOCHS[name], name, True) for name in EPOCHS),
]
IDS = [*PACKETS, *(f"epoch {name}" for name in EPOCHS)]


@pytest.mark.parametrize(("recorded", "name", "epoch"), CASES, ids=IDS)
@pytest.mark.parametrize("role", ROLES)
def test_openvpns_packets_open_with_the_keys_it_printed(
    recorded, name, epoch, role
):
    (other,) = set(ROLES) - {role}
    ours, theirs = recorded[role], recorded[other]
    channel = channel_with(name, ours, theirs, epoch=epoch)
    assert len(theirs["packets"]) == 3
    for number, packet in enumerate(theirs["packets"], 1):
        # a ping is heard, and goes no further
        assert channel.open(bytes.fromhex(packet), 1.0) is None
        assert channel.traffic.rx_packets == number
    assert not channel.drops
    flipped = bytearray.fromhex(theirs["packets"][0])
    flipped[-1] ^= 1
    again = channel_with(name, ours, theirs, epoch=epoch)
    assert again.open(bytes(flipped), 1.0) is None
    assert again.drops


@pytest.mark.parametrize(
    # a CBC packet has a random IV
    ("recorded", "name", "epoch"),
    [case for case in CASES if " " not in case[1]],
)
@pytest.mark.parametrize("role", ROLES)
def test_we_seal_what_openvpn_sealed(recorded, name, epoch, role):
    (other,) = set(ROLES) - {role}
    ours = recorded[role]
    channel = channel_with(name, ours, recorded[other], epoch=epoch)
    sealed = [channel.seal(PING, 1.0).hex() for _ in ours["packets"]]
    assert sealed == ours["packets"]


@pytest.mark.parametrize("name", EPOCHS)
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("way", ["encrypt", "decrypt"])
def test_the_keys_of_epochs_are_those_that_openvpn_printed(name, role, way):
    of = EPOCHS[name][role]
    printed = of[
        {"encrypt": "outgoing", "decrypt": "incoming"}[way] + " epochs"
    ]
    secret = bytes.fromhex(of[f"{way} cipher"])
    derived = {}
    for number in range(1, len(printed) + 1):
        derived[str(number)] = prf.epoch_keys(secret, name).cipher_key.hex()
        secret = prf.next_epoch(secret)
    assert derived == printed
    assert derived


def printed_keys():
    return [
        direction(DERIVATIONS[how]["server"], way)
        for how in ("PRF", "EKM")
        for way in ("encrypt", "decrypt")
    ]


def test_keys_by_the_prf_are_those_that_openvpn_printed():
    recorded = DERIVATIONS["PRF"]
    pre_master, *randoms = (
        bytes.fromhex(text)
        for text in (
            recorded["pre_master"],
            *recorded["client random"],
            *recorded["server random"],
        )
    )
    ours = KeySource(*randoms[:2], pre_master)
    theirs = KeySource(*randoms[2:])
    sids = map(bytes.fromhex, recorded["session ids"])
    key2 = prf.key2_from_prf(ours, theirs, *sids)
    keys = prf.direction_keys(
        key2, is_server=True, cipher="AES-256-CBC", digest="SHA512"
    )
    assert list(keys) == printed_keys()[:2]


def test_keys_by_the_exporter_are_those_that_openvpn_printed():
    keys = prf.direction_keys(
        bytes.fromhex(DERIVATIONS["EKM"]["ekm"]),
        is_server=True,
        cipher="AES-256-CBC",
        digest="SHA512",
    )
    assert list(keys) == printed_keys()[2:]


@pytest.mark.parametrize("way", ["outgoing", "incoming"])
@pytest.mark.parametrize("cipher", EPOCH_CIPHERS)
def test_keys_of_epochs_by_the_exporter_are_those_that_openvpn_printed(
    cipher, way
):
    recorded = DERIVATIONS[cipher]
    printed = recorded[f"{way} epochs"]
    assert printed
    both = prf.epoch_secrets(bytes.fromhex(recorded["ekm"]), is_server=True)
    secret = both[way == "incoming"].cipher_key
    for number in range(1, len(printed) + 1):
        key = prf.epoch_keys(secret, cipher).cipher_key
        assert key.hex() == printed[str(number)]
        secret = prf.next_epoch(secret)


# --- control wraps ------------------------------------------------------------


def halves(of):
    """A key file's 256 bytes with the keys that a server printed."""
    parts = [
        of[f"{way} {kind}"].ljust(128, "0")
        for way in ("outgoing", "incoming")
        for kind in ("cipher", "hmac")
    ]
    return bytes.fromhex("".join(parts))


def test_a_cookies_handshake_and_the_next_one_unwrap():
    key, wkc = parse_client_key_v2(COOKIE["client key"])
    server_key = parse_server_key(COOKIE["server key"])
    assert unwrap_client_key(server_key, wkc)[0] == key
    dynamic = halves(COOKIE["dynamic"])
    receivers = {
        ("client", 0): TlsCryptV2ServerWrap(key),
        ("server", 0): TlsCryptV2ClientWrap(key, wkc),
        ("client", 1): TlsCryptWrap(dynamic, is_server=True),
        ("server", 1): TlsCryptWrap(dynamic, is_server=False),
    }
    opcodes = []
    for sender, digits in COOKIE["packets"]:
        content = bytes.fromhex(digits)
        wrap = receivers[sender, content[0] & 7]
        opcodes.append(wrap.unwrap(content, 0.0).opcode)
        flipped = bytearray(content)
        flipped[20] ^= 1
        with pytest.raises(UntrustedInputError):
            wrap.unwrap(bytes(flipped), 0.0)
    assert opcodes[:3] == [
        Opcode.P_CONTROL_HARD_RESET_CLIENT_V3,
        Opcode.P_CONTROL_HARD_RESET_SERVER_V2,
        Opcode.P_CONTROL_WKC_V1,
    ]
    assert Opcode.P_CONTROL_SOFT_RESET_V1 in opcodes


def test_the_dynamic_key_is_the_one_that_openvpn_printed():
    recorded = DERIVATIONS["EKM"]
    key = dynamic_tls_crypt_key(
        bytes.fromhex(recorded["dynamic ekm"]),
        parse_static_key(recorded["static key"]),
    )
    printed = halves(recorded["dynamic"])
    for start in range(0, 256, 64):
        part = slice(start, start + 32)
        assert key[part] == printed[part]
