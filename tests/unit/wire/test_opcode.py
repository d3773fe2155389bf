import pytest

from qubes_vpn.errors import MalformedPacketError
from qubes_vpn.wire.opcode import Opcode, first_byte, split_first_byte

LEGAL = range(3, 12)


@pytest.mark.parametrize("number", LEGAL)
@pytest.mark.parametrize("key_id", [0, 1, 7])
def test_first_bytes_of_legal_opcodes_split_again(number, key_id):
    byte = first_byte(Opcode(number), key_id)
    assert byte == number * 8 + key_id
    assert split_first_byte(byte) == (Opcode(number), key_id)


@pytest.mark.parametrize("number", sorted(set(range(32)) - set(LEGAL)))
def test_other_opcodes_are_refused(number):
    with pytest.raises(MalformedPacketError) as caught:
        split_first_byte(number << 3)
    assert caught.value.reason == "unknown-opcode"


def test_a_reset_of_a_client_has_the_byte_that_openvpn_sends():
    assert first_byte(Opcode.P_CONTROL_HARD_RESET_CLIENT_V2, 0) == 0x38
