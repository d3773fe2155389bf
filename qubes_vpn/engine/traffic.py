"""What the data plane counts and the engine's timers read."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

# OCC messages that may wait for the engine; more are forgotten.
OCC_MAX: Final = 32


@dataclass(slots=True)
class Traffic:
    """A mutable record: the data plane writes, the engine reads.

    Both run in one thread; there is one record for each session. The engine
    zeroes the counters "since key" when it makes a new key the primary one.

    rx_packets, rx_bytes, tx_packets, tx_bytes: link packets of the data
    channel since the primary key came into use; bytes count ciphertext.
    rx_last, tx_last: mono seconds when an authenticated packet came in, and
    when one was sent, pings included; 0.0 before the first.
    tun_bytes: inner bytes both ways since the session began, pings not
    counted: what `inactive` measures.
    key_packets: the highest packet id used with the primary key.
    key_blocks: packets, and AEAD blocks (16 bytes), sealed and opened with it.
    key_epoch: the epoch that the primary key sends in; 0 without epochs.
    decrypt_failures: tags that were wrong since it came into use.
    ping_seen: the peer has sent one ping at least.
    peer_exited: the peer said goodbye over the data channel (OCC_EXIT).
    occ: other OCC messages of the peer: (opcode, size of the content, the
    bytes after the opcode, 2 at most).
    """

    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
    rx_last: float = 0.0
    tx_last: float = 0.0
    tun_bytes: int = 0
    key_packets: int = 0
    key_blocks: int = 0
    key_epoch: int = 0
    decrypt_failures: int = 0
    ping_seen: bool = False
    peer_exited: bool = False
    occ: deque[tuple[int, int, bytes]] = field(
        default_factory=lambda: deque(maxlen=OCC_MAX)
    )

    def restart(self) -> None:
        """Zero what is counted since the primary key came into use."""
        self.rx_packets = self.rx_bytes = 0
        self.tx_packets = self.tx_bytes = 0
        self.key_packets = self.key_blocks = self.key_epoch = 0
        self.decrypt_failures = 0
