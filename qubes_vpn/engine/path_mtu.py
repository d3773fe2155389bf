"""The largest packet that the path carries, found without ICMP.

OpenVPN answers OCC_MTU_LOAD_REQUEST with a packet of the size that it names,
and does not mind what follows in the request. So a request is padded to a
size and names the same one: its answer shows that both ways carry it. The
first answer tells by how much the peer's idea of that size is off.

Pure: `heard` and `expire` are the inputs. Sizes are those of the content of
a data packet, in bytes, which is what an inner packet may have. Source:
OpenVPN 2 occ.c (process_received_occ_msg, check_send_occ_msg_dowork).
"""

import math
from typing import Final

from qubes_vpn.config.pulled import TunnelSettings
from qubes_vpn.crypto.aead import cipher_spec, digest_size
from qubes_vpn.engine.fragments import HEADER_SIZE
from qubes_vpn.engine.inner import OCC_MAGIC
from qubes_vpn.engine.settle import Situation
from qubes_vpn.engine.traffic import Traffic

OCC_MTU_LOAD_REQUEST: Final = 2
OCC_MTU_LOAD: Final = 3
# Carried by every path: shows that the peer answers at all.
BASE: Final = 64
# The largest packet that anybody may ask of us, and what it has around it.
LOAD_MAX: Final = 1500
_USUAL_OVERHEAD: Final = 24
# What is found below this is no path but a loss of packets.
FLOOR: Final = 500
# Sizes of one round between what passes and what does not.
_FAN: Final = 8
_TRIES: Final = 3
_TRIES_FIRST: Final = 5
_WAIT_MIN: Final = 0.3
_WAIT_FIRST: Final = 1.0
_WAIT_MAX: Final = 2.0
# As near as this is near enough, in bytes.
_NEAR: Final = 4
_TOLERANCE: Final = 256
# Seconds between looks at a path in use; how many until it may have grown.
INTERVAL: Final = 30.0
_GROW: Final = 10


def overhead(settings: TunnelSettings, *, static: bool) -> int:
    """Return the most that a data packet adds to its content, in bytes."""
    header = 1 if settings.peer_id is None else 4
    framing = 1 if settings.compression else 0
    framing += HEADER_SIZE if settings.fragment else 0
    spec = cipher_spec(settings.cipher)
    if spec.kind == "aead":
        return framing + header + (8 if settings.aead_epoch else 4) + 16
    ids = 8 if static else 4
    bare = 0 if static else header
    blocks = 2 * spec.block_size
    return framing + bare + digest_size(settings.digest) + blocks + ids


def room(where: Situation, settings: TunnelSettings) -> int:
    """Return the largest inner packet that the uplink takes; 0: any.

    A stream takes any: TCP cuts it as it needs. With `fragment` it is what
    goes whole into one datagram of that size.
    """
    if where.stream:
        return 0
    six = where.endpoint is not None and where.endpoint.version == 6
    sizes = [settings.fragment] if settings.fragment else []
    if where.link_mtu:
        sizes.append(where.link_mtu - (40 if six else 20) - 8)
    if not sizes:
        return 0
    static = where.profile.secret is not None
    return max(min(sizes) - overhead(settings, static=static), FLOOR)


def answers(traffic: Traffic) -> list[bytes]:
    """Return what a peer's requests are answered with, as OpenVPN does."""
    made: list[bytes] = []
    while traffic.occ:
        opcode, _, rest = traffic.occ.popleft()
        if opcode == OCC_MTU_LOAD_REQUEST and len(rest) == 2:
            size = min(int.from_bytes(rest), LOAD_MAX) - _USUAL_OVERHEAD
            head = OCC_MAGIC + bytes((OCC_MTU_LOAD,))
            made.append(head.ljust(size, b"\0"))
    return made


class PathMtu:
    """Looks at the path of one session, again and again.

    ceiling: the size that is wished for. found: the size that passes, or
    ceiling while nothing else is known. known: the first look is over.
    silent: the peer answers nothing, and is not asked any more.
    """

    def __init__(self, ceiling: int, overhead_: int, now: float) -> None:
        self.found = ceiling
        self.known = False
        self.silent = False
        self._ceiling = ceiling
        self._overhead = overhead_
        self._offset: int | None = None
        self._low, self._high = BASE, ceiling + 1
        self._waiting: list[int] = []
        self._passed: set[int] = set()
        self._asked = self._tries = 0
        self._sent_at = now
        self._wait = _WAIT_FIRST
        self._due = now
        self._looks = 0
        self._bytes = 0
        self._look_at = math.inf

    def deadline(self) -> float:
        """When to call expire, in mono seconds; inf: no need."""
        return math.inf if self.silent else self._due

    def heard(self, opcode: int, size: int, now: float) -> None:
        """Take an OCC message of the peer; size: of the whole content."""
        if opcode != OCC_MTU_LOAD or not self._waiting:
            return
        known = self._offset is not None
        asked = min(self._waiting, key=lambda one: abs(one - size))
        if abs(asked - size) >= (_NEAR if known else _TOLERANCE):
            return
        if not known:
            self._offset = size - asked
        if asked == BASE:
            rtt = now - self._sent_at
            self._wait = min(max(2 * rtt, _WAIT_MIN), _WAIT_MAX)
            self._due = min(self._due, self._sent_at + self._wait)
        self._waiting.remove(asked)
        self._passed.add(asked)
        if not self._waiting or asked == self._ceiling:
            self._tries = 0
            self._due = now

    def expire(self, moved: int, now: float) -> list[bytes]:
        """Return what must be sent now. moved: inner bytes so far."""
        if self.silent or now < self._due:
            return []
        if self._tries and self._waiting:
            return self._send(now)
        if self._asked and not self._judge():
            return []
        return self._send(now) if self._next(moved, now) else []

    # --- rounds

    def _send(self, now: float) -> list[bytes]:
        self._tries -= 1
        self._sent_at = now
        self._due = now + self._wait
        return [self._request(size) for size in self._waiting]

    def _request(self, size: int) -> bytes:
        wanted = size + self._overhead - (self._offset or 0)
        head = OCC_MAGIC + bytes((OCC_MTU_LOAD_REQUEST,))
        return (head + wanted.to_bytes(2)).ljust(size, b"\0")

    def _judge(self) -> bool:
        """A round is over: draw the conclusions; say whether to go on."""
        passed, failed, asked = self._passed, self._waiting, self._asked
        self._passed, self._waiting, self._asked = set(), [], 0
        if BASE in failed and len(failed) == asked:
            # the peer knows no OCC, or nothing passes at all: then others
            # notice, and what is in force stays
            self.silent = self._offset is None
            self.known = self.known or self.silent
            self._low, self._high = self.found, self.found + 1
            return not self.silent
        self._low = max([self._low, *passed])
        failed = [size for size in failed if size > self._low]
        self._high = min([self._high, *failed])
        return True

    def _next(self, moved: int, now: float) -> bool:
        """Begin a next round, or rest; say whether there is one."""
        if self._offset is None:
            return self._ask(_TRIES_FIRST, BASE, self._ceiling)
        if self._high - self._low > _NEAR:
            gap = self._high - self._low
            steps = {gap * n // (_FAN + 1) for n in range(1, _FAN + 1)}
            return self._ask(
                _TRIES, *(self._low + step for step in steps if step)
            )
        if self._low >= FLOOR:
            self.found = self._low
        self.known = True
        if now < self._look_at < math.inf:
            return False
        if self._look_at == math.inf or moved == self._bytes:
            self._due = self._look_at = now + INTERVAL
            return False
        self._bytes = moved
        return self._look_again()

    def _look_again(self) -> bool:
        """See, while the tunnel is used, whether the path has changed."""
        self._look_at = math.inf
        self._looks += 1
        grown = self._looks % _GROW == 0
        wanted = self._ceiling if grown else self.found
        self._low, self._high = BASE, wanted + 1
        return self._ask(_TRIES_FIRST, BASE, self.found, wanted)

    def _ask(self, tries: int, *sizes: int) -> bool:
        self._tries = tries
        self._waiting = sorted(set(sizes))
        self._asked = len(self._waiting)
        return True
