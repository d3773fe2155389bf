"""The table that a run prints of the protocol matrix."""

from tests.interop.matrix import table

NODE = "tests/interop/test_protocol_matrix.py::test_pair[{}]"


def test_each_cell_says_what_became_of_it():
    results = [
        (NODE.format("plain-udp4-AES-256-GCM"), True),
        (NODE.format("tls-crypt-v2-tcp6-AES-256-GCM"), False),
        (NODE.format("tls-crypt-v2-tcp6-CHACHA20-POLY1305"), True),
        ("tests/interop/test_planes.py::test_else", False),
    ]
    lines = [line.split() for line in table(results)]
    assert lines == [
        ["AES-256-GCM", "CHACHA20"],
        ["plain", "udp4", "pass", "-"],
        ["tls-crypt-v2", "tcp6", "FAIL", "pass"],
        ["3", "cells", "tried,", "2", "passed"],
    ]


def test_a_run_without_the_matrix_prints_nothing():
    assert not list(table([("tests/interop/test_planes.py::test_else", True)]))
