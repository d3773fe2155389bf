from qubes_vpn.wire.data import data_v1_header, data_v2_header


def test_data_headers_are_opcode_key_id_and_peer_id():
    assert data_v1_header(0) == b"\x30"
    assert data_v1_header(7) == b"\x37"
    assert data_v2_header(0, 0) == b"\x48\0\0\0"
    assert data_v2_header(2, 0x010203) == b"\x4a\1\2\3"
