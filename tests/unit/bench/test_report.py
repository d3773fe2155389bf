"""bench: ratios, what was asked for, the machine's figures, the documents."""

import json
import re

import pytest

from bench import kernel, readme, report
from bench.sections import SECTIONS, USUAL

CONSOLE = """
CHECK 0.memory begins
FIGURE keeper, engine and agent: 42 MB
FIGURE engine woke 90 times in 12 s, for 3000 packets
FIGURE 2.7 DCO up: median 36.0 Mbit/s, 31.5 to 39.9
FIGURE ours up: median 35.0 Mbit/s, 30.5 to 38.9
FIGURE 2.6 up: median 9.0 Mbit/s, 8.0 to 10.0
FIGURE up: 0.97 of OpenVPN 2.7 with DCO, 3.9 times OpenVPN 2.6
"""


def document(**figures):
    """One section, `udp`, of two rounds."""
    section = {
        "about": "what it is",
        "when": "2026-01-02T03:04:05Z",
        "rounds": 2,
        "mib": 1,
        "load": 0.25,
        "flags": {"openvpn": "openvpn --config client.ovpn"},
        "figures": figures,
    }
    versions = dict.fromkeys(("kernel", "python", "cryptography"), "9")
    versions |= {"openvpn": "OpenVPN 2.6.14 rest", "processor": "2 x some"}
    return {"versions": versions, "sections": {"udp": section}}


def costs(theirs, ours):
    return {"up, CPU s/GiB": {"openvpn": theirs, "qubes-vpn": ours}}


def test_a_ratio_is_that_of_its_round():
    of_metric = {"openvpn": [1.0, 10.0], "qubes-vpn": [2.0, 5.0]}
    assert report.ratios(of_metric, "qubes-vpn") == [2.0, 0.5]
    assert report.ratios(of_metric, "openvpn") == []


@pytest.mark.parametrize(
    ("variant", "base"),
    [
        ("qubes-vpn, 1,000 flows", "qubes-vpn, 1 flow"),
        ("qubes-vpn, 1 flow", "openvpn, 1 flow"),
        ("scalar", "openvpn, 1 flow"),
    ],
)
def test_what_a_variant_is_compared_with(variant, base):
    variants = [
        "openvpn, 1 flow",
        "qubes-vpn, 1 flow",
        "qubes-vpn, 1,000 flows",
    ]
    assert report.base_of(variant, variants) == base


@pytest.mark.parametrize(
    ("ours", "word"), [([4.0, 4.9], "held"), ([4.0, 6.2], "MISSED")]
)
def test_a_goal_is_judged_by_the_median_of_ratios(ours, word):
    told = report.text(document(**costs([10.0, 10.0], ours)))
    assert re.search(
        rf"^{word} +AES-256-GCM over UDP: CPU.*up", told, re.MULTILINE
    )


def test_a_loss_is_bold_and_says_so():
    figures = {"memory, PSS MiB": {"openvpn": [2.0], "qubes-vpn": [60.0]}}
    goal, beside = readme.verdicts(document(**figures), brief=True)[2:]
    assert goal.endswith("|  | 60 (60 to 60) |  | ≤ 110, held |")
    assert beside.endswith("| 2 | 60 | **30 (30 to 30)** | **behind** |")


def test_every_goal_names_a_section():
    assert {target.section for target in report.TARGETS} <= set(SECTIONS)
    assert "kernel" not in USUAL


def test_what_the_machine_said():
    found = kernel.figures(CONSOLE)
    assert found["up, Mbit/s"] == {
        "openvpn 2.7, DCO": [31.5, 36.0, 39.9],
        "qubes-vpn": [30.5, 35.0, 38.9],
        "openvpn": [8.0, 9.0, 10.0],
    }
    told = report.text(
        {
            "sections": {
                "kernel": {
                    **document()["sections"]["udp"],
                    "figures": found,
                }
            }
        }
    )
    assert "held   kernel plane: throughput up, of OpenVPN 2.7" in told
    assert "held   kernel plane: memory" in told


def test_a_machine_that_said_nothing_is_an_error():
    with pytest.raises(ValueError, match="no figures"):
        kernel.figures("Kernel panic")


def test_only_what_is_between_the_markers_changes(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"above\n{readme.BEGIN}\nold\n{readme.END}\nbelow\n")
    for _ in range(2):
        readme.put(page, ["new"])
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("\nbelow\n")
    assert text.count("new") == 1
    assert "old" not in text


def test_the_documents_have_the_markers_and_hold_the_newest_results():
    results = sorted((readme.ROOT / "bench/results").glob("*.json"))
    told = readme.conditions(json.loads(results[-1].read_text()))
    for name in ("README.md", "docs/benchmarks.md"):
        text = (readme.ROOT / name).read_text()
        assert text.count(readme.BEGIN) == text.count(readme.END) == 1
        assert told in text, "run python -m bench.readme"


def test_results_name_no_place_of_this_machine():
    for path in (readme.ROOT / "bench/results").glob("*.json"):
        assert not re.search(r"/(tmp|home|root|work)/", path.read_text())
