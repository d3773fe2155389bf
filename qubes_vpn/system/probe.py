"""Sending what must not leave, and looking at what does.

Every probe goes to an address that is nobody's (RFC 5737, RFC 3849) or carries
a mark of this run, so that its packets are known on any interface.
"""

import contextlib
import ctypes
import os
import select
import signal
import socket
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self

from qubes_vpn.errors import OsRefusedError

TARGET4: Final = "192.0.2.77"
TARGET6: Final = "2001:db8::77"
QUBE4: Final = "10.138.255.253"
VIF: Final = "vif-leaktest"
COUNT: Final = 5
_BACKEND_MAC: Final = "fe:ff:ff:ff:ff:ff"
_CLONE_NEWNET: Final = 0x40000000
_ETH_P_ALL: Final = 3
_POLL_S: Final = 0.05
_WAIT_S: Final = 0.2
_OURS: Final = (socket.inet_aton(TARGET4),)
_OURS6: Final = (socket.inet_pton(socket.AF_INET6, TARGET6),)
# An Ethernet and an IP header: where an address of a packet stands.
_HEADERS: Final = 54


class Tap:
    """Counts this run's frames, by device and direction, until it is left."""

    def __init__(self, mark: bytes) -> None:
        self.mark = mark
        self.out: Counter[str] = Counter()
        self.into: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        try:
            self._socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)
            )
        except PermissionError as error:
            raise OsRefusedError("only root sees frames: run it as root") from (
                error
            )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._socket], [], [], _POLL_S)
            if ready:
                self._take()
            elif self._stop.is_set():
                return

    def _take(self) -> None:
        frame, address = self._socket.recvfrom(1 << 16)
        head = frame[:_HEADERS]
        if self.mark not in frame and not any(
            each in head for each in (*_OURS, *_OURS6)
        ):
            return
        outgoing = address[2] == socket.PACKET_OUTGOING
        (self.out if outgoing else self.into)[address[0]] += 1


def udp(to: str, port: int, payload: bytes) -> int:
    """Send COUNT datagrams; give how many the system took."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    taken = 0
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        for _ in range(COUNT):
            with contextlib.suppress(OSError):
                sock.sendto(payload, (to, port))
                taken += 1
    return taken


def tcp(to: str, port: int, payload: bytes) -> int:
    """Try a connection and send; 1 if there was one."""
    with socket.socket() as sock:
        sock.settimeout(_WAIT_S)
        with contextlib.suppress(OSError):
            sock.connect((to, port))
            sock.sendall(payload)
            return 1
    return 0


def ping(to: str, payload: bytes) -> int:
    """Send COUNT echo requests; give how many the system took."""
    message = struct.pack(">BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, 1) + payload
    words = struct.unpack(
        f">{len(message) // 2}H", message[: len(message) & ~1]
    )
    total = sum(words) + (message[-1] << 8 if len(message) % 2 else 0)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    whole = message[:2] + struct.pack(">H", ~total & 0xFFFF) + message[4:]
    taken = 0
    with socket.socket(
        socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP
    ) as sock:
        for _ in range(COUNT):
            with contextlib.suppress(OSError):
                sock.sendto(whole, (to, 0))
                taken += 1
    return taken


def raw(device: str, payload: bytes) -> int:
    """Write COUNT frames past the IP stack; how many the device took."""
    taken = 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        try:
            sock.bind((device, 0))
        except OSError:
            return 0
        own: bytes = sock.getsockname()[4]
        frame = bytes.fromhex(_BACKEND_MAC.replace(":", "")) + own + b"\x08\0"
        for _ in range(COUNT):
            with contextlib.suppress(OSError):
                sock.send(frame + b"E\0" + payload)
                taken += 1
    return taken


def _do(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OsRefusedError(f"{' '.join(words[:3])}: {done.stderr.strip()}")


def _hold_namespace() -> int:
    """Start a child that holds an empty network namespace; its pid."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        made = ctypes.CDLL(None).unshare(_CLONE_NEWNET) == 0
        os.write(told, b"1" if made else b"0")
        signal.pause()
        os._exit(0)
    with os.fdopen(ready, "rb") as stream:
        answer = stream.read(1)
    os.close(told)
    if answer != b"1":
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise OsRefusedError("no network namespace for a qube")
    return child


@contextlib.contextmanager
def qube() -> Iterator[Callable[[Callable[[], int]], int]]:
    """Be a qube behind this one: a vif, an address, a way here.

    Gives a function that runs another as that qube. The vif is in group 2
    and known to the agent's antispoof rules; all of it goes at the end.
    Raises OsRefusedError.
    """
    holder = _hold_namespace()
    allowed = f'allowed {{ "{VIF}" . {QUBE4} }}'.split()
    agent = _has_agent()
    namespace = os.open(f"/proc/{holder}/ns/net", os.O_RDONLY)
    try:
        _connect_qube(holder)
        if agent:
            _do("nft", "add", "element", "ip", "qubes", *allowed)
        yield lambda function: _inside(namespace, function)
    finally:
        with contextlib.suppress(OsRefusedError):
            if agent:
                _do("nft", "delete", "element", "ip", "qubes", *allowed)
        with contextlib.suppress(OsRefusedError):
            _do("ip", "link", "del", VIF)
        os.close(namespace)
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)


def _connect_qube(holder: int) -> None:
    peer = ("peer", "name", "eth0", "netns", str(holder))
    _do(
        "ip", "link", "add", VIF, "address", _BACKEND_MAC, "type", "veth", *peer
    )
    Path(f"/proc/sys/net/ipv4/conf/{VIF}/proxy_arp").write_text("1")
    _do("ip", "link", "set", VIF, "group", "2", "up")
    _do("ip", "route", "add", QUBE4, "dev", VIF)
    enter = ("nsenter", f"--net=/proc/{holder}/ns/net", "ip")
    gateway = ("lladdr", _BACKEND_MAC, "dev", "eth0", "nud", "permanent")
    _do(*enter, "addr", "add", f"{QUBE4}/32", "dev", "eth0")
    _do(*enter, "link", "set", "eth0", "up")
    _do(*enter, "neigh", "add", "10.138.255.254", *gateway)
    _do(*enter, "route", "add", "10.138.255.254", "dev", "eth0")
    _do(*enter, "route", "add", "default", "via", "10.138.255.254")


def _has_agent() -> bool:
    words = ("nft", "list", "set", "ip", "qubes", "allowed")
    done = subprocess.run(words, capture_output=True, check=False)
    return done.returncode == 0


def _inside(namespace: int, function: Callable[[], int]) -> int:
    """Run a function in a thread of its own that is in the namespace."""
    result: list[int] = []

    def run() -> None:
        if ctypes.CDLL(None).setns(namespace, _CLONE_NEWNET) == 0:
            result.append(function())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if not result:
        raise OsRefusedError("the qube's network cannot be entered")
    return result[0]
