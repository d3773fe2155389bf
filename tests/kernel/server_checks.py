"""Our server in the machine: the driver with many peers. Run as a program."""

import json
import time

from lab import Lab, openvpn27
from lab.appliance import Appliance
from lab.openvpn import Client, Settings
from lab.ours import COMMAND, OurServer
from lab.traffic import Flood, download, fetch

# Everything is some ten times slower than on a real machine.
PATIENCE = 90
BULK = 2_000_000


class DcoClient(Client):
    """OpenVPN 2.7, with the driver."""

    @property
    def program(self):
        """The words that start it; fetched when first needed."""
        return openvpn27.command()

    def config(self):
        return super().config().replace("disable-dco\n", "")


def served(server):
    words = [
        *COMMAND[:-1],
        "status",
        "--json",
        "--control",
        str(server.control),
    ]
    return json.loads(server.namespace.run(words).stdout)["clients"]


def our_server_has_the_driver_carry_its_clients():
    """Userspace 2.6, the driver by 2.7 and ours: traffic, keys, counters."""
    with Lab() as lab:
        settings = Settings(extra=("duplicate-cn",))
        with OurServer(lab.internet, lab.scratch, settings) as server:
            assert "data plane kernel" in server.log, server.log
            profile = server.client_profile()
            for make in (Client, DcoClient):
                client = make(
                    lab.vpn, lab.scratch, profile, extra=["reneg-sec 6"]
                )
                with client:
                    client.wait_connected(timeout=PATIENCE)
                    try:
                        with Flood(lab.app(1), rate=30) as flood:
                            flood.wait_echoes(10, timeout=PATIENCE)
                            # the first ones were sent before the way was open
                            early = flood.sent - len(flood.echoes)
                            server.wait_rekeyed(2, timeout=PATIENCE)
                            flood.wait_echoes(50, timeout=PATIENCE)
                            lost = flood.sent - len(flood.echoes) - early
                    except BaseException:
                        print(server.log, client.log[-3000:], flush=True)  # noqa: T201
                        raise
                    assert lost < flood.sent * 0.1, (lost, flood.sent)
                    assert download(lab.app(2), BULK) == BULK
                    time.sleep(6)
                    assert served(server)[-1]["rx_bytes"] > 10_000
            with Appliance(lab).lock() as appliance:
                appliance.connect(profile)
                appliance.wait_connected(PATIENCE)
                assert fetch(lab.app(1)).status == 200
                assert download(lab.app(1), BULK) == BULK
            device = server.device
            show = ["ip", "-d", "link", "show", device]
            assert " ovpn " in lab.internet.run(show).stdout
        assert lab.internet.run(show, check=False).returncode


if __name__ == "__main__":
    our_server_has_the_driver_carry_its_clients()
    print("SERVER CHECKED", flush=True)  # noqa: T201 the machine's console
