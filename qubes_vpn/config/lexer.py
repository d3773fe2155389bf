"""Text to statements: the words of every line, and inline blocks.

The rules are OpenVPN's (options_parse.c, parse_line): words are separated by
white space; `"` and `'` quote; a backslash escapes a backslash, a quotation
mark or white space outside single quotes; `#` and `;` begin a comment where
a word could begin. A line that is only `<name>` begins an inline block, up to
a line that begins with `</name>`. Departures are listed in docs/protocol.md.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from qubes_vpn.errors import Problem

TEXT_MAX: Final = 4 * 1024 * 1024  # characters of one profile, blocks included
LINE_MAX: Final = 8192  # OpenVPN stops at 255; provider lists are longer
WORD_MAX: Final = 4096
WORDS_MAX: Final = 64  # OpenVPN: 16
PROBLEMS_MAX: Final = 100

SPACE: Final = frozenset(" \t\v\f\r\n")
BOM: Final = "\ufeff"
_COMMENT: Final = frozenset("#;")
_WORD: Final = re.compile(r"[^ \t\v\f\r\n]+")
# What makes a line more than words split at white space.
_SPECIAL: Final = frozenset("\"'\\#;")


def decode_text(content: bytes) -> str:
    """Decode a profile's bytes: UTF-8, or UTF-16 as Windows' editor saves.

    Bytes that are not UTF-8 survive as surrogates: in a comment they do no
    harm, and in a password they are what the server wants.
    """
    if content[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        return content.decode("utf-16", "replace").removeprefix(BOM)
    return content.decode("utf-8", "surrogateescape").removeprefix(BOM)


@dataclass(frozen=True, slots=True)
class Statement:
    """One directive as written.

    words: the name and its arguments. columns: where each word begins,
    from 1. line: of the first word, from 1. block: the text between
    `<name>` and `</name>`, or None; it begins on the line after.
    """

    words: tuple[str, ...] = field(repr=False)
    file: str
    line: int
    columns: tuple[int, ...] = (1,)
    block: str | None = field(repr=False, default=None)

    @property
    def name(self) -> str:
        """The directive's name, without the two dashes some people write."""
        return self.words[0]

    @property
    def args(self) -> tuple[str, ...]:
        """The words after the name."""
        return self.words[1:]

    def problem(
        self, message: str, word: int = 0, code: str = "QV-103"
    ) -> Problem:
        """Say what is wrong with this statement, at its word number `word`."""
        column = self.columns[min(word, len(self.columns) - 1)]
        return Problem(self.file, self.line, column, message, code)


class LineError(ValueError):
    """A line is not words. offset: where, from 0."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


def split_line(line: str) -> list[tuple[str, int]]:
    """Split one line into words, each with its offset from 0.

    Raises LineError for an open quotation and for a backslash before
    anything but a backslash, a double quotation mark or white space.
    """
    if _SPECIAL.isdisjoint(line):
        return [(found[0], found.start()) for found in _WORD.finditer(line)]
    words: list[tuple[str, int]] = []
    at = 0
    while True:
        while at < len(line) and line[at] in SPACE:
            at += 1
        # As in OpenVPN, between words a backslash before `#` does not hide a
        # comment, and one before white space means nothing.
        escaped = line[at : at + 1] == "\\"
        first = line[at + escaped : at + escaped + 1]
        if at == len(line) or first in _COMMENT:
            return words
        if escaped and first in SPACE:
            at += 2
            continue
        word, end = _read_word(line, at)
        words.append((word, at))
        at = end


def _read_word(line: str, start: int) -> tuple[str, int]:
    """Read the word at `start`; return it, and the offset after it."""
    quote = line[start] if line[start] in "\"'" else ""
    at = start + len(quote)
    out: list[str] = []
    while at < len(line):
        char = line[at]
        if char == "\\" and quote != "'":
            out.append(_escaped(line, at))
            at += 2
        elif char == quote or (not quote and char in SPACE):
            return "".join(out), at + len(quote)
        else:
            out.append(char)
            at += 1
    if quote:
        raise LineError(f"no closing quotation mark ({quote})", start)
    return "".join(out), at


def _escaped(line: str, at: int) -> str:
    """Return what the backslash at `at` stands before."""
    char = line[at + 1 : at + 2]
    if not char or not (char in '\\"' or char in SPACE):
        message = (
            "a backslash must be doubled, or stand before a quotation"
            " mark or a space"
        )
        raise LineError(message, at)
    return char


class Lexer:
    """Turns the text of one file into statements, and collects problems."""

    def __init__(self, text: str, file: str, first_line: int = 1) -> None:
        self._file = file
        self._first = first_line
        self.problems: list[Problem] = []
        if len(text) > TEXT_MAX:
            self._report(0, 0, f"longer than {TEXT_MAX} characters")
            text = ""
        # Only "\n" ends a line, as for fgets; "\r" is white space.
        self._lines = text.removeprefix(BOM).split("\n")

    def _report(self, index: int, offset: int, message: str) -> None:
        line = index + self._first
        problem = Problem(self._file, line, offset + 1, message, "QV-101")
        self.problems.append(problem)

    def statements(self) -> Iterator[Statement]:
        """Yield what the file says, in order."""
        index = 0
        while index < len(self._lines):
            if len(self.problems) >= PROBLEMS_MAX:
                self._report(index, 0, "too many errors; the rest is not read")
                return
            words = self._words(index)
            index += 1
            if not words:
                continue
            name = words[0][0]
            block = None
            line = index - 1 + self._first
            if len(words) == 1 and name[0] == "<" and name[-1] == ">":
                name = name[1:-1]
                end = self._end_of_block(name, index)
                if end is None:
                    return
                block = "\n".join([*self._lines[index:end], ""])
                index = end + 1
            yield Statement(
                (_undashed(name), *(word for word, _ in words[1:])),
                self._file,
                line,
                tuple(offset + 1 for _, offset in words),
                block,
            )

    def _words(self, index: int) -> list[tuple[str, int]]:
        """Split line `index`; an empty list when it is empty or wrong."""
        line = self._lines[index]
        if "\0" in line:
            self._report(
                index, line.index("\0"), "a zero byte: not a text file"
            )
            return []
        if len(line) > LINE_MAX:
            self._report(index, 0, f"a line of over {LINE_MAX} characters")
            return []
        try:
            words = split_line(line)
        except LineError as error:
            self._report(index, error.offset, str(error))
            return []
        if words and not words[0][0]:
            self._report(index, words[0][1], "an empty name")
            return []
        for word, offset in words:
            if len(word) > WORD_MAX:
                self._report(index, offset, f"over {WORD_MAX} characters")
                return []
        if len(words) > WORDS_MAX:
            self._report(index, 0, f"more than {WORDS_MAX} words")
            return []
        return words

    def _end_of_block(self, name: str, start: int) -> int | None:
        """Find the line that ends a block; report it when none does."""
        close = f"</{name}>"
        for index in range(start, len(self._lines)):
            # A first character of SPACE is what C's isspace skips.
            if self._lines[index].lstrip(" \t\v\f\r").startswith(close):
                return index
        self._report(start - 1, 0, f"no {close} ends this block")
        return None


def _undashed(name: str) -> str:
    """Remove the two dashes of a name written as on the command line."""
    return name[2:] if name.startswith("--") and len(name) > 2 else name
