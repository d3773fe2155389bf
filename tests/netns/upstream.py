"""The fourth layer in the lab: the firewall of the VPN qube's net qube.

What qubes-firewall there makes of the rules that dom0 has set on the VPN
qube: by source, in its forward chain, with a drop at the end.
"""

from lab import Capture
from lab import addresses as at
from qubes_vpn.qubes.admin.pin import Pinned, pinned_rules


def pin(lab, *endpoints):
    """Load the rules of `qvm-vpn pin` for these endpoints into the net qube."""
    pinned = [Pinned(e.address, e.proto, e.port) for e in endpoints]
    rules = "".join(map(_rule, pinned_rules(pinned)))
    lab.net.nft(f"""
        add table inet qubes-firewall
        delete table inet qubes-firewall
        table inet qubes-firewall {{
            chain pins {{
                {rules}
            }}
            chain forward {{
                type filter hook forward priority filter; policy drop;
                ct state established,related accept
                iifname != "vif*" accept
                jump pins
            }}
        }}
    """)


def _rule(text):
    words = dict(word.split("=", 1) for word in text.split())
    if words["action"] == "drop":
        return "drop\n"
    version = 4 if "dst4" in words else 6
    match = f"{'ip' if version == 4 else 'ip6'} daddr {words[f'dst{version}']}"
    return f"{match} {words['proto']} dport {words['dstports']} accept\n"


def capture_outside(lab, *allowed):
    """Capture behind the net qube, where the fourth layer has been passed."""
    return Capture(
        lab.internet,
        others=("lo",),
        uplink=[at.NET_OUTSIDE4, at.NET_OUTSIDE6],
        gateway=(at.ISP4, at.ISP6),
        apps=tuple(a for app in at.APPS for a in (app.ip4, app.ip6)),
        allowed=allowed,
    )
