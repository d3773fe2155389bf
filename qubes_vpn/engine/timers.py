"""Which timers of a state run, and when: pure functions on values.

A timer that is due at 0.0 is due at once: a limit was reached.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from qubes_vpn.config.model import Profile
from qubes_vpn.engine.epoch_key import EPOCH_WARN
from qubes_vpn.engine.states import (
    Asking,
    Challenged,
    ClientState,
    Established,
    Pulling,
)
from qubes_vpn.engine.traffic import Traffic

# Packet ids of 32 bits end: begin a new key here, encrypt with it from there.
PACKET_ID_WARN: Final = 0xFF000000
PACKET_ID_URGENT: Final = 0xFF800000
# Half of the forgeries that the AEAD ciphers permit (OpenVPN 2 crypto.h).
FAILURES_WARN: Final = 1 << 35
# Seconds between two looks at the limits.
LIMITS_INTERVAL: Final = 5.0

Timer = tuple[str, float]


def rekey_after(profile: Profile, entropy: Callable[[int], bytes]) -> float:
    """Return reneg-sec, less a part of what its minimum leaves.

    entropy: gives that many random bytes.
    """
    if not 0 < profile.reneg_sec_min < profile.reneg_sec:
        return profile.reneg_sec
    spread = profile.reneg_sec - profile.reneg_sec_min
    dice = int.from_bytes(entropy(4)) / 2**32
    return profile.reneg_sec - spread * dice


def timers(state: ClientState, traffic: Traffic) -> Iterator[Timer]:
    """Yield (slug, mono seconds) for every timer that runs."""
    match state:
        case Asking(deadline=deadline) | Challenged(deadline=deadline):
            yield "answer", deadline
        case Pulling():
            yield "push", state.deadline
            yield "push-request", state.next_request
        case Established():
            yield from _established(state, traffic)
        case _:
            pass


def _established(state: Established, traffic: Traffic) -> Iterator[Timer]:
    settings = state.settings
    heard = max(traffic.rx_last, state.since)
    if traffic.peer_exited:
        yield "peer-exit", 0.0
    if settings.session_timeout:
        yield "session-timeout", state.since + settings.session_timeout
    if settings.ping_exit:
        yield "ping-exit", heard + settings.ping_exit
    elif settings.ping_restart:
        yield "ping-restart", heard + settings.ping_restart
    if settings.ping:
        sent = max(traffic.tx_last, state.since, state.pinged_at)
        yield "ping", sent + settings.ping
    yield "retire", state.retire_at
    if state.timing.renewable and not state.negotiating:
        yield "renegotiate", _renegotiation(state, traffic)
        yield "swap", _swap(state, traffic)


def _renegotiation(state: Established, traffic: Traffic) -> float:
    """When a new key is due: by time, or now because of a limit.

    While a newer key waits for its turn, the counts are still those of the
    old one: then only the time counts.
    """
    timing = state.timing
    if state.swap_at < math.inf:
        return state.renegotiate_at
    packets = traffic.rx_packets + traffic.tx_packets
    octets = traffic.rx_bytes + traffic.tx_bytes
    epoch = state.settings.aead_epoch
    reached = (
        _over(octets, timing.reneg_bytes)
        or _over(packets, timing.reneg_pkts)
        or _over(traffic.key_blocks, 0 if epoch else timing.block_limit)
        or (traffic.key_packets >= PACKET_ID_WARN and not epoch)
        or traffic.key_epoch >= EPOCH_WARN
        or traffic.decrypt_failures >= FAILURES_WARN
    )
    return 0.0 if reached else state.renegotiate_at


def _over(count: int, limit: int) -> bool:
    return 0 < limit <= count


def _swap(state: Established, traffic: Traffic) -> float:
    """When the new key begins to encrypt; at once if ids run out."""
    if state.swap_at < math.inf and traffic.key_packets >= PACKET_ID_URGENT:
        return 0.0
    return state.swap_at


@dataclass(slots=True)
class Inactivity:
    """The `inactive` timer: too few bytes of qubes in a stretch of time.

    Each stretch begins when the one before saw enough, so that silence ends
    the session after one to two times `seconds`.
    """

    seconds: float
    minimum: int
    began: float
    bytes_then: int

    def deadline(self) -> float:
        """When to call `over`, in mono seconds."""
        return self.began + self.seconds if self.seconds else math.inf

    def over(self, traffic: Traffic, now: float) -> bool:
        """Whether the stretch that ends now saw too little."""
        moved = traffic.tun_bytes - self.bytes_then
        self.began, self.bytes_then = now, traffic.tun_bytes
        return moved < max(self.minimum, 1)
