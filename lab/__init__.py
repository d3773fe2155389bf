"""A Qubes network on one Linux machine, in network namespaces.

    with Lab() as lab, lab.capture(Endpoint(SERVER4, "udp", 1194)) as cap:
        fetch(lab.app(1))
    print(cap.report())

lab.topology: the network; lab.capture: what left on the uplink; lab.traffic:
what qubes do; lab.openvpn: the real openvpn as the peer; lab.relay: a bad link.
"""

from lab.capture import Capture, Endpoint, Leak, Report
from lab.namespace import LabError, Namespace
from lab.topology import Lab

__all__ = [
    "Capture",
    "Endpoint",
    "Lab",
    "LabError",
    "Leak",
    "Namespace",
    "Report",
]
