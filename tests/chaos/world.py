"""The lab under test: two qubes that never stop, and what left meanwhile."""

import contextlib
import dataclasses
import time

from lab import Lab, LabError
from lab import addresses as at
from lab.appliance import Appliance
from lab.background import Background
from lab.openvpn import Server, Settings
from lab.topology import _dnat_dns
from lab.traffic import Flood, resolve
from tests.netns.toy import without_owners

RATE = 40
FRESH = 3
RECOVERY = 60.0
WINDOW = 0.1
# Of the probes in a window between two events, over the whole run.
GOODPUT = 0.9
# Silence is noticed after 4 s, as a provider's short keepalive has it.
SETTINGS = Settings(
    ipv6=True,
    push=("redirect-gateway def1 ipv6", f"dhcp-option DNS {at.TUNNEL_DNS}"),
    extra=("keepalive 1 4",),
)
OTHER = dataclasses.replace(SETTINGS, address=at.SECOND_SERVER4, tunnel=1)


class Asker(Background):
    """An app qube that asks for a name again and again."""

    def __init__(self, namespace):
        super().__init__()
        self._namespace = namespace
        self.asked = self.answered = 0

    def _run(self):
        while not self._stop.wait(0.1):
            self.asked += 1
            with contextlib.suppress(OSError, LabError):
                self.answered += bool(resolve(self._namespace, timeout=0.3))


class World:
    """Lab, servers, appliance, traffic and captures, from enter to exit."""

    def __init__(self):
        self._closing = contextlib.ExitStack()
        self.profile = 0
        self.frames_out = self.tunnel_packets = 0
        self.in_windows = self.answered = 0

    def __enter__(self):
        with contextlib.ExitStack() as closing:
            self.lab = closing.enter_context(Lab(ipv6=True))
            self.servers = [
                closing.enter_context(
                    Server(self.lab.internet, self.lab.scratch, settings)
                )
                for settings in (SETTINGS, OTHER)
            ]
            self.appliance = Appliance(self.lab)
            closing.callback(self._stop)
            self.floods = [
                closing.enter_context(Flood(self.lab.app(n), rate=RATE, to=to))
                for n in (1, 2)
                for to in (at.WEB4, at.WEB6)
            ]
            self.asker = closing.enter_context(Asker(self.lab.app(1)))
            self._closing = closing.pop_all()
        return self

    def __exit__(self, *_):
        self._closing.close()

    def _stop(self):
        self.appliance.stop()

    # --- the control, and the beginning

    def control(self):
        """The same traffic without us: all of it is seen in clear."""
        with self._capture() as capture:
            for flood in self.floods:
                flood.wait_echoes(3)
            time.sleep(0.5)
        seen = {
            (leak.what.destination.version, leak.what.destination_port)
            for leak in capture.report().canaries
            if leak.outbound
        }
        wanted = {(4, at.ECHO_PORT), (6, at.ECHO_PORT), (4, at.DNS_PORT)}
        assert wanted <= seen, f"void: the control shows only {seen}"
        self.lab.outside_dns.asked.clear()

    def begin(self):
        """Lock, connect, and watch the uplink from here on."""
        without_owners(self.lab)  # or half of the events could not happen
        self.appliance.lock()
        time.sleep(0.1)  # a query on its way is answered
        self.lab.outside_dns.asked.clear()
        self.capture = self._capture().start()
        self.start()
        self.recovered()

    def start(self):
        """Start the client with the profile of now."""
        profile = self.servers[self.profile].client_profile()
        self.appliance.connect(profile)

    def _capture(self):
        return self.lab.capture(SETTINGS.endpoint, OTHER.endpoint)

    # --- what is judged

    def recovered(self):
        """Wait until every flood is answered again; give the seconds."""
        begin = time.monotonic()
        marks = [flood.sent for flood in self.floods]
        for flood, mark in zip(self.floods, marks, strict=True):
            while fresh(flood, mark) < FRESH:
                if self.appliance.client.poll() is not None:
                    raise AssertionError(
                        f"the client ended:\n{self.appliance.log()[-3000:]}"
                    )
                if time.monotonic() > begin + RECOVERY:
                    raise AssertionError(
                        f"{flood._name} {flood._target}: nothing came back in"
                        f" {RECOVERY:.0f} s:\n{self.appliance.log()[-3000:]}"
                    )
                time.sleep(0.01)
        return time.monotonic() - begin

    def window(self):
        """A moment without any event: how much of it is answered."""
        marks = [flood.sent for flood in self.floods]
        time.sleep(WINDOW)
        ends = [flood.sent for flood in self.floods]
        time.sleep(0.03)
        for flood, mark, end in zip(self.floods, marks, ends, strict=True):
            self.in_windows += end - mark
            self.answered += between(flood, mark, end)

    def judge(self):
        """Assert that nothing has left since the last time."""
        old, self.capture = self.capture, self._capture().start()
        report = old.report()
        self.frames_out += report.outbound
        self.tunnel_packets += report.tunnel
        assert not report.leaks, f"LEAK: {report}"
        assert not self.lab.outside_dns.asked, "LEAK: a query left"
        assert report.tunnel, "nothing passes the tunnel: void"

    def finish(self):
        """The last judgement."""
        self.judge()
        self.capture.stop()
        share = self.answered / self.in_windows
        assert share > GOODPUT, f"goodput {share:.3f} between events"
        assert self.asker.answered > self.asker.asked / 10, "no names"
        return share

    # --- what Qubes does after some of the events

    def agent_again(self):
        """Load the agent's tables again, as its services do."""
        lab = self.lab
        for family in ("ip", "ip6"):
            lab.vpn.run(
                ["nft", "delete", "table", family, "qubes"], check=False
            )
        lab._load_agent(lab.vpn, _dnat_dns(*at.QUBES_DNS))
        for number, app in enumerate(at.APPS, 1):
            lab.vpn.nft(f"""
                add element ip qubes allowed {{ "vif{number}.0" . {app.ip4} }}
                add element ip qubes downstream {{ {app.ip4} }}
                add element ip6 qubes allowed {{ "vif{number}.0" . {app.ip6} }}
                add element ip6 qubes downstream {{ {app.ip6} }}
            """)

    def uplink_routes(self):
        """The routes that went with the uplink."""
        self.lab.vpn.ip(f"""
            route replace {at.NET.ip4} dev eth0
            route replace default via {at.NET.ip4} dev eth0 onlink
        """)


def fresh(flood, mark):
    """How many probes sent since `mark` were answered, three at most."""
    return sum(echo.number >= mark for echo in flood.echoes[-FRESH:])


def between(flood, mark, end):
    """How many of the probes mark..end were answered."""
    found = set()
    for echo in reversed(flood.echoes):
        if echo.number < mark - RATE:
            break
        if mark <= echo.number < end:
            found.add(echo.number)
    return len(found)
