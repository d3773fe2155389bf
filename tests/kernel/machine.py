"""A virtual machine with the ovpn driver, on the host's own files.

QEMU emulates it (TCG: no KVM needed), the root is the host's over virtiofs,
and nothing that the machine writes reaches the host: it writes to overlays.
Its PID 1 is guest-init; what it prints is what there is to read.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab.namespace import LabError
from tests.kernel.packages import kernel

ROOT = Path(__file__).parents[2]

# Debian 12 has it in QEMU's package, later ones in one of its own.
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
QEMU = "qemu-system-x86_64"
MEMORY = "1536M"
PROCESSORS = min(os.cpu_count() or 1, 4)

# An emulator before QEMU 8.1 may run an instruction that the other processor
# has just written over, and the kernel dies of the breakpoint it finds there.
EMULATED_BADLY = "Oops: int3"
STARTS_MAX = 3


def _virtiofsd() -> str:
    for path in VIRTIOFSD:
        if Path(path).exists():
            return path
    raise LabError("no virtiofsd: install qemu-system-x86")


def _share(sock: Path) -> "subprocess.Popen[bytes]":
    """Serve the host's root to the machine."""
    sharing = subprocess.Popen(
        [
            _virtiofsd(),
            f"--socket-path={sock}",
            *("-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    limit = time.monotonic() + 10
    while not sock.exists():
        if time.monotonic() > limit or sharing.poll() is not None:
            sharing.kill()
            raise LabError("virtiofsd does not start")
        time.sleep(0.02)
    return sharing


def run(
    timeout: float,
    output: Path,
    processors: int = PROCESSORS,
    **environment: str,
) -> str:
    """Boot, run tests.kernel.guest in it, and give all that it printed.

    A machine that its emulator broke is started again, and that is printed.
    environment: for the guest's process; no spaces.
    """
    for start in range(1, STARTS_MAX + 1):
        said = _start(timeout, output, processors, **environment)
        if EMULATED_BADLY not in said:
            break
        print(f"start {start}: the emulator broke the kernel")  # noqa: T201
    return said


def _start(
    timeout: float, output: Path, processors: int, **environment: str
) -> str:
    """Boot once."""
    if shutil.which(QEMU) is None:
        raise LabError(f"no {QEMU}: install qemu-system-x86")
    modules, version = kernel()
    # compiled here: there it would be done at every start of a program
    packages = [str(ROOT / name) for name in ("qubes_vpn", "lab", "tests")]
    subprocess.run([sys.executable, "-m", "compileall", "-q", *packages])
    words = {"GUEST_ROOT": str(ROOT)} | environment
    append = [
        "console=ttyS0 quiet panic=-1 rootfstype=virtiofs root=rootfs ro",
        f"init={ROOT}/tests/kernel/guest-init",
        *(f"{name}={value}" for name, value in words.items()),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        sock = Path(scratch) / "fs"
        sharing = _share(sock)
        command = [
            QEMU,
            *("-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"),
            *("-m", MEMORY, "-smp", str(processors)),
            *("-nographic", "-nodefaults", "-serial", "stdio", "-no-reboot"),
            *("-object", f"memory-backend-memfd,id=mem,size={MEMORY},share=on"),
            *("-numa", "node,memdev=mem"),
            *("-chardev", f"socket,id=fs,path={sock}"),
            *("-device", "vhost-user-fs-pci,chardev=fs,tag=rootfs"),
            *("-kernel", str(modules / "lib/modules" / version / "vmlinuz")),
            *("-append", " ".join(append)),
        ]
        try:
            with output.open("wb") as printed:
                subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    timeout=timeout,
                )
        except subprocess.TimeoutExpired:
            pass  # what it printed so far says where it hung
        finally:
            sharing.kill()
            sharing.wait()
    return output.read_text(errors="replace")
