"""A proof on the user's own machine that nothing leaves beside the tunnel.

A disposable behind the VPN qube sends marked packets, before, while and after
the engine is killed. The VPN qube's net qube looks at every frame that it
handles meanwhile. A marked packet of its own, sent on its loopback, proves
that it would have seen one. Both ends are reported.
"""

import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qubes_vpn.qubes.admin.plan import (
    AdminError,
    Host,
    Qube,
    Say,
    net_qube_name,
)

CANARY_V4 = "192.0.2.77"
CANARY_V6 = "2001:db8::77"
ROUND_S = 5
CAPTURE_S = 90

# Run in the net qube as root: MARK, SECONDS. Prints `ready`, and on end of
# its input, or of the time, `clear N control N frames N`.
CAPTURE = f"""\
import select, socket, sys, time
mark, end = sys.argv[1].encode(), time.monotonic() + float(sys.argv[2])
v4 = socket.inet_aton("{CANARY_V4}")
v6 = socket.inet_pton(socket.AF_INET6, "{CANARY_V6}")
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print("ready", flush=True)
seen = own = frames = 0
def tick():
    control.sendto(b"control-" + mark, ("127.0.0.1", 9))
tick()
while time.monotonic() < end:
    ready, _, _ = select.select([wire, sys.stdin], [], [], 1)
    if sys.stdin in ready:
        break
    if wire not in ready:
        continue
    frame = wire.recv(65536)
    frames += 1
    if b"control-" + mark in frame:
        own += 1
    elif mark in frame or v4 in frame[14:54] or v6 in frame[14:54]:
        seen += 1
print("clear", seen, "control", own, "frames", frames, flush=True)
"""

# Run in the disposable: MARK, SECONDS. Prints `sent N refused N`.
CANARIES = f"""\
import socket, sys, threading, time
mark, end = sys.argv[1], time.monotonic() + float(sys.argv[2])
sent = refused = 0
def lookup():
    try:
        socket.getaddrinfo(mark + ".example.com", 80)
    except OSError:
        pass
def datagram(family, address, port):
    global sent, refused
    with socket.socket(family, socket.SOCK_DGRAM) as out:
        try:
            out.sendto(mark.encode(), (address, port))
            sent += 1
        except OSError:
            refused += 1
def stream(family, address):
    global sent, refused
    with socket.socket(family, socket.SOCK_STREAM) as out:
        out.setblocking(False)
        error = out.connect_ex((address, 80))
        if error in (0, 115):
            sent += 1
            time.sleep(0.05)
        else:
            refused += 1
while time.monotonic() < end:
    threading.Thread(target=lookup, daemon=True).start()
    for port in (9, 53, 443, 1194):
        datagram(socket.AF_INET, "{CANARY_V4}", port)
        datagram(socket.AF_INET6, "{CANARY_V6}", port)
    stream(socket.AF_INET, "{CANARY_V4}")
    stream(socket.AF_INET6, "{CANARY_V6}")
    time.sleep(0.2)
print("sent", sent, "refused", refused, flush=True)
import os
os._exit(0)
"""

_SENT = re.compile(rb"sent ([0-9]{1,9}) refused ([0-9]{1,9})\n")
_SEEN = re.compile(
    rb"clear ([0-9]{1,9}) control ([0-9]{1,9}) frames ([0-9]{1,9})\n"
)


@dataclass(frozen=True, slots=True)
class Proof:
    """What both ends counted.

    sent: marked packets by the disposable, for each stage. clear: those of
    them that the net qube saw. control: its own marked packets that it saw.
    """

    sent: tuple[tuple[str, int], ...]
    clear: int
    control: int
    frames: int

    @property
    def conclusive(self) -> bool:
        """Whether a leak would have been seen."""
        return self.control > 0 and all(count for _, count in self.sent)

    def lines(self) -> list[str]:
        """Say it."""
        told = [f"{stage}: {count} packets sent" for stage, count in self.sent]
        told.append(
            f"the net qube saw {self.frames} frames, {self.clear} of them "
            "marked and in clear"
        )
        if self.clear:
            told.append("LEAK: packets left beside the tunnel")
        elif self.conclusive:
            told.append("no leak; the net qube did see its own marked packet")
        else:
            told.append("inconclusive: one end could not do its part")
        return told


def leaktest(host: Host, name: str, dispvm: str, say: Say) -> Proof:
    """Run the test on a VPN qube that runs. Raises AdminError."""
    qube = host.vpn_qube(name)
    netvm = net_qube_name(qube)
    if not netvm or not qube.is_running():
        raise AdminError(
            name, "does not run, or has no net qube", f"`qvm-start {name}`"
        )
    mark = "canary" + secrets.token_hex(8)
    with (
        _disposable(host, name, dispvm, say) as sender,
        _capture(host.qube(netvm), mark) as capture,
    ):
        say(f"{sender} sends, {netvm} looks")
        sent = []
        for stage in ("before", "engine killed", "after"):
            if stage == "engine killed":
                _as_root(
                    qube,
                    *("systemctl", "kill", "--signal=KILL"),
                    "qubes-vpn-engine.service",
                )
            sent.append((stage, _send(sender, mark)))
        seen = _finish(netvm, capture)
    return Proof(tuple(sent), *seen)


@contextmanager
def _disposable(host: Host, name: str, dispvm: str, say: Say) -> Iterator[Qube]:
    from qubesadmin.vm import DispVM

    wrapper = DispVM.from_appvm(host.app, dispvm or None)
    wrapper.create_disposable()
    try:
        wrapper.netvm = name
        wrapper.start()
        say(f"made {wrapper} behind {name}")
        yield wrapper
    finally:
        wrapper.cleanup()


def _as_root(qube: Qube, *command: str) -> None:
    try:
        qube.run_with_args(*command, user="root")
    except subprocess.CalledProcessError as error:
        raise AdminError(
            str(qube), f"`{' '.join(command)}` ended with {error.returncode}"
        ) from error


@contextmanager
def _capture(netvm: Qube, mark: str) -> Iterator["subprocess.Popen[bytes]"]:
    from qubesadmin.utils import encode_for_vmexec

    arguments = ("python3", "-I", "-c", CAPTURE, mark, str(CAPTURE_S))
    process = netvm.run_service(
        f"qubes.VMExec+{encode_for_vmexec(arguments)}", user="root"
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline(16) != b"ready\n":
            raise _cannot_look(str(netvm))
        yield process
    finally:
        process.kill()
        process.communicate()


def _send(sender: Qube, mark: str) -> int:
    try:
        output, _ = sender.run_with_args(
            "python3", "-I", "-c", CANARIES, mark, str(ROUND_S)
        )
    except subprocess.CalledProcessError as error:
        raise AdminError(
            str(sender), f"cannot send: python3 ended with {error.returncode}"
        ) from error
    match = _SENT.fullmatch(output)
    return int(match[1]) if match else 0


def _finish(
    netvm: str, capture: "subprocess.Popen[bytes]"
) -> tuple[int, int, int]:
    try:
        output, _ = capture.communicate(b"\n", timeout=CAPTURE_S)
    except subprocess.TimeoutExpired:
        output = b""
    match = _SEEN.fullmatch(output)
    if match is None:
        raise _cannot_look(netvm)
    return int(match[1]), int(match[2]), int(match[3])


def _cannot_look(netvm: str) -> AdminError:
    return AdminError(
        netvm,
        "could not look at its frames",
        f"`qvm-run -u root {netvm} python3 --version` must work",
    )
