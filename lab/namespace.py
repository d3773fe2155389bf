"""Network namespaces without a name, which a crash cannot leave behind.

A namespace is an open descriptor. The kernel removes it, its interfaces and its
rules when the last descriptor, process and socket in it are gone; programs
started here die with the thread that started them (PR_SET_PDEATHSIG). So there
is nothing to clean up after SIGKILL.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

CLONE_NEWNET = 0x40000000
RUN_TIMEOUT = 60.0
STOP_TIMEOUT = 3.0

_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """The lab could not do what it was asked to."""


def _checked(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _new_network_namespace() -> int:
    """Open a new network namespace; this thread stays where it is."""
    made: list[int] = []
    failed: list[OSError] = []

    def unshare() -> None:
        try:
            _checked(_libc.unshare(CLONE_NEWNET), "unshare")
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=unshare)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def kill(process: "subprocess.Popen[Any]") -> None:
    """End a program: politely, then for certain."""
    for number in (signal.SIGCONT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        process.send_signal(number)
        if number == signal.SIGCONT:
            continue
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()


class Namespace:
    """One network namespace, with a mount namespace of its own if asked.

    private: give programs in it their own /run and /etc, as a qube has; with
    files (path -> text) written there first. Both are gone on close.
    """

    def __init__(
        self,
        name: str,
        *,
        private: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._fd = _new_network_namespace()
        self._children: list[subprocess.Popen[Any]] = []
        self._mounts: subprocess.Popen[Any] | None = None
        if private is not None:
            self._mounts = self._hold_mounts(private)

    def __repr__(self) -> str:
        return f"Namespace({self.name!r})"

    @property
    def path(self) -> str:
        """A path to the namespace, for `ip link set DEV netns PATH`."""
        if self._fd < 0:
            raise LabError(f"{self.name} is closed")
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def argv(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs argv in here, as the same process."""
        enter = ["nsenter", f"--net={self.path}"]
        if self._mounts:
            holder = f"/proc/{self._mounts.pid}"
            enter.append(f"--mount={holder}/ns/mnt")
            # Without it a lab in a chroot would find itself outside of it.
            enter.append(f"--root={holder}/root")
            enter.append(f"--wd={Path.cwd()}")
        die = ["setpriv", "--pdeathsig", "KILL"]
        return [*enter, *die, "--", *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        text: str = "",
        check: bool = True,
        timeout: float = RUN_TIMEOUT,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, with `text` on its standard input.

        Raises LabError with the program's words if it fails and check is set.
        """
        done = subprocess.run(
            self.argv(argv),
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise LabError(
                f"{self.name}: {' '.join(argv)}: exit {done.returncode}: "
                f"{done.stderr.strip()}"
            )
        return done

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdout: int | IO[bytes] | None = subprocess.DEVNULL,
        stderr: int | IO[bytes] | None = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> "subprocess.Popen[bytes]":
        """Start a program; close() ends it, and so does this thread's end."""
        child = subprocess.Popen(
            self.argv(argv),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=None if env is None else dict(env),
            pass_fds=pass_fds,
        )
        self._children.append(child)
        return child

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Have this thread create its sockets in here, and come back.

        A socket stays in the namespace that it was created in. Do not start
        threads in between: they would stay.
        """
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _checked(_libc.setns(self._fd, CLONE_NEWNET), "setns")
            yield
        finally:
            _checked(_libc.setns(before, CLONE_NEWNET), "setns")
            os.close(before)

    def ip(self, batch: str) -> None:
        """Run lines of ip(8) commands as one batch."""
        lines = "\n".join(line.strip() for line in batch.strip().splitlines())
        self.run(["ip", "-batch", "-"], text=lines + "\n")

    def nft(self, rules: str) -> None:
        """Load nftables rules as one transaction."""
        self.run(["nft", "-f", "-"], text=rules)

    def sysctl(self, values: Mapping[str, int]) -> None:
        """Set values below net/, such as {"ipv4/ip_forward": 1}."""
        with self.enter():
            for name, value in values.items():
                Path("/proc/sys/net", name).write_text(f"{value}\n")

    def pids(self) -> list[int]:
        """The processes in here, but for our own."""
        inode = os.fstat(self._fd).st_ino
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                if (entry / "ns/net").stat().st_ino == inode:
                    found.append(int(entry.name))
        return found

    def close(self) -> None:
        """End the programs in here and let go of the namespace."""
        if self._fd < 0:
            return
        for child in reversed(self._children):
            kill(child)
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._mounts:
            kill(self._mounts)
        os.close(self._fd)
        self._fd = -1

    def _hold_mounts(self, files: Mapping[str, str]) -> "subprocess.Popen[Any]":
        """Start a process that holds a mount namespace with its own files."""
        holder = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),
                *("unshare", "--mount", "--propagation", "private"),
                *("sh", "-ec", _PRIVATE_MOUNTS),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert holder.stdin is not None
        assert holder.stdout is not None
        if holder.stdout.readline() != b"ready\n":
            kill(holder)
            raise LabError(f"{self.name}: no mount namespace")
        for name, text in files.items():
            path = Path(f"/proc/{holder.pid}/root{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return holder


# An overlay keeps the host's /etc readable below what a test writes there.
_PRIVATE_MOUNTS = """
mount -t tmpfs -o mode=0755 lab-run /run
mkdir /run/lab-etc-up /run/lab-etc-work
mount -t overlay -o \
lowerdir=/etc,upperdir=/run/lab-etc-up,workdir=/run/lab-etc-work overlay /etc
rm -f /etc/resolv.conf
echo ready
exec cat
"""
