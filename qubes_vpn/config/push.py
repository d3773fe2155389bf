"""The options of one push: read, filtered, and only the pushable ones kept.

What a server sends goes through the one table of directives; the rest is
counted and reported, and ends nothing.
"""

from collections.abc import Sequence
from typing import Any, Final

from qubes_vpn.config.directives import (
    DIRECTIVES,
    ArgumentError,
    Scope,
    Support,
)
from qubes_vpn.config.document import Item
from qubes_vpn.config.lexer import LineError, Statement, split_line
from qubes_vpn.config.model import ClientProfile, Remote
from qubes_vpn.errors import SessionError

OPTIONS_MAX: Final = 8192  # of one push, over all its continuations
OPTION_MAX: Final = 1024  # characters of one option
REFUSED_MAX: Final = 100  # that are listed; the rest is only counted
SHOWN_MAX: Final = 64  # characters of a server's word, in a message

# What route-nopull leaves out.
NOPULL: Final = frozenset(
    (
        "route",
        "route-ipv6",
        "route-metric",
        "redirect-gateway",
        "redirect-private",
        "block-ipv6",
        "dhcp-option",
        "dns",
    )
)


def shown(untrusted: str) -> str:
    """Make a word of the server's fit for a person's eyes."""
    text = untrusted[:SHOWN_MAX]
    return text if text.isprintable() and text.isascii() else ascii(text)


class Push:
    """The options of one push, by name, and what was refused."""

    def __init__(self, profile: ClientProfile, remote: Remote) -> None:
        self.profile = profile
        self.remote = remote
        self._items: dict[str, list[Item]] = {}
        self._refused: list[tuple[str, str]] = []
        self._uncounted = 0

    # -- reading ---------------------------------------------------------------

    def take(self, untrusted_options: Sequence[str]) -> None:
        """Read options, filter them, and keep those that may be pushed."""
        for number, untrusted in enumerate(untrusted_options, 1):
            if number > OPTIONS_MAX:
                left = len(untrusted_options) - OPTIONS_MAX
                self.refuse("...", f"{left} options too many")
                break
            self._take(untrusted.lstrip(" "), number)

    def _take(self, untrusted: str, number: int) -> None:
        if len(untrusted) > OPTION_MAX or not untrusted.isprintable():
            name = untrusted.split(" ", 1)[0]
            self.refuse(name, "not a printable line of text")
            return
        action = self._filter(untrusted)
        if action == "reject":
            name = shown(untrusted.split(" ", 1)[0])
            raise SessionError("pull-filter", f"it pushed {name}", "QV-150")
        if action == "ignore":
            name = untrusted.split(" ", 1)[0]  # the rest may be a token
            self.refuse(name, "the profile's pull-filter ignores it")
            return
        try:
            words = tuple(word for word, _ in split_line(untrusted))
        except LineError as error:
            self.refuse(untrusted.split(" ", 1)[0], str(error))
            return
        if words:
            self._admit(Statement(words, "pushed", number))

    def _filter(self, option: str) -> str:
        for action, prefix in self.profile.pull_filters:
            if option.startswith(prefix):
                return action
        return "accept"

    def _admit(self, statement: Statement) -> None:
        row = DIRECTIVES.get(statement.name)
        if row is not None and row.alias:
            row = DIRECTIVES[row.alias]
        if row is None:
            self.refuse(statement.name, "unknown")
            return
        reason = ""
        if Scope.PUSHED not in row.scope:
            reason = "not for a server to set"
        elif row.support is Support.REFUSE:
            reason = row.why
        elif row.name in NOPULL and self.profile.route_nopull:
            reason = "the profile says route-nopull"
        if reason:
            self.refuse(row.name, reason)
        elif row.support is Support.APPLY:
            try:
                values = row.read(statement.args)
            except ArgumentError as error:
                self.refuse(row.name, str(error))
                return
            item = Item(statement, row, values, statement.line)
            self._items.setdefault(row.name, []).append(item)

    def refuse(self, untrusted: str, reason: str) -> None:
        """Report something that is not applied."""
        if len(self._refused) < REFUSED_MAX:
            self._refused.append((shown(untrusted), reason))
        else:
            self._uncounted += 1

    def refuse_item(self, item: Item, reason: str) -> None:
        """Report an option that is not applied, as it was written."""
        self.refuse(" ".join(item.statement.words), reason)

    # -- asking ----------------------------------------------------------------

    def all(self, *names: str) -> list[Item]:
        """Give every option of these names, in order."""
        found = [item for name in names for item in self._items.get(name, [])]
        return sorted(found, key=lambda item: item.order)

    def last(self, *names: str) -> Item | None:
        """Give the option in force: the last of these names."""
        found = self.all(*names)
        return found[-1] if found else None

    def value(self, name: str, default: Any, index: int = 0) -> Any:  # noqa: ANN401
        """Give one argument of the option in force, or the default."""
        item = self.last(name)
        return default if item is None else item.value(index, default)

    @property
    def refused(self) -> tuple[tuple[str, str], ...]:
        """What was refused, and why; what is too much is only counted."""
        found = tuple(self._refused)
        if self._uncounted:
            found += (("...", f"{self._uncounted} more"),)
        return found
