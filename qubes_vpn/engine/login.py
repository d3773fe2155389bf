"""Who we say we are: name and password, token, challenges.

Source: OpenVPN 2 ssl.c (auth_user_pass_setup), doc/management-notes.txt.
"""

import base64
from dataclasses import dataclass, field, replace

from qubes_vpn.config.model import ClientProfile, Credentials
from qubes_vpn.wire.messages import Challenge


@dataclass(frozen=True, slots=True)
class Question:
    """What must be asked before a session can begin. kind: as AskUser."""

    kind: str
    prompt: str
    echo: bool = False


def challenge_answer(challenge: Challenge, answer: str) -> Credentials:
    """Return the credentials of the session that answers a CRV1."""
    return Credentials(
        challenge.username, f"CRV1::{challenge.state_id}::{answer}"
    )


@dataclass(slots=True)
class Login:
    """The credentials of one session; the token replaces the password.

    token: (user name, auth-token), from an earlier session or pushed.
    """

    profile: ClientProfile = field(repr=False)
    credentials: Credentials | None = field(repr=False)
    token: tuple[str, str] | None = field(repr=False, default=None)
    response: str | None = field(repr=False, default=None)

    def question(self) -> Question | None:
        """Return what is missing, one question at a time; None: nothing."""
        if self.profile.auth_user_pass is None or self.token:
            return None
        known = self.credentials
        if known and known.password and not known.username:
            return Question("username", "user name", echo=True)
        if known is None or known.username is None or known.password is None:
            return Question("credentials", "user name and password")
        static = self.profile.static_challenge
        if static and self.response is None and not _is_response(known):
            text, echo = static
            return Question("challenge", text, echo)
        return None

    def answer(self, kind: str, username: str, password: str) -> None:
        """Take the answer to a question."""
        if kind == "challenge":
            self.response = password
            return
        known = self.credentials
        if kind == "username" and known:
            self.credentials = replace(known, username=password)
            return
        name = username or (known and known.username) or ""
        self.credentials = Credentials(name, password)

    def name_and_password(self) -> tuple[str, str]:
        """Return what key method 2 carries; empty when none are used."""
        if self.token:
            return self.token
        known = self.credentials
        if known is None or self.profile.auth_user_pass is None:
            return "", ""
        password = known.password or ""
        if self.response is not None and self.profile.static_challenge_concat:
            password += self.response
        elif self.response is not None:
            password = f"SCRV1:{_base64(password)}:{_base64(self.response)}"
        return known.username or "", password

    def take_token(self, token: str, user: str) -> None:
        """Use a pushed auth-token from the next key on.

        user: of auth-token-user, or empty: then the name stays. With
        auth-nocache the password is forgotten, for the token replaces it.
        """
        name = user or self.name_and_password()[0]
        self.token = (name, token)
        self.response = None
        if self.profile.auth_nocache:
            self.credentials = None


def _is_response(credentials: Credentials) -> bool:
    return (credentials.password or "").startswith("CRV1::")


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
