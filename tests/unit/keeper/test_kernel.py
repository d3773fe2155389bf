"""What the engine may ask of the kernel's peer is checked."""

from dataclasses import fields, replace

import pytest

from qubes_vpn.keeper import kernel, messages
from qubes_vpn.keeper.bounds import RequestRefusedError
from qubes_vpn.system import ovpn

GOOD = messages.NewKey(
    peer_id=1,
    slot=1,
    key_id=7,
    cipher=1,
    encrypt_key="ab" * 16,
    encrypt_nonce="01" * 8,
    decrypt_key="cd" * 16,
    decrypt_nonce="02" * 8,
)


def test_a_good_key_is_taken_as_it_is():
    key = kernel._key(GOOD)
    assert (key.slot, key.key_id, key.cipher) == (1, 7, 1)
    assert key.encrypt == b"\xab" * 16
    assert key.decrypt_nonce == b"\x02" * 8


@pytest.mark.parametrize(
    ("change", "slug"),
    [
        ({"slot": 2}, "bad-slot"),
        ({"slot": -1}, "bad-slot"),
        ({"key_id": 8}, "bad-key-id"),
        ({"cipher": 0}, "bad-cipher"),
        ({"cipher": 3}, "bad-cipher"),
        ({"encrypt_key": "xy" * 16}, "bad-key"),
        ({"encrypt_key": "ab" * 15}, "bad-key"),
        ({"encrypt_key": "ab" * 32}, "bad-key"),
        ({"cipher": 2}, "bad-key"),
        ({"encrypt_nonce": "01" * 7}, "bad-key"),
        ({"decrypt_nonce": ""}, "bad-key"),
    ],
)
def test_a_bad_key_is_refused_without_repeating_it(change, slug):
    with pytest.raises(RequestRefusedError) as caught:
        kernel._key(replace(GOOD, **change))
    assert caught.value.reason == slug
    assert "ab" not in caught.value.detail
    assert "xy" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "slug"),
    [
        ({"peer_id": -1}, "bad-peer-id"),
        ({"peer_id": 1 << 24}, "bad-peer-id"),
        ({"ping": -1}, "bad-ping"),
        ({"ping_restart": 1 << 32}, "bad-ping"),
    ],
)
def test_a_bad_peer_is_refused(change, slug):
    request = replace(messages.NewPeer(1, 10, 60), **change)
    with pytest.raises(RequestRefusedError) as caught:
        kernel._check_peer(request)
    assert caught.value.reason == slug


def test_the_drivers_counters_are_told_by_the_same_names():
    read, told = (
        {field.name for field in fields(module.PeerCounters)}
        for module in (ovpn, messages)
    )
    assert read == told
