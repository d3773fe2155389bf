"""Exception families, named by what the one who catches them must do.

`reason` is a stable slug: the label of a drop counter, and what a test
compares. Nobody parses the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


def printable(text: str) -> str:
    """Escape what could do something to a terminal, or not be encoded."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else ascii(char)[1:-1] for char in text
    )


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

    line and column count from 1; 0 means the file as a whole. code: its
    row in REASONS.
    """

    file: str
    line: int
    column: int
    message: str
    code: str = "QV-103"

    def __str__(self) -> str:
        """Format as `file:line:column: message`."""
        place = f":{self.line}:{self.column}" if self.line else ""
        return printable(f"{self.file}{place}: {self.message}")


class ConfigError(VpnError):
    """A profile or another given text is wrong (exit 78).

    problems: everything found, in the order of the file.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


class UnreadableError(VpnError):
    """A file that was named cannot be read by this user (exit 77)."""


class UsageError(VpnError):
    """The words of a command make no sense (exit 64)."""


class UnavailableError(VpnError):
    """What the command needs is not there: no lock, no peer (exit 69)."""


@dataclass(frozen=True, slots=True)
class Reason:
    """What a stable code means, and what a person can do about it."""

    code: str
    sentence: str
    next_step: str


# QV-1xx: profiles. Others append theirs; a code is never used again.
REASONS: Final = {
    reason.code: reason
    for reason in (
        Reason(
            "QV-101",
            "The text of the profile cannot be split into words.",
            "Correct the line that is named, or download the file again.",
        ),
        Reason(
            "QV-102",
            "The profile has a directive that nobody knows.",
            "Correct its name, or name it in ignore-unknown-option.",
        ),
        Reason(
            "QV-103",
            "A directive's argument is wrong, missing or too much.",
            "Correct the line that is named; the message says what is wanted.",
        ),
        Reason(
            "QV-104",
            "A directive stands where it has no meaning.",
            "Use check --server for a server's profile, or remove the line.",
        ),
        Reason(
            "QV-105",
            "A directive asks for something that is not done here.",
            "Remove the line, or ask for a profile without it.",
        ),
        Reason(
            "QV-106",
            "A file that the profile names cannot be read.",
            "Put the file beside the profile, under the name it is given.",
        ),
        Reason(
            "QV-107",
            "A key, a certificate or a list in the profile is damaged.",
            "Download the profile again, or ask who issued it.",
        ),
        Reason(
            "QV-108",
            "Two directives contradict each other.",
            "Remove the one that is not meant.",
        ),
        Reason(
            "QV-109",
            "Something that every profile needs is missing.",
            "Ask the operator of the server for a complete profile.",
        ),
        Reason(
            "QV-110",
            "The profile would accept any server.",
            "Ask the operator for the ca certificate or a fingerprint.",
        ),
        Reason(
            "QV-111",
            "The file is not an OpenVPN profile.",
            "Get the OpenVPN profile (.ovpn) from the provider.",
        ),
        Reason(
            "QV-112",
            "The profile is larger than any that makes sense.",
            "Check that it is the right file.",
        ),
        Reason(
            "QV-120",
            "A certificate of the profile has expired.",
            "Ask the operator for a new profile.",
        ),
        Reason(
            "QV-121",
            "A certificate of the profile expires soon.",
            "Ask the operator for a new profile in time.",
        ),
        Reason(
            "QV-122",
            "Any client of the same provider could pose as the server.",
            "Add remote-cert-tls server, if the server's certificate fits.",
        ),
        Reason(
            "QV-123",
            "The profile permits weak cryptography.",
            "Ask the operator for AES-GCM, SHA-256 and TLS 1.2 or later.",
        ),
        Reason(
            "QV-124",
            "The profile carries only some destinations.",
            "Use another qube for everything else; it is blocked here.",
        ),
        Reason(
            "QV-125",
            "The profile asks for compression.",
            "Nothing is compressed; ask the operator to switch it off.",
        ),
        Reason(
            "QV-126",
            "Messages of the control channel are not authenticated first.",
            "Ask the operator for tls-crypt.",
        ),
        Reason(
            "QV-127",
            "The server is said to be this qube itself.",
            "Ask the provider for a profile without stunnel or obfuscation.",
        ),
        Reason(
            "QV-150",
            "The server pushed an option that a pull-filter rejects.",
            "Change the pull-filter, or use another server.",
        ),
        Reason(
            "QV-152",
            "The server gave an address of Qubes' own network.",
            "Ask the operator to change the network of the VPN.",
        ),
    )
}
