"""How a client logs in: user, password, what is asked for, what it says."""

from typing import Any, Final

from qubes_vpn.config import trust
from qubes_vpn.config.document import INLINE, Document
from qubes_vpn.config.material import name_and_password
from qubes_vpn.config.model import Credentials

# What 2.7 sends for a password where only a name is asked for.
NAME_ONLY: Final = Credentials(None, "[[BLANK]]")


def login(doc: Document) -> dict[str, Any]:
    """Read user, password, and what is said of us."""
    challenge = doc.last("static-challenge")
    how = challenge.value(2, "scrv1") if challenge else "scrv1"
    if challenge and how not in {"scrv1", "concat"}:
        message = "static-challenge takes scrv1 or concat"
        doc.report(challenge.statement, message, 3)
    known = _credentials(doc)
    if challenge and known == NAME_ONLY:
        message = "static-challenge needs a password to be asked for"
        doc.report(challenge.statement, message)
    return {
        "auth_user_pass": known,
        "auth_retry": trust.one_of(
            doc, "auth-retry", ("none", "nointeract", "interact"), "none"
        ),
        "auth_nocache": doc.has("auth-nocache"),
        "static_challenge": (
            (challenge.values[0], challenge.values[1] == "1")
            if challenge
            else None
        ),
        "static_challenge_concat": how == "concat",
        "push_peer_info": doc.has("push-peer-info"),
        "peer_info": tuple(
            (item.values[0], item.value(1, ""))
            for item in doc.all("setenv")
            if item.values[0].startswith(("UV_", "IV_"))
        ),
    }


def _credentials(doc: Document) -> Credentials | None:
    """Read auth-user-pass. A file that is missing is not a problem.

    Profiles of providers name a file of their own place; whoever uses the
    profile is asked for the name and password then.
    """
    item = doc.last("auth-user-pass")
    if item is None:
        return None
    named = item.statement.block is None and item.value(0, INLINE) != INLINE
    if named and item.values[0] == "username-only":
        return NAME_ONLY
    if named:
        path = item.values[0]
        try:
            doc.read_raw(path)
        except (OSError, ValueError):
            doc.note(item.statement, f"{path} is not there: you are asked")
            return Credentials()
    if not item.values and item.statement.block is None:
        return Credentials()
    found = doc.material("auth-user-pass")
    if found is None:
        return Credentials()
    return Credentials(*name_and_password(doc, found))
