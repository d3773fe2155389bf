"""The table, and the kinds of arguments."""

import re

import pytest

from qubes_vpn.config import values
from qubes_vpn.config.directives import (
    DIRECTIVES,
    Directive,
    Support,
    _table,
    nearest,
)


@pytest.mark.parametrize(
    ("kind", "word", "value"),
    [
        ("port", "https", 443),
        ("port", "65535", 65535),
        ("seconds", "+5", 5),
        ("bit", "1", 1),
        ("host", "[2001:db8::1]", "2001:db8::1"),
        ("host", "192.0.2.1", "192.0.2.1"),
        ("host", "a-b.example", "a-b.example"),
        ("target", "vpn_gateway", "vpn_gateway"),
        ("gateway", "default", "default"),
        ("netmask", "255.255.255.0", 24),
        ("netmask", "0.0.0.0", 0),
        ("netmask", "default", 32),
        ("ku", "A0", 0xA0),
        ("proto", "TCP4-client", "tcp4-client"),
    ],
)
def test_words_become_values(kind, word, value):
    assert values.KINDS[kind](word) == value


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("port", "0"),
        ("port", "65536"),
        ("port", "1e3"),
        ("port", "٣"),
        ("seconds", "-1"),
        ("seconds", "9" * 30),
        ("seconds", ""),
        ("bit", "2"),
        ("host", "a b"),
        ("host", ""),
        ("host", "-x"),
        ("host", "fe80::1%eth0"),
        ("netmask", "255.0.255.0"),
        ("netmask", "x"),
        ("ipv6/bits", "fe80::1%eth0/64"),
        ("ipv6net", "fe80::%1/64"),
        ("domain", "a" * 64),
        ("domain", "-a"),
        ("hash", "AB:C"),
    ],
)
def test_other_words_are_refused_in_words_that_help(kind, word):
    with pytest.raises(ValueError, match=r"^needs "):
        values.KINDS[kind](word)


def test_every_row_that_is_not_applied_says_why():
    for row in DIRECTIVES.values():
        if not row.alias and row.support is not Support.APPLY:
            assert row.why
            assert not row.why.endswith(".")


def test_the_table_refuses_what_contradicts_itself():
    with pytest.raises(AssertionError):
        _table((Directive("a"), Directive("a")))
    with pytest.raises(AssertionError):
        _table((Directive("a", why="x"),))
    with pytest.raises(AssertionError):
        _table((Directive("a", support=Support.IGNORE),))


def test_usages_are_made_of_kinds():
    for row in DIRECTIVES.values():
        for token in row.usage.split():
            assert re.sub(r"[\[\]]|\.\.\.", "", token) in values.KINDS


def test_the_nearest_name():
    assert nearest("Remot") == "remote"
    assert nearest("qqqqq") == ""
