"""What is said inside TLS after the keys: messages in, decisions out."""

import base64
from collections import Counter
from dataclasses import dataclass, field
from typing import TypeAlias

from qubes_vpn.config.pulled import TunnelSettings
from qubes_vpn.config.push import Push
from qubes_vpn.engine import dialog
from qubes_vpn.engine.effects import AskUser, Notice
from qubes_vpn.engine.events import (
    AuthenticationPending,
    ChallengeAsked,
    Now,
    PeerEnded,
)
from qubes_vpn.engine.login import Login
from qubes_vpn.engine.pull import PushCollector, apply_update
from qubes_vpn.engine.settle import Situation
from qubes_vpn.engine.states import ClientState, Established, Pulling
from qubes_vpn.wire import messages

# What a message may lead to; settings are those of a push or an update.
Outcome: TypeAlias = (
    TunnelSettings
    | AuthenticationPending
    | ChallengeAsked
    | PeerEnded
    | AskUser
    | Notice
)


@dataclass(slots=True)
class Conversation:
    """The server's messages of one session, and what they add up to.

    peer_options: the options string of the server's key method 2.
    options: that are in force. challenge: the last question of the server.
    """

    where: Situation
    login: Login
    peer_options: str = ""
    options: tuple[str, ...] = field(default=(), repr=False)
    challenge: messages.Challenge | None = None
    _replies: PushCollector = field(default_factory=PushCollector)
    _updates: PushCollector = field(default_factory=PushCollector)

    def hear(
        self,
        message: messages.ControlMessage,
        state: ClientState,
        drops: Counter[str],
        now: Now,
    ) -> Outcome | None:
        """Return what one message leads to; what fits not is counted.

        Raises SessionError for settings that cannot be used.
        """
        pull = self.where.profile.pull
        match message, state:
            case messages.PushReply(), Pulling() if pull:
                return self._push(message)
            case messages.PushReply(), Established() if pull:
                self._later_push(message)
                return None
            case messages.PushUpdate(), Established() if pull:
                return self._update(message)
            case messages.AuthFailed(), _ if pull:
                return self._auth_failed(message, now)
            case messages.Restart(), _ if pull:
                return dialog.on_restart(message)
            case messages.AuthPending(), Pulling() if pull:
                return dialog.on_auth_pending(message, self.where.profile, now)
            case messages.Info(), _:
                return dialog.on_info(message, state, now)
            case messages.Exit(), _:
                return PeerEnded("server-exit")
            case _:
                drops[f"message-{type(message).__name__.lower()}"] += 1
                return None

    def _push(self, message: messages.PushReply) -> TunnelSettings | None:
        options = self._replies.add(message)
        if options is None:
            return None
        settings = self.where.merge(options, self.peer_options)
        self.options = options
        if settings.auth_token:
            user = _decoded(settings.auth_token_user)
            self.login.take_token(settings.auth_token, user)
        return settings

    def _later_push(self, message: messages.PushReply) -> None:
        """Take a new auth-token; nothing else changes in mid-session."""
        push = Push(self.where.profile, self.where.remote)
        push.take(message.options)
        token = push.value("auth-token", "")
        if token:
            user = _decoded(push.value("auth-token-user", ""))
            self.login.take_token(token, user)

    def _update(self, message: messages.PushUpdate) -> TunnelSettings | None:
        update = self._updates.add(message)
        if update is None:
            return None
        options = apply_update(self.options, update)
        settings = self.where.merge(options, self.peer_options)
        self.options = options
        return settings

    def _auth_failed(
        self, message: messages.AuthFailed, now: Now
    ) -> PeerEnded | ChallengeAsked:
        self.challenge = message.challenge
        had_token = self.login.token is not None
        if not message.temporary:
            self.login.token = None
        return dialog.on_auth_failed(
            message, self.where.profile, now, had_token=had_token
        )


def _decoded(untrusted: str) -> str:
    """Decode auth-token-user, which is base64; "" when it is not."""
    try:
        return base64.b64decode(untrusted, validate=True).decode()
    except ValueError:
        return ""
