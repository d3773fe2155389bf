"""Microbenchmarks: what one packet costs in our own code, in microseconds."""

import contextlib
import functools
import statistics
import time
from collections.abc import Callable

import numpy as np

from qubes_vpn.config.pulled import TunnelSettings
from qubes_vpn.crypto.control_wrap import TlsCryptWrap
from qubes_vpn.crypto.keys import DataKeys, DirectionKeys
from qubes_vpn.crypto.replay import ReplayWindow
from qubes_vpn.dataplane.seal import Sealer
from qubes_vpn.dataplane.segment import GSO_TCPV4, SuperPacket
from qubes_vpn.engine.data_channel import PRIMARY, DataChannel
from qubes_vpn.engine.events import (
    DeadlinePassed,
    Event,
    Now,
    Pushed,
    RenegotiationBegan,
    ServerReset,
)
from qubes_vpn.engine.lifecycle import step
from qubes_vpn.engine.states import (
    ClientState,
    Established,
    Pulling,
    Resetting,
    Timing,
)
from qubes_vpn.engine.traffic import Traffic
from qubes_vpn.errors import UntrustedInputError
from qubes_vpn.wire import control
from qubes_vpn.wire.opcode import Opcode

SEGMENTS = 32
MSS = 1388
_HEADER = bytes.fromhex(
    "450005a000074000400600000a0800010a080002"
    "14519c40000003e800000005801001f4000000000101080a0000000000000000"
)


def keys(cipher: str) -> DataKeys:
    direction = DirectionKeys(
        cipher_key=bytes(32), hmac_key=bytes(64), implicit_iv=bytes(8)
    )
    return DataKeys(0, 1, cipher, direction, direction)


def timed(function: Callable[[], object], times: int = 2000) -> float:
    """Median in microseconds."""
    function()
    found = []
    for _ in range(times):
        begin = time.perf_counter_ns()
        function()
        found.append(time.perf_counter_ns() - begin)
    return statistics.median(found) / 1000


class _Nowhere:
    stream = False

    def send_run(self, run: memoryview, size: int, count: int) -> None:
        del run, size, count

    def send(self, datagram: memoryview) -> bool:
        del datagram
        return True


def micro() -> dict[str, float]:
    """Measure seal, open, batches, codec, replay window, step, forgeries."""
    found: dict[str, float] = {}
    packet = memoryview(_HEADER + bytes(MSS))
    for cipher in ("AES-256-GCM", "CHACHA20-POLY1305"):
        channel = DataChannel(Traffic())
        channel.install(PRIMARY, keys(cipher))
        out = memoryview(bytearray(2000))
        found[f"seal_into 1,440 bytes {cipher}"] = timed(
            functools.partial(channel.seal_into, packet, out, 0.0)
        )
        found[f"open_into 1,440 bytes {cipher}"] = _opening(channel)
        found[f"batch seal, per segment of {SEGMENTS}, {cipher}"] = (
            _sealing_many(channel) / SEGMENTS
        )
    window, number = ReplayWindow(), iter(range(1, 1 << 31))
    found["replay window accept"] = timed(
        lambda: window.accept(next(number), 0.0)
    )
    message = control.ControlPacket(
        Opcode.P_CONTROL_V1, 0, bytes(8), (1, 2, 3), bytes(8), 4, bytes(1100)
    )
    body = control.encode_body(message)
    found["control packet, encode"] = timed(
        lambda: control.encode_body(message)
    )
    found["control packet, decode"] = timed(
        lambda: control.decode_body(Opcode.P_CONTROL_V1, 0, bytes(8), body)
    )
    found |= _steps() | _forged()
    return found


def _steps() -> dict[str, float]:
    """The engine's function for everything that happens."""
    now, timing = Now(100.0, 1_700_000_000.0), Timing()
    up = Established(timing, TunnelSettings(ping=10), 50.0)
    cases: dict[str, tuple[ClientState, Event]] = {
        "ping due": (up, DeadlinePassed("ping")),
        "renegotiation began": (up, RenegotiationBegan()),
        "server answered": (Resetting(timing), ServerReset()),
        "pushed": (
            Pulling(timing, 160.0),
            Pushed(up.settings, keys("AES-256-GCM")),
        ),
    }
    return {
        f"step, {name}": timed(functools.partial(step, state, event, now))
        for name, (state, event) in cases.items()
    }


def _forged() -> dict[str, float]:
    """What a packet costs that a stranger made up; 10 is the most."""
    channel = DataChannel(Traffic())
    channel.install(PRIMARY, keys("AES-256-GCM"))
    data = b"\x48\0\0\1" + bytes(1460)
    buffer, out = memoryview(bytearray(2100)), memoryview(bytearray(2100))
    buffer[: len(data)] = data
    wrap = TlsCryptWrap(bytes(256), is_server=False)
    packet = b"\x20" + b"\1" * 1200

    def refuse() -> None:
        with contextlib.suppress(UntrustedInputError):
            wrap.unwrap(packet, 0.0)

    return {
        "forged data packet, refused": timed(
            lambda: channel.open_into(buffer, len(data), out, 0.0)
        ),
        "forged control packet, refused": timed(refuse),
    }


def _opening(channel: DataChannel) -> float:
    packet = _HEADER + bytes(MSS)
    sealed = [channel.seal(packet, 0.0) for _ in range(2001)]
    buffer, out = memoryview(bytearray(2100)), memoryview(bytearray(2100))
    size, each = len(sealed[0]), iter(sealed)

    def once() -> None:
        buffer[:size] = next(each)
        assert channel.open_into(buffer, size, out, 0.0) is not None

    return timed(once, 2000)


def _sealing_many(channel: DataChannel) -> float:
    sealer = Sealer(_Nowhere(), channel)  # type: ignore[arg-type]
    data = np.zeros(len(_HEADER) + MSS * SEGMENTS, np.uint8)
    data[: len(_HEADER)] = np.frombuffer(_HEADER, np.uint8)
    vnet = (1, GSO_TCPV4, 0, MSS, 20, 16)

    def once() -> None:
        sealer.add_segments(SuperPacket(data.data, data, vnet), 0.0)
        sealer.flush()

    return timed(once, 500)
