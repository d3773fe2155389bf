"""Collects pushed options from their messages.

Source: OpenVPN 2 push.c, process_incoming_push_msg.
"""

from dataclasses import dataclass, field
from typing import Final

from qubes_vpn.errors import SessionError
from qubes_vpn.wire.messages import PushReply, PushUpdate

MESSAGES_MAX: Final = 64
OCTETS_MAX: Final = 64 * 1024
MORE: Final = 2


@dataclass(slots=True)
class PushCollector:
    """Joins PUSH_REPLY, or PUSH_UPDATE, messages with continuation."""

    _options: list[str] = field(default_factory=list, repr=False)
    _messages: int = 0
    _octets: int = 0

    def add(self, message: PushReply | PushUpdate) -> tuple[str, ...] | None:
        """Take a message; return all options once the last one is there.

        Raises SessionError "push-too-long": 64 messages or 64 KiB.
        """
        self._messages += 1
        self._octets += sum(map(len, message.options))
        if self._messages > MESSAGES_MAX or self._octets > OCTETS_MAX:
            raise SessionError("push-too-long")
        self._options.extend(message.options)
        if message.continuation == MORE:
            return None
        whole = tuple(self._options)
        self._options.clear()
        self._messages = self._octets = 0
        return whole


def occ_cipher(peer_options: str) -> str:
    """Return the cipher of an options string, or ""."""
    for part in peer_options.split(","):
        name, _, value = part.partition(" ")
        if name == "cipher":
            return value.upper()
    return ""
