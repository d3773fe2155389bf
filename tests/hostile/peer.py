"""A server that says and sends what it is told, to clients that trust it.

    python -m tests.hostile.peer CONFIG --control PATH

is `qubes-vpn server`, and obeys one order after another on the datagram socket
PATH.orders, as JSON; bytes are hexadecimal:

    {"say": [...]}     messages inside TLS, to every client, as they are
    {"reply": [...]}   what is said for the settings, which "" stands for;
                       null: those and nothing else
    {"send": [...]}    datagrams to every client, as they are
    {"mute": N}        after N more control datagrams, and what was said before,
                       none leaves; null: all do
"""

import contextlib
import json
import math
import socket
import sys
from dataclasses import replace
from pathlib import Path

from lab.ours import OurServer
from qubes_vpn.engine.server import ServerEngine
from qubes_vpn.engine.server_effects import SendTo
from qubes_vpn.engine.server_session import ServerSession

# How often it looks for orders, in seconds.
TICK = 0.05


class HostileSession(ServerSession):
    """Says what was ordered when it is asked for settings."""

    reply = None

    def _push(self, state, now):
        if self.reply is None:
            super()._push(state, now)
            return
        for message in self.reply:
            if message:
                self._channel.say(message, now)
            else:
                super()._push(state, now)
        self.state = replace(self.state, sent=True)


class HostileEngine(ServerEngine):
    """Obeys orders at each tick."""

    path = ""
    _now = 0.0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._left = math.inf
        self._orders = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._orders.setblocking(False)
        self._orders.bind(self.path)

    def deadline(self):
        return min(super().deadline(), self._now + TICK)

    def expire(self, now):
        self._now = now.mono
        super().expire(now)
        with contextlib.suppress(BlockingIOError):
            while order := self._orders.recv(1 << 20):
                for word, value in json.loads(order).items():
                    getattr(self, f"_order_{word}")(value, now)

    def poll(self):
        while isinstance(effect := super().poll(), SendTo):
            self._left -= 1
            if self._left >= 0:
                break
        return effect

    def _order_say(self, texts, now):
        for session in list(self._sessions.values()):
            for text in map(bytes.fromhex, texts):
                session._channel.say(text, now)
            self._settle(session)

    def _order_reply(self, texts, now):
        messages = None if texts is None else [*map(bytes.fromhex, texts)]
        HostileSession.reply = messages

    def _order_send(self, texts, now):
        for session in self._sessions.values():
            self._effects.extend(
                SendTo(session.source, bytes.fromhex(text)) for text in texts
            )

    def _order_mute(self, count, now):
        waiting = sum(isinstance(one, SendTo) for one in self._effects)
        self._left = math.inf if count is None else count + waiting


class HostileServer(OurServer):
    """The same in a lab, and how it is told what to do."""

    command = (sys.executable, "-m", "tests.hostile.peer")

    def order(self, **words):
        """Give an order: lists of bytes, numbers or None."""
        record = {
            word: [one.hex() for one in value]
            if isinstance(value, list)
            else value
            for word, value in words.items()
        }
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(json.dumps(record).encode(), f"{self.control}.orders")


def main():
    from qubes_vpn.cli import main as cli
    from qubes_vpn.engine import server as engine
    from qubes_vpn.runtime import server as runtime

    control = sys.argv[sys.argv.index("--control") + 1]
    HostileEngine.path = f"{control}.orders"
    Path(HostileEngine.path).unlink(missing_ok=True)
    engine.ServerSession = HostileSession
    runtime.ServerEngine = HostileEngine
    return cli.main(["server", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
