# ruff: noqa: T201 -- the console is where it reports
"""Where the checks in the machine are done: a lab, a server, our client."""

import contextlib
import json
from dataclasses import dataclass

from lab import Lab, openvpn27
from lab import addresses as at
from lab.appliance import Appliance
from lab.openvpn import Client, Server, Settings
from lab.traffic import Flood

DEVICE = "ovpn-vpn"
# Everything is some ten times slower than on a real machine.
PATIENCE = 90
# What a round trip of a new client costs is paid once for all of a group.
CONNECTED = "connected "


class Dco:
    """For openvpn's programs: version 2.7, with the driver."""

    @property
    def program(self):
        """The words that start it; fetched when first needed."""
        return openvpn27.command()

    def config(self):
        return super().config().replace("disable-dco\n", "")


class DcoServer(Dco, Server):
    """OpenVPN 2.7, whose data plane is the driver too."""


class DcoClient(Dco, Client):
    """OpenVPN 2.7 as the client, with the driver."""


@dataclass
class Place:
    """A lab, its server, and our client, connected."""

    lab: Lab
    server: Server
    appliance: Appliance

    def link(self, device=DEVICE):
        """The device as ip(8) describes it; None when it is not there."""
        done = self.lab.vpn.run(["ip", "-j", "-d", "link"])
        found = {each["ifname"]: each for each in json.loads(done.stdout)}
        return found.get(device)

    def assert_kernel(self):
        status = self.appliance.status()
        assert status["plane"] == {"name": "kernel", "why": ""}, status
        assert status["device"] == DEVICE
        found = self.link()
        assert found["linkinfo"]["info_kind"] == "ovpn", found
        assert "LOWER_UP" in found["flags"], found
        # no userspace plane stands by
        assert self.link("tun-vpn") is None
        return status

    @contextlib.contextmanager
    def reconnects(self):
        """What happens inside costs the connection, and it comes back."""
        before = self.appliance.log().count(CONNECTED)
        with Flood(self.lab.app(1)) as flood:
            flood.wait_echoes(10, PATIENCE)
            yield flood
            self.appliance.wait_connected(PATIENCE, count=before + 1)
            flood.wait_echoes(10, PATIENCE)
        self.assert_kernel()

    @contextlib.contextmanager
    def silent(self):
        """Nothing but the tunnel's own packets leaves."""
        with self.lab.capture(self.server.settings.endpoint) as capture:
            try:
                yield
            except BaseException:
                print(self.appliance.log(), self.server.log[-3000:])
                raise
        report = capture.report()
        assert not report.leaks, str(report)
        assert report.tunnel, str(report)


@contextlib.contextmanager
def connected(server=Server, profile="", *, locked=True, **fields):
    """Make a Place: a lab with its lock, or none, a server, and our client."""
    outside6 = fields.get("address") == at.SERVER6
    words = ["--uplink6", f"{at.VPN.ip6},{at.NET.ip6}"] if outside6 else []
    with Lab(ipv6=outside6) as lab:
        peer = server(lab.internet, lab.scratch, Settings(**fields))
        with peer, Appliance(lab) as appliance:
            if locked:
                appliance.lock()
            else:
                words += ["--unlocked", "--uplink", "eth0"]
            appliance.connect(peer.client_profile() + profile, *words)
            appliance.wait_connected(PATIENCE)
            yield Place(lab, peer, appliance)
