"""Exception families, named by what the one who catches them must do.

`reason` is a stable slug: the label of a drop counter, and what a test
compares. Nobody parses the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class VpnError(Exception):
    """Any error of this project's own."""


class UntrustedInputError(VpnError):
    """The network sent something wrong: drop it, count it, go on."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class MalformedPacketError(UntrustedInputError):
    """Bytes depart from the wire layout.

    offset: where decoding stopped, in bytes from the first.
    """

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(reason, f"at byte {offset}")
        self.offset = offset


class AuthenticationError(UntrustedInputError):
    """A tag, a MAC or a replay check failed."""


class SessionError(VpnError):
    """This session cannot go on: close it, and connect again.

    code: a stable reason code of the handbook, such as "QV-017".
    """

    def __init__(self, reason: str, detail: str = "", code: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.code = code


class OsRefusedError(VpnError):
    """The kernel or a system service said no: stay closed, retry (exit 71)."""


class LocalStateError(VpnError):
    """Our own mistake: an input that this state cannot get."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a profile, and where.

    line and column count from 1; 0 means the file as a whole.
    """

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        """Format as `file:line:column: message`."""
        if not self.line:
            return f"{self.file}: {self.message}"
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


class ConfigError(VpnError):
    """A profile or another given text is wrong (exit 78).

    problems: everything found, in the order of the file.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class UnreadableError(VpnError):
    """A file that was named cannot be read by this user (exit 77)."""


class UnavailableError(VpnError):
    """What the command needs is not there: no lock, no peer (exit 69)."""
