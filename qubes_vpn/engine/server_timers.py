"""When something is due for a client that is in; mono seconds throughout."""

import math
from collections.abc import Callable

from qubes_vpn.config.server_model import ServerProfile
from qubes_vpn.crypto.aead import usage_limit
from qubes_vpn.engine.epoch_key import EPOCH_WARN
from qubes_vpn.engine.keying import KeySuite
from qubes_vpn.engine.timers import (
    FAILURES_WARN,
    LIMITS_INTERVAL,
    PACKET_ID_WARN,
    Inactivity,
    rekey_after,
)
from qubes_vpn.engine.traffic import Traffic


class Timers:
    """The timers of one client.

    key_since: when the key came into use that encrypts. swap_waits: a newer
    one waits for the client to have it too. retire_at: when the older one
    is forgotten; inf without one. heard: the last control packet.
    block_limit: AEAD blocks with one key, 0: none. epoch: keys are of the
    epoch format. entropy: gives that many random bytes.
    """

    def __init__(
        self,
        profile: ServerProfile,
        traffic: Traffic,
        now: float,
        entropy: Callable[[int], bytes],
    ) -> None:
        self.key_since = now
        self.swap_waits = False
        self.retire_at = math.inf
        self.heard = now
        self.block_limit = 0
        self.epoch = False
        self._profile = profile
        self._traffic = traffic
        self._rekey_after = rekey_after(profile, entropy)
        self._since = now
        self._pinged_at = now
        self._looked_at = now
        self._inactivity = Inactivity(0, 0, now, 0)

    def admitted(self, now: float, suite: KeySuite) -> None:
        """Begin to count: the client is in."""
        profile = self._profile
        self.epoch = suite.epoch
        self._since = self._pinged_at = self.key_since = now
        # an epoch key changes its keys by itself
        self.block_limit = 0 if suite.epoch else usage_limit(suite.cipher)
        self._inactivity = Inactivity(
            profile.inactive, profile.inactive_bytes, now, 0
        )

    def swapped(self, now: float) -> None:
        """Note that the newer key encrypts from now on."""
        self.swap_waits = False
        self.key_since = now
        self.retire_at = now + self._profile.tran_window
        self._traffic.restart()

    def deadline(self, *, negotiating: bool) -> float:
        """When something may be due."""
        profile = self._profile
        due = [
            self.retire_at,
            self._rekey_at(negotiating=negotiating),
            self._inactivity.deadline(),
            # limits are looked at now and then: nobody tells
            self._looked_at + LIMITS_INTERVAL,
        ]
        if profile.ping:
            due.append(self._ping_at())
        if profile.ping_restart:
            due.append(self._silent_at())
        if profile.session_timeout:
            due.append(self._since + profile.session_timeout)
        return min(due)

    def ended(self, now: float) -> str:
        """Say why the client is to be removed, as a slug; "" if not."""
        profile = self._profile
        self._looked_at = now
        if self._traffic.peer_exited:
            return "exit"
        if profile.ping_restart and now >= self._silent_at():
            return "ping-restart"
        timeout = profile.session_timeout
        if timeout and now >= self._since + timeout:
            return "session-timeout"
        if now >= self._inactivity.deadline() and self._inactivity.over(
            self._traffic, now
        ):
            return "inactive"
        return ""

    def ping_due(self, now: float) -> bool:
        """Whether to send a ping, which is noted as sent."""
        if not self._profile.ping or now < self._ping_at():
            return False
        self._pinged_at = now
        return True

    def retire_due(self, now: float) -> bool:
        """Whether to forget the older key, which is noted as done."""
        if now < self.retire_at:
            return False
        self.retire_at = math.inf
        return True

    def rekey_due(self, now: float, *, negotiating: bool) -> bool:
        """Whether a new key is due: by time, or because of a limit."""
        if negotiating or self.swap_waits:
            return False
        profile, traffic = self._profile, self._traffic
        packets = traffic.rx_packets + traffic.tx_packets
        octets = traffic.rx_bytes + traffic.tx_bytes
        return (
            now >= self._rekey_at(negotiating=False)
            or 0 < profile.reneg_bytes <= octets
            or 0 < profile.reneg_pkts <= packets
            or 0 < self.block_limit <= traffic.key_blocks
            or (traffic.key_packets >= PACKET_ID_WARN and not self.epoch)
            or traffic.key_epoch >= EPOCH_WARN
            or traffic.decrypt_failures >= FAILURES_WARN
        )

    def _rekey_at(self, *, negotiating: bool) -> float:
        if not self._rekey_after or negotiating or self.swap_waits:
            return math.inf
        return self.key_since + self._rekey_after

    def _ping_at(self) -> float:
        sent = max(self._traffic.tx_last, self._pinged_at)
        return sent + self._profile.ping

    def _silent_at(self) -> float:
        heard = max(self._traffic.rx_last, self.heard, self._since)
        return heard + self._profile.ping_restart
