"""Statements to items: what a profile says, by the table, with its files.

A Document answers the questions that the profiles ask: which value is in
force (the last one written, as in OpenVPN), what a file holds, and where to
point when something is wrong. It collects every problem and raises none.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from qubes_vpn.config.directives import (
    DIRECTIVES,
    ArgumentError,
    Directive,
    Scope,
    Support,
    nearest,
)
from qubes_vpn.config.foreign import OBFUSCATION
from qubes_vpn.config.lexer import PROBLEMS_MAX, Lexer, Statement, decode_text
from qubes_vpn.errors import Problem

# Gives a file's bytes by the name that the profile has for it. Raises OSError
# or ValueError with one line that says why not.
ReadFile: TypeAlias = Callable[[str], bytes]

CONNECTIONS_MAX: Final = 512
DEPTH_MAX: Final = 10  # nested `config`, as OpenVPN
FILE_MAX: Final = 4 * 1024 * 1024  # bytes of one file that a profile names
STATEMENTS_MAX: Final = 100_000
INLINE: Final = "[inline]"
# `setenv FORWARD_COMPATIBLE 1`: unknown directives are not errors.
TOLERANT: Final = "FORWARD_COMPATIBLE"


def no_files(_path: str) -> bytes:
    """Read no file: for text that must hold everything itself."""
    message = "no other file is read here"
    raise ValueError(message)


@dataclass(frozen=True, slots=True)
class Item:
    """One directive in force: as written, its row, its values.

    order: its number among all directives of the profile.
    """

    statement: Statement
    row: Directive
    values: tuple[Any, ...] = field(repr=False)
    order: int = 0

    def value(self, index: int, default: Any = None) -> Any:  # noqa: ANN401
        """Give argument number `index` from 0, or the default."""
        return self.values[index] if index < len(self.values) else default


@dataclass(frozen=True, slots=True)
class Material:
    """What a file directive gave, from a file or from an inline block.

    path: the file's name, or "" for a block; then line 1 of the content
    is the line after the directive's.
    """

    content: bytes = field(repr=False)
    statement: Statement
    path: str = ""

    def problem(self, message: str, line: int = 0) -> Problem:
        """Say what is wrong, at line `line` of the content (0: as a whole)."""
        name = self.statement.name
        if self.path:
            place = f"{self.path}, line {line}" if line else self.path
            text = f"{name} ({place}): {message}"
            return self.statement.problem(text, 1, "QV-107")
        text = f"{name}: {message}"
        if not line:
            return self.statement.problem(text, 0, "QV-107")
        where = self.statement.line + line
        return Problem(self.statement.file, where, 1, text, "QV-107")


class Document:
    """All items of one profile, or of one of its connection blocks."""

    def __init__(
        self, name: str, read_file: ReadFile, scope: Scope = Scope.CLIENT
    ) -> None:
        self.name = name
        self.scope = scope
        self.problems: list[Problem] = []
        self.notes: list[tuple[int, str, str]] = []
        self.connections: list[Document] = []
        self.outer: Document | None = None
        self.until: int | None = None  # items after this order do not count
        self._read_file = read_file
        self.items: dict[str, list[Item]] = {}
        self._unknown: list[Statement] = []
        self._ignorable: set[str] = set()
        self._tolerant = False
        self.count = 0

    # -- filling ------------------------------------------------------------

    def load(self, text: str, file: str, depth: int = 1) -> None:
        """Take in the text of one file."""
        lexer = Lexer(text, file)
        for statement in lexer.statements():
            self.count += 1
            if self.count > STATEMENTS_MAX:
                self.report(statement, "too many directives", code="QV-112")
                break
            if len(self.problems) >= PROBLEMS_MAX:
                break
            self.take(statement, depth)
        self.problems += lexer.problems

    def finish(self) -> None:
        """Settle what could only be known at the end of the last file."""
        for statement in self._unknown:
            if len(self.problems) >= PROBLEMS_MAX:
                self.report(statement, "too many errors", code="QV-112")
                break
            if self._tolerant or statement.name in self._ignorable:
                self.note(statement, "the profile says to ignore it")
            else:
                self._report_unknown(statement)
        self._unknown.clear()
        self.problems.sort(key=lambda p: (p.file != self.name, p.file, p.line))

    def _report_unknown(self, statement: Statement) -> None:
        name = statement.name
        if name in OBFUSCATION:
            message = f'"{name}" {OBFUSCATION[name]}'
            self.report(statement, message, code="QV-111")
            return
        shown = name if len(name) <= 40 else name[:40] + "..."
        if not shown.isprintable():
            shown = ascii(shown)
        like = nearest(name)
        hint = f'; do you mean "{like}"?' if like else ""
        message = f'unknown directive "{shown}"{hint}'
        self.report(statement, message, code="QV-102")

    def take(self, statement: Statement, depth: int) -> None:
        """Take in one statement."""
        if statement.name == "setenv" and statement.args[:1] == ("opt",):
            self._take_optional(statement, depth)
            return
        row = DIRECTIVES.get(statement.name)
        if row is None:
            self._unknown.append(statement)
            return
        if row.alias:
            row = DIRECTIVES[row.alias]
        if statement.block is not None and not row.block:
            self.report(statement, f"{row.name} cannot be written as a block")
            return
        if not self._is_in_place(statement, row):
            return
        if row.name == "connection":
            self._take_connection(statement)
            return
        values = self._values(statement, row)
        if values is None:
            return
        support = row.support_for(self.scope)
        if support is Support.REFUSE:
            message = f"{row.name} is refused: {row.why}"
            self.report(statement, message, code="QV-105")
        elif support is Support.IGNORE:
            self.note(statement, row.why)
        else:
            self._apply(Item(statement, row, values, self.count), depth)

    def _take_optional(self, statement: Statement, depth: int) -> None:
        """Take `setenv opt DIRECTIVE ...`, unless nobody knows it."""
        rest = Statement(
            statement.words[2:] or ("opt",),
            statement.file,
            statement.line,
            statement.columns[2:] or (1,),
        )
        if rest.name not in DIRECTIVES:
            self.note(rest, "unknown, and marked as optional")
            return
        before = len(self.problems)
        self.take(rest, depth)
        for problem in self.problems[before:]:
            self.note(rest, f"left out, being optional: {problem.message}")
        del self.problems[before:]

    def _is_in_place(self, statement: Statement, row: Directive) -> bool:
        if self.scope in row.scope:
            return True
        if self.scope is Scope.CONNECTION:
            message = f"{row.name} cannot stand in a connection block"
        elif self.scope is Scope.CCD:
            message = f"{row.name} cannot stand in a client's own file"
        elif row.scope is Scope.PUSHED:
            self.note(statement, "only a server sets it, by pushing it")
            return False
        elif Scope.SERVER in row.scope or row.scope is Scope.CCD:
            message = f"{row.name} is for a server's profile"
        else:
            message = f"{row.name} is for a client's profile"
        self.report(statement, message, code="QV-104")
        return False

    def _values(
        self, statement: Statement, row: Directive
    ) -> tuple[Any, ...] | None:
        if statement.block is not None:
            return ()
        if row.block and statement.args[:1] == (INLINE,):
            # Kinds of the first argument do not hold for this word.
            return self._inline_values(statement, row)
        try:
            return row.read(statement.args)
        except ArgumentError as error:
            self.report(statement, str(error), error.word)
            return None

    def _inline_values(
        self, statement: Statement, row: Directive
    ) -> tuple[Any, ...] | None:
        stand_in = "00" if row.usage.startswith("hash") else INLINE
        try:
            values = row.read((stand_in, *statement.args[1:]))
        except ArgumentError as error:
            self.report(statement, str(error), error.word)
            return None
        return (INLINE, *values[1:])

    def _apply(self, item: Item, depth: int) -> None:
        if item.row.deprecated:
            self.note(item.statement, item.row.deprecated)
        if item.row.name == "ignore-unknown-option":
            self._ignorable.update(item.values)
        elif item.row.name == "setenv" and item.values[0] == TOLERANT:
            self._tolerant = item.value(1) == "1"
        elif item.row.name == "config":
            self._take_config(item, depth)
        else:
            self.items.setdefault(item.row.name, []).append(item)

    def _take_config(self, item: Item, depth: int) -> None:
        if depth >= DEPTH_MAX:
            message = f"config is nested more than {DEPTH_MAX} deep"
            self.report(item.statement, message, code="QV-112")
            return
        found = self.read(item.statement, item.values[0])
        if found is not None:
            text = decode_text(found.content)
            self.load(text, item.values[0], depth + 1)

    def _take_connection(self, statement: Statement) -> None:
        if statement.block is None:
            self.report(statement, "connection is a block: <connection>")
            return
        if len(self.connections) == CONNECTIONS_MAX:
            message = f"over {CONNECTIONS_MAX} connections"
            self.report(statement, message, code="QV-112")
            return
        inner = self._part(Scope.CONNECTION)
        # What is written after the block does not hold inside it.
        inner.outer = self._part(self.scope)
        inner.outer.items = self.items
        inner.outer.until = self.count
        lexer = Lexer(statement.block, statement.file, statement.line + 1)
        for one in lexer.statements():
            self.count += 1
            inner.count = self.count
            inner.take(one, DEPTH_MAX)
        self.problems += lexer.problems
        if not inner.all("remote"):
            message = "a connection block needs a remote"
            self.report(statement, message, code="QV-109")
        self.connections.append(inner)

    def _part(self, scope: Scope) -> "Document":
        """Make a document whose reports are this one's."""
        part = Document(self.name, self._read_file, scope)
        part.problems = self.problems
        part.notes = self.notes
        part._unknown = self._unknown
        part._ignorable = self._ignorable
        return part

    # -- asking ---------------------------------------------------------------

    def all(self, name: str) -> list[Item]:
        """Give every item of that name, in order."""
        found = self.items.get(name, [])
        if self.until is None:
            return found
        return [item for item in found if item.order <= self.until]

    def last(self, *names: str) -> Item | None:
        """Give the item in force: the last written of these names."""
        found = [items[-1] for name in names if (items := self.all(name))]
        if not found:
            return self.outer.last(*names) if self.outer else None
        return max(found, key=lambda item: item.order)

    def has(self, name: str) -> bool:
        """Say whether the directive is given."""
        return self.last(name) is not None

    def value(self, name: str, default: Any = None, index: int = 0) -> Any:  # noqa: ANN401
        """Give one argument of the item in force, or the default."""
        item = self.last(name)
        return default if item is None else item.value(index, default)

    def material(self, name: str) -> Material | None:
        """Read what a file directive names, or holds as a block.

        The directive must have one or the other.
        A file that cannot be read is a problem; None then, as without it.
        """
        items = self.all(name)
        if not items:
            return None
        item = items[-1]
        if item.values and item.values[0] == INLINE:
            blocks = [one for one in items if one.statement.block is not None]
            if not blocks:
                message = f"no <{name}> block in this profile"
                self.report(item.statement, message, 1, "QV-106")
                return None
            item = blocks[-1]
        return self._material(item)

    def _material(self, item: Item) -> Material | None:
        block = item.statement.block
        if block is not None:
            content = block.encode("utf-8", "surrogateescape")
            return Material(content, item.statement)
        return self.read(item.statement, item.values[0])

    def read(
        self, statement: Statement, path: str, word: int = 1
    ) -> Material | None:
        """Read a file that a statement names; a failure is a problem."""
        try:
            return Material(self.read_raw(path), statement, path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            message = f"{statement.name}: cannot read {path}: {reason}"
            message += self._hint(path)
            self.report(statement, message, word, "QV-106")
            return None

    def _hint(self, path: str) -> str:
        """Say so when a file of that name lies beside the profile."""
        name = path.replace("\\", "/").rsplit("/", 1)[-1]
        if name == path:
            return ""
        try:
            self._read_file(name)
        except (OSError, ValueError):
            return ""
        return f"; {name} lies beside the profile, where import looks"

    def read_raw(self, path: str) -> bytes:
        """Read a file; `cd` holds, and so does the limit of its size.

        Raises OSError or ValueError.
        """
        path = self.resolve(path)
        if "\0" in path or not path:
            message = "not a file name"
            raise ValueError(message)
        content = self._read_file(path)
        if len(content) > FILE_MAX:
            message = f"over {FILE_MAX} bytes"
            raise ValueError(message)
        return content

    def resolve(self, path: str) -> str:
        """Give the path of a file, relative to the profile's folder."""
        folder = str((self.outer or self).value("cd", ""))
        if not folder or path.startswith("/"):
            return path
        return f"{folder.rstrip('/')}/{path}"

    # -- reporting ------------------------------------------------------------

    def report(
        self, at: Statement, message: str, word: int = 0, code: str = "QV-103"
    ) -> None:
        """Note a problem at a statement, at its word number `word`."""
        self.problems.append(at.problem(message, word, code))

    def note(self, at: Statement, reason: str) -> None:
        """Note a directive that is not applied as written, and why."""
        self.notes.append((at.line, at.name, reason))

    def complain(self, message: str, code: str = "QV-109") -> None:
        """Note a problem of the profile as a whole."""
        self.problems.append(Problem(self.name, 0, 0, message, code))

    def conflict(self, names: Iterable[str], message: str) -> None:
        """Note a problem if more than one of these directives is given."""
        found = [item for name in names if (item := self.last(name))]
        if len(found) > 1:
            latest = max(found, key=lambda item: item.order)
            self.report(latest.statement, message, code="QV-108")
