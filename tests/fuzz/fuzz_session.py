"""Whatever happens to a client and a server, forwarding needs keys.

A program of bytes: datagrams lost, repeated, bent, made up, in any order,
messages inside TLS, time that passes, restarts. The law of the pair is
checked at every effect; no datagram is raised about, nothing piles up, and
no inner packet arrives twice.
"""

from qubes_vpn.engine import effects as do
from qubes_vpn.engine.states import Closed
from tests.unit.engine.pair import HERE, WRAPS, Pair, profiles

STEPS_MAX = 200
WORLDS = {wrap: profiles(wrap) for wrap in WRAPS}
MESSAGES = (
    b"PUSH_REPLY,ifconfig 10.9.0.2 255.255.255.0,peer-id 0\0",
    b"PUSH_UPDATE,-route,ping 1\0",
    b"AUTH_FAILED,TEMP[backoff 1]\0",
    b"RESTART,[N]\0",
    b"HALT\0",
    b"EXIT\0",
    b"AUTH_PENDING,timeout 9\0",
    b"PUSH_REPLY,\n\0",
)
RUN = bytes([0, 30]) * 10
SEEDS = (
    b"\0" + RUN + b"\1\1\5\3" + RUN,
    b"\1" + RUN + b"\2\7\0\5" + RUN,
    b"\2" + RUN + b"\3\x09\4\1" + RUN,
    b"\3" + RUN + b"\6\0\7\0" + RUN + b"\x08\x10",
    *(bytes([kind]) + RUN * 2 + bytes([7, kind]) + RUN for kind in range(8)),
)


class World(Pair):
    """A pair that a program of bytes drives."""

    def step(self, kind: int, value: int) -> None:
        """Do one thing."""
        queue = self.wire.queue
        match kind % 9:
            case 0:
                self.pass_time(value / 20)
            case 1 if queue:
                queue.pop(value % len(queue))
                queue.sort()
            case 2 if queue:
                self.bend(value)
            case 3 if self.wire.seen:
                _, to_server, datagram = self.wire.seen[-1 - value % 9 :][0]
                self.wire.send(self.time, datagram, to_server=to_server)
            case 4:
                made = bytes([value]) + bytes(range(value % 60))
                self.client.receive(made, self.now)
                self.server.receive(made, HERE, self.now)
            case 5:
                self.pass_time(value)
            case 6:
                self.client.stop(self.now)
            case 7:
                self.say(MESSAGES[value % len(MESSAGES)])
            case 8:
                self.wire.cut = bool(value & 1)
        self.drain()

    def bend(self, value: int) -> None:
        """Flip a bit of something that is on its way."""
        queue = self.wire.queue
        at = value % len(queue)
        when, number, to_server, datagram = queue[at]
        place = value * 7 % len(datagram)
        bent = bytes([datagram[place] ^ (1 << value % 8)])
        datagram = datagram[:place] + bent + datagram[place + 1 :]
        queue[at] = (when, number, to_server, datagram)

    def say(self, message: bytes) -> None:
        """Have the server say something inside TLS."""
        for session in list(self.server._sessions.values()):
            session._channel.say(message, self.now)
            self.server._settle(session)

    def pass_time(self, seconds: float) -> None:
        """Let what is due happen."""
        end = self.time + seconds
        self.chat()
        for _ in range(300):
            due = min(
                self.wire.next_time(),
                self.client.deadline(),
                self.server.deadline(),
            )
            if due > end:
                break
            self.time = max(self.time, due)
            self._deliver()
            if self.client.deadline() <= self.time:
                self.client.expire(self.now)
            if self.server.deadline() <= self.time:
                self.server.expire(self.now)
            self.drain()
            self._restart()
        else:
            raise AssertionError(f"busy: {self.drought()}")
        self.time = end

    def _at_client(self, datagram):
        if datagram:
            super()._at_client(datagram)


def one_input(data: bytes) -> None:
    """Run a program."""
    if len(data) < 3:
        return
    wrap = WRAPS[data[0] % len(WRAPS)]
    world = World(*WORLDS[wrap], seed=data[0])
    for at in range(1, min(len(data) - 1, 2 * STEPS_MAX), 2):
        world.step(data[at], data[at + 1])
        assert len(world.wire.queue) < 5000
    if isinstance(world.client.state, Closed):
        ends = [one for one in world.effects if isinstance(one, do.Ended)]
        assert ends
        assert not world.law.forwarding
    for arrived in (world.at_client, world.at_server):
        assert len(arrived) == len(set(arrived)), "an inner packet twice"
