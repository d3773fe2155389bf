"""The figures that the tests of the kernel plane print in their machine.

Its console has FIGURE before them; pytest, with -rP, nothing.
"""

import re
import tempfile
from pathlib import Path

CHECKS = "0.traffic_of_two_qubes,0.memory,6.throughput"
SECONDS = 900
# With more, they wait for each other: an emulator's locks, not the driver's,
# would be measured. With one, throughput is the inverse of what a packet costs.
PROCESSORS = 1
_SPEED = re.compile(
    r"(ours|2\.7 DCO|2\.6|locked) (up|down): median ([\d.]+) Mbit/s,"
    r" ([\d.]+) to ([\d.]+)"
)
_BESIDE = re.compile(
    r"(up|down): ([\d.]+) of OpenVPN 2\.7 with DCO,"
    r" ([\d.]+) times OpenVPN 2\.6"
)
_WOKEN = re.compile(r"engine woke (\d+) times in ([\d.]+) s, for (\d+) packets")
_MEMORY = re.compile(r"keeper, engine and agent: (\d+) MB")
NAMES = {
    "2.7 DCO": "openvpn 2.7, DCO",
    "ours": "qubes-vpn",
    "locked": "qubes-vpn, locked",
    "2.6": "openvpn",
}


def console() -> str:
    """Boot the machine and give what it printed."""
    from tests.kernel import machine

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "console")
        return machine.run(SECONDS, path, PROCESSORS, ONLY=CHECKS)


def figures(text: str) -> dict[str, dict[str, list[float]]]:
    """What was said, with minimum, median and maximum for the values."""
    found: dict[str, dict[str, list[float]]] = {}
    said = sorted(
        _SPEED.findall(text), key=lambda one: list(NAMES).index(one[0])
    )
    for name, way, median, least, most in said:
        of_metric = found.setdefault(f"{way}, Mbit/s", {})
        of_metric[NAMES[name]] = [float(least), float(median), float(most)]
    for way, beside, above in _BESIDE.findall(text):
        found[f"{way}, of OpenVPN 2.7 with DCO"] = {
            "qubes-vpn": [float(beside)]
        }
        found[f"{way}, times OpenVPN 2.6"] = {"qubes-vpn": [float(above)]}
    for times, _, packets in _WOKEN.findall(text):
        each = 1000 * int(times) / int(packets)
        found["engine's wakeups per 1,000 packets"] = {"qubes-vpn": [each]}
    for size in _MEMORY.findall(text):
        found["memory, PSS MB"] = {"qubes-vpn": [float(size)]}
    if not said:
        raise ValueError(f"no figures in what it printed:\n{text[-3000:]}")
    return found
