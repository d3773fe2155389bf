"""Words, comments, quotes, blocks: OpenVPN's rules."""

import pytest

from qubes_vpn.config import lexer
from qubes_vpn.config.lexer import Lexer, LineError, decode_text, split_line


def words(line):
    return [word for word, _ in split_line(line)]


def statements(text, **options):
    made = Lexer(text, "f", **options)
    found = list(made.statements())
    assert made.problems == []
    return found


def problems(text):
    made = Lexer(text, "f")
    list(made.statements())
    return [str(one) for one in made.problems]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        ("   \t \r", []),
        ("remote host 1194", ["remote", "host", "1194"]),
        ("\tremote\thost\r", ["remote", "host"]),
        ("# comment", []),
        ("; comment", []),
        ("remote host # comment", ["remote", "host"]),
        ("remote a#b ;c", ["remote", "a#b"]),
        ('a "b c" d', ["a", "b c", "d"]),
        ("a 'b c' d", ["a", "b c", "d"]),
        ("a 'b\\c'", ["a", "b\\c"]),
        ('a "b\\"c"', ["a", 'b"c']),
        ("a b\\ c", ["a", "b c"]),
        ("a \\\\b", ["a", "\\b"]),
        ('a ""', ["a", ""]),
        ('"a"b', ["a", "b"]),
        ('a "b#c"', ["a", "b#c"]),
        ("a \\#b", ["a"]),
        ("\\ a \\\t b", ["a", "b"]),
        ("a\\\tb", ["a\tb"]),
        ('a b"c', ["a", 'b"c']),
        ("a 'b\"c'", ["a", 'b"c']),
        ("ü \u00a0x", ["ü", "\u00a0x"]),
    ],
)
def test_a_line_is_split_into_words(line, expected):
    assert words(line) == expected


@pytest.mark.parametrize("space", ["\u00a0", "\u2003", "\x1c", "\x85"])
def test_only_ascii_white_space_separates(space):
    assert words(f"a{space}b c") == [f"a{space}b", "c"]


@pytest.mark.parametrize(
    ("line", "offset"), [('a "b', 2), ("a 'b", 2), ("a \\b", 2), ("ab\\", 2)]
)
def test_what_cannot_be_split_says_where(line, offset):
    with pytest.raises(LineError) as caught:
        split_line(line)
    assert caught.value.offset == offset


def test_statements_know_line_and_columns():
    (one, two) = statements("\n remote host\n--dev tun")
    assert (one.name, one.args, one.line, one.columns) == (
        "remote",
        ("host",),
        2,
        (2, 9),
    )
    assert (two.name, two.line) == ("dev", 3)
    assert str(two.problem("no", 1)) == "f:3:7: no"
    assert str(two.problem("no", 9)) == "f:3:7: no"


def test_a_block_is_taken_as_it_is():
    (one, two) = statements("<ca>\n# x\n \\\n  </ca> rest\nverb 3")
    assert (one.name, one.block, one.line) == ("ca", "# x\n \\\n", 1)
    assert two.line == 5


def test_a_block_with_words_is_none():
    assert statements("<ca> x")[0].block is None


def test_crlf_bom_and_no_final_newline():
    text = "\ufeffclient\r\n<ca>\r\nx\r\n</ca>\r\ndev tun"
    assert [one.name for one in statements(text)] == ["client", "ca", "dev"]


def test_a_part_begins_at_its_line():
    assert statements("dev tun", first_line=7)[0].line == 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<ca>\nx", "f:1:1: no </ca> ends this block"),
        ('verb "3', 'f:1:6: no closing quotation mark (")'),
        ("a\0b", "f:1:2: a zero byte: not a text file"),
        ('"" x', "f:1:1: an empty name"),
        ("a " + "b" * 5000, "f:1:3: over 4096 characters"),
        ("a" * 9000, "f:1:1: a line of over 8192 characters"),
        ("a " * 100, "f:1:1: more than 64 words"),
    ],
)
def test_errors_say_where(text, expected):
    assert problems(text) == [expected]


def test_reading_stops_after_many_errors():
    found = problems('"\n' * 1000)
    assert len(found) == lexer.PROBLEMS_MAX + 1
    assert found[-1].endswith("the rest is not read")


def test_a_text_that_is_too_long_is_not_read():
    assert problems("x" * (lexer.TEXT_MAX + 1)) == [
        f"f:1:1: longer than {lexer.TEXT_MAX} characters"
    ]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\xef\xbb\xbfclient", "client"),
        ("client".encode("utf-16"), "client"),
        (b"\xfe\xff" + "client".encode("utf-16-be"), "client"),
        (b"# \xe9", "# \udce9"),
    ],
)
def test_bytes_become_text(content, text):
    assert decode_text(content) == text


def test_secrets_are_not_shown():
    (one,) = statements("<key>\nSECRET\n</key>")
    assert "SECRET" not in repr(one)
