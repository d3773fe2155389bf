"""Control messages: the NUL-terminated text that both sides send in TLS.

Source: OpenVPN 2 push.c, forward.c and ssl_pkt.c (extract_command_buffer).
"""

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Final, TypeAlias

# What a log may show of a refused message, in bytes.
_EXCERPT_MAX: Final = 64
_CONTROL_CHARACTER: Final = re.compile(rb"[\x00-\x1f\x7f]")
_CONTINUATION: Final = "push-continuation "
_DIGITS_MAX: Final = 9


@dataclass(frozen=True, slots=True)
class PushRequest:
    """PUSH_REQUEST: the client asks for its options."""


@dataclass(frozen=True, slots=True)
class PushReply:
    """PUSH_REPLY, one of several with continuation.

    options: text of each, as between the commas (OpenVPN splits at every
    comma, inside quotes too). continuation: 2 = more follow, 1 = the last
    of several, 0 = the only one.
    """

    options: tuple[str, ...] = field(repr=False)
    continuation: int = 0


@dataclass(frozen=True, slots=True)
class PushUpdate:
    """PUSH_UPDATE: options as in PushReply, changed in mid-session.

    An option may begin with "?" (optional) and "-" (remove it).
    """

    options: tuple[str, ...] = field(repr=False)
    continuation: int = 0


@dataclass(frozen=True, slots=True)
class Challenge:
    """A dynamic challenge: AUTH_FAILED,CRV1:flags:state:user:text.

    echo: show the answer (flag E). respond: one is wanted (flag R).
    username: decoded from base64.
    """

    echo: bool
    respond: bool
    state_id: str = field(repr=False)
    username: str
    text: str


@dataclass(frozen=True, slots=True)
class AuthFailed:
    """AUTH_FAILED: the server refuses the credentials, or the time.

    temporary: TEMP, with backoff in seconds (None: not said) and advance,
    one of "no", "addr", "remote" or "" (not said). session: the token
    expired (SESSION). challenge: set when an answer is asked for.
    """

    reason: str = ""
    temporary: bool = False
    backoff: int | None = None
    advance: str = ""
    session: bool = False
    challenge: Challenge | None = None


@dataclass(frozen=True, slots=True)
class AuthPending:
    """AUTH_PENDING: wait for a second factor; timeout in seconds."""

    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class Info:
    """INFO, or INFO_PRE (before the push), such as "WEB_AUTH::https://"."""

    text: str
    pre: bool = False


@dataclass(frozen=True, slots=True)
class CrResponse:
    """CR_RESPONSE: a client's answer to a challenge, base64 on the wire."""

    answer: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Exit:
    """EXIT: the peer ends the session (protocol flag cc-exit)."""


@dataclass(frozen=True, slots=True)
class Restart:
    """RESTART or HALT: the server ends the session.

    halt: do not come back. keep_password: flag P. next_server: flag N.
    """

    text: str = ""
    halt: bool = False
    keep_password: bool = False
    next_server: bool = False


@dataclass(frozen=True, slots=True)
class Unknown:
    """Text that is no message we know; counted, and not acted on."""

    text: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """Bytes that are no message. reason: unterminated, control-character.

    excerpt: the beginning, as hexadecimal digits, for a log.
    """

    reason: str
    excerpt: str


ControlMessage: TypeAlias = (
    PushRequest
    | PushReply
    | PushUpdate
    | AuthFailed
    | AuthPending
    | Info
    | CrResponse
    | Exit
    | Restart
    | Unknown
    | Rejected
)


def parse_messages(untrusted: bytes) -> list[ControlMessage]:
    """Parse the plaintext of one TLS record into its messages.

    Each ends with NUL. Nothing carries over to the next record: what has no
    NUL is Rejected, as a message with a control character is (but for CR
    and LF at its end). Empty messages are skipped. Never raises.
    """
    *texts, rest = untrusted.split(b"\0")
    messages: list[ControlMessage] = []
    for text in texts:
        chomped = text.rstrip(b"\r\n")
        if _CONTROL_CHARACTER.search(chomped):
            messages.append(_rejected("control-character", text))
        elif chomped:
            decoded = chomped.decode("utf-8", "backslashreplace")
            messages.append(parse_message(decoded))
    if rest:
        messages.append(_rejected("unterminated", rest))
    return messages


def parse_message(untrusted: str) -> ControlMessage:
    """Parse the text of one message; never raises."""
    command, _, rest = untrusted.partition(",")
    match command:
        case "PUSH_REQUEST":
            return PushRequest()
        case "PUSH_REPLY":
            return PushReply(*_options(rest))
        case "PUSH_UPDATE":
            return PushUpdate(*_options(rest))
        case "AUTH_FAILED":
            return _auth_failed(rest)
        case "AUTH_PENDING":
            return _auth_pending(rest)
        case "INFO" | "INFO_PRE":
            return Info(rest, pre=command == "INFO_PRE")
        case "CR_RESPONSE":
            return _cr_response(untrusted, rest)
        case "EXIT":
            return Exit()
        case "RESTART" | "HALT":
            return _restart(rest, halt=command == "HALT")
        case _:
            return Unknown(untrusted)


def encode_message(text: str) -> bytes:
    """Return a message as bytes with its NUL."""
    encoded = text.encode("utf-8")
    assert not _CONTROL_CHARACTER.search(encoded)
    return encoded + b"\0"


def encode_push(
    command: str, options: tuple[str, ...], continuation: int = 0
) -> bytes:
    """Return PUSH_REPLY or PUSH_UPDATE with its options."""
    parts = [command, *options]
    if continuation:
        parts.append(f"{_CONTINUATION}{continuation}")
    return encode_message(",".join(parts))


def encode_cr_response(answer: bytes) -> bytes:
    """Return CR_RESPONSE with the answer in base64."""
    return encode_message(f"CR_RESPONSE,{base64.b64encode(answer).decode()}")


def parse_challenge(untrusted: str) -> Challenge | None:
    """Parse "CRV1:flags:state:user:text"; None when it is not one."""
    fields = untrusted.split(":", 4)
    if len(fields) != 5 or fields[0] != "CRV1":
        return None
    _, flags, state_id, encoded, text = fields
    username = _base64(encoded)
    if username is None:
        return None
    letters = flags.split(",")
    name = username.decode("utf-8", "backslashreplace")
    return Challenge("E" in letters, "R" in letters, state_id, name, text)


def _rejected(reason: str, text: bytes) -> Rejected:
    return Rejected(reason, text[:_EXCERPT_MAX].hex())


def _options(text: str) -> tuple[tuple[str, ...], int]:
    """Split at commas; take push-continuation out."""
    options = [option for option in text.split(",") if option]
    continuation = 0
    for value in (1, 2):
        while f"{_CONTINUATION}{value}" in options:
            options.remove(f"{_CONTINUATION}{value}")
            continuation = value
    return tuple(options), continuation


def _auth_failed(reason: str) -> AuthFailed:
    if reason.startswith("TEMP"):
        return _temporary_failure(reason.removeprefix("TEMP"))
    if reason.startswith("SESSION"):
        return AuthFailed(reason, session=True)
    return AuthFailed(reason, challenge=parse_challenge(reason))


def _temporary_failure(text: str) -> AuthFailed:
    """Parse what follows TEMP: "[backoff 42,advance no]:reason".

    Keywords that are unknown or wrong are ignored, as OpenVPN does.
    """
    keywords = ""
    if text.startswith("["):
        keywords, _, text = text[1:].partition("]")
    backoff = None
    advance = ""
    for keyword in keywords.split(","):
        name, _, value = keyword.partition(" ")
        if name == "backoff":
            backoff = _number(value)
        elif name == "advance" and value in {"no", "addr", "remote"}:
            advance = value
    reason = text.removeprefix(":")
    return AuthFailed(reason, temporary=True, backoff=backoff, advance=advance)


def _auth_pending(text: str) -> AuthPending:
    timeout = None
    for keyword in text.split(","):
        name, _, value = keyword.partition(" ")
        if name == "timeout":
            timeout = _number(value)
    return AuthPending(timeout)


def _cr_response(untrusted: str, text: str) -> CrResponse | Unknown:
    answer = _base64(text)
    return Unknown(untrusted) if answer is None else CrResponse(answer)


def _restart(text: str, *, halt: bool) -> Restart:
    flags = ""
    if text.startswith("["):
        flags, _, text = text[1:].partition("]")
    return Restart(text, halt, "P" in flags, "N" in flags)


def _number(text: str) -> int | None:
    """Parse a number of at most nine ASCII digits."""
    if text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX:
        return int(text)
    return None


def _base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
