"""What the server's control messages mean: messages in, events out.

Source: OpenVPN 2 push.c (receive_auth_failed, server_pushed_signal,
receive_auth_pending).
"""

from qubes_vpn.config.model import ClientProfile
from qubes_vpn.engine.effects import AskUser, Notice
from qubes_vpn.engine.events import (
    AuthenticationPending,
    ChallengeAsked,
    Now,
    PeerEnded,
)
from qubes_vpn.engine.states import ClientState, Pulling
from qubes_vpn.wire.messages import AuthFailed, AuthPending, Info, Restart

CHALLENGE_TIMEOUT = 120.0
_TEXT_MAX = 256


def printable(untrusted: str) -> str:
    """Return text that may be shown: printable ASCII, 256 characters."""
    safe = (c if " " <= c <= "~" else "?" for c in untrusted[:_TEXT_MAX])
    return "".join(safe)


def on_auth_failed(
    message: AuthFailed, profile: ClientProfile, now: Now, *, had_token: bool
) -> PeerEnded | ChallengeAsked:
    """Return what a refusal of our credentials leads to."""
    detail = printable(message.reason)
    if message.temporary:
        return PeerEnded(
            "auth-temp",
            advance=message.advance or "no",
            backoff=float(message.backoff or 0),
            detail=detail,
        )
    if message.challenge is not None and message.challenge.respond:
        return ChallengeAsked(
            printable(message.challenge.text),
            message.challenge.echo,
            now.mono + CHALLENGE_TIMEOUT,
            CHALLENGE_TIMEOUT,
        )
    if had_token or message.session:
        return PeerEnded(
            "auth-token", advance="no", detail=detail, drop_token=True
        )
    return PeerEnded(
        "auth-failed",
        retry=profile.auth_retry != "none",
        advance="no",
        detail=detail,
        drop_credentials=profile.auth_retry == "interact",
    )


def on_restart(message: Restart) -> PeerEnded:
    """Return what RESTART or HALT leads to."""
    return PeerEnded(
        "server-halt" if message.halt else "server-restart",
        retry=not message.halt,
        advance="remote" if message.next_server else "addr",
        detail=printable(message.text),
    )


def on_auth_pending(
    message: AuthPending, profile: ClientProfile, now: Now
) -> AuthenticationPending:
    """Return until when we wait; never longer than half of reneg-sec."""
    longest = max(profile.reneg_sec / 2, profile.hand_window)
    wanted = message.timeout
    if wanted is None:
        wanted = profile.hand_window
    return AuthenticationPending(now.mono + min(wanted, longest))


def on_info(message: Info, state: ClientState, now: Now) -> AskUser | Notice:
    """Return what INFO or INFO_PRE shows to the user.

    WEB_AUTH:flags:url and OPEN_URL:url want a browser; CR_TEXT:flags:text
    wants an answer (CR_RESPONSE) if R is a flag; anything else is only shown.
    """
    timeout = CHALLENGE_TIMEOUT
    if isinstance(state, Pulling):
        timeout = max(state.deadline - now.mono, 1.0)
    kind, _, rest = message.text.partition(":")
    if kind == "OPEN_URL":
        return AskUser("url", printable(rest), timeout=timeout)
    flags, _, text = rest.partition(":")
    if kind == "WEB_AUTH":
        return AskUser("url", printable(text), timeout=timeout)
    options = flags.split(",")
    if kind == "CR_TEXT" and "R" in options:
        return AskUser("crtext", printable(text), "E" in options, timeout)
    shown = text if kind == "CR_TEXT" else message.text
    return Notice("QV-523", printable(shown))
