"""The data plane and the engine alone, without keeper and lock.

    python -m bench.client PROFILE --plane scalar|offload

Runs in the vpn namespace as root. Prints `connected` when traffic may flow.
What the product does besides is measured with the product itself; this is for
comparing planes.
"""

import argparse
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from bench.rig import TUN
from qubes_vpn.config.profile import parse_client_profile
from qubes_vpn.dataplane.base import Slot
from qubes_vpn.dataplane.userspace import UserspacePlane
from qubes_vpn.engine import effects
from qubes_vpn.engine.client import ClientEngine
from qubes_vpn.engine.data_channel import DataChannel
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.traffic import Traffic
from qubes_vpn.system import tun


def clock() -> Now:
    return Now(time.monotonic(), time.time())


class Client:
    def __init__(self, profile: Path, plane: str) -> None:
        parsed = parse_client_profile(
            profile.read_text(), profile.name, lambda _: b""
        )
        remote = parsed.remotes[0]
        self.stream = remote.proto.startswith("tcp")
        kind = socket.SOCK_STREAM if self.stream else socket.SOCK_DGRAM
        self.link = socket.socket(socket.AF_INET, kind)
        self.link.connect((remote.host, remote.port))
        self.link.setblocking(False)
        self.tun = os.open(tun.PATH, os.O_RDWR | os.O_NONBLOCK)
        offload = plane == "offload"
        offloads = tun.attach(self.tun, TUN, vnet_hdr=offload)
        self.traffic = Traffic()
        channel = DataChannel(self.traffic)
        self.engine = ClientEngine(
            parsed,
            remote,
            entropy=secrets.token_bytes,
            traffic=self.traffic,
            stream=self.stream,
        )
        if offload:
            from qubes_vpn.dataplane.offload import OffloadPlane

            self.plane: UserspacePlane = OffloadPlane(
                self.link,
                self.tun,
                channel,
                stream=self.stream,
                offloads=offloads,
            )
        else:
            self.plane = UserspacePlane(
                self.link, self.tun, channel, stream=self.stream
            )

    def run(self) -> None:
        self.engine.start(clock())
        self.drain()
        (fd,) = self.plane.readable()
        poll = select.epoll()
        poll.register(fd, select.EPOLLIN)
        while True:
            wait = max(0.0, self.engine.deadline() - time.monotonic())
            if poll.poll(wait):
                now = clock()
                for datagram in self.plane.pump(fd, now.mono):
                    self.engine.receive(datagram, now)
                    self.drain()
            else:
                self.engine.expire(clock())
                self.drain()

    def drain(self) -> None:
        while effect := self.engine.poll():
            self.perform(effect)

    def perform(self, effect: effects.Effect) -> None:  # noqa: C901
        match effect:
            case effects.Send(datagram):
                self.plane.send_control(datagram)
            case effects.SendData(payload):
                self.plane.send_data(payload, time.monotonic())
            case effects.InstallKeys(slot, keys):
                self.plane.install(Slot(slot), keys)
            case effects.SwapKeys():
                self.plane.swap()
            case effects.RemoveKeys(slot):
                for each in Slot if slot is None else (Slot(slot),):
                    self.plane.remove(each)
            case effects.ApplySettings(settings):
                address = str(settings.ifconfig4)
                mtu = str(settings.mtu)
                for argv in (
                    ["ip", "link", "set", TUN, "mtu", mtu, "up"],
                    ["ip", "addr", "add", address, "dev", TUN],
                ):
                    subprocess.run(argv, check=True)
            case effects.OpenForwarding():
                print("connected", flush=True)
            case effects.Ended():
                sys.exit(f"ended: {effect}")
            case _:
                print(effect, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("profile", type=Path)
    parser.add_argument("--plane", choices=("scalar", "offload"))
    given = parser.parse_args()
    client = Client(given.profile, given.plane)

    def end(*_: object) -> None:
        print(client.plane.counters(), flush=True)
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    client.run()


if __name__ == "__main__":
    main()
