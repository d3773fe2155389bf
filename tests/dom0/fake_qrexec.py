"""A stand-in for qrexec: runs a qube's services as programs of this machine.

Started as `qrexec-client -d DEST ... 'USER:QUBESRPC SERVICE+ARG dom0'`, or as
`qrexec-client-vm DEST SERVICE+ARG`. A qube is a folder: its home, with the
services in `rpc/`. A file `denied` in it names the services that the policy
refuses, with qrexec's exit status 126; a file `netns` names the network
namespace that its services run in.
"""

import os
import re
import sys
from pathlib import Path

ROOT = Path(os.environ["FAKE_QREXEC_ROOT"])


def decode(argument):
    def byte(match):
        text = match[0]
        return b"-" if text == b"--" else bytes([int(text[1:], 16)])

    return [
        re.sub(rb"--|-[0-9A-F]{2}", byte, part.encode()).decode()
        for part in argument.split("+")
    ]


def main(program, *args):
    if program == "qrexec-client-vm":
        dest, service = args[:2]
    else:
        dest = args[args.index("-d") + 1]
        service = args[-1].partition("QUBESRPC ")[2].partition(" ")[0]
    name, _, argument = service.partition("+")
    home = ROOT / dest
    denied = home / "denied"
    if denied.exists() and name in denied.read_text().split():
        sys.exit(126)
    os.chdir(home)
    os.environ["PATH"] = f"{ROOT / 'bin'}:{os.environ['PATH']}"
    inside = []
    if (home / "netns").exists():
        netns = (home / "netns").read_text().strip()
        inside = ["ip", "netns", "exec", netns]
    if name in ("qubes.VMExec", "qubes.VMRootExec"):
        command = [*inside, *decode(argument)]
    elif (home / "rpc" / name).exists():
        os.environ["QREXEC_SERVICE_ARGUMENT"] = argument
        command = [*inside, str(home / "rpc" / name), argument]
    else:
        sys.exit(127)
    os.execvp(command[0], command)


main(*sys.argv[1:])
