"""Every section of bench measures what its goals are about: shape, not speed."""

import json
import socket

import pytest

from bench import report, run, sections
from bench.rig import Rig
from qubes_vpn.dataplane.link import UDP_GRO

SLOW = ("routes", "flows", "reconnect", "guardian")
# floor installs packages, kernel boots a machine
QUICK = [
    pytest.param(name, marks=[pytest.mark.long] * (name in SLOW))
    for name in sections.USUAL
    if name != "floor"
]


@pytest.mark.parametrize("name", QUICK)
def test_a_section(name):
    made = sections.Run(name, rounds=1, mib=1, seconds=0.2)
    sections.SECTIONS[name](made)
    assert json.loads(json.dumps(made.figures)) == made.figures
    values = [
        (metric, variant, each)
        for metric, of_metric in made.figures.items()
        for variant, each in of_metric.items()
    ]
    assert values
    assert all(each and min(each) >= 0 for *_, each in values), values
    for target in report.TARGETS:
        if target.section == name:
            assert target.variant in made.figures[target.metric]
            assert not target.base or target.base in made.figures[target.metric]
    assert not any("/tmp/" in words for words in made.flags.values())


def test_a_byte_too_few_and_there_is_no_report(monkeypatch):
    made = sections.Run("udp", rounds=1, mib=1, seconds=0.2)
    begin = run.begin

    def one_less(process):
        found = json.loads(begin(process))
        return json.dumps({**found, "received": found["received"] - 1})

    monkeypatch.setattr(run, "begin", one_less)
    with pytest.raises(run.MismatchError):
        sections.tcp(made)


@pytest.mark.parametrize("merges", [True, False])
def test_a_path_with_gro_merges_datagrams(merges):
    with Rig() as rig:
        if merges:
            rig.gro()
        with rig.vpn.enter():
            sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with rig.internet.enter():
            source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sink, source:
            sink.setsockopt(socket.SOL_UDP, UDP_GRO, 1)
            sink.bind(("10.99.2.1", 0))
            sink.settimeout(5)
            source.connect(sink.getsockname())
            for _ in range(60):
                source.send(bytes(1000))
            sizes, received = [], 0
            while received < 60_000:
                sizes.append(len(sink.recv(1 << 16)))
                received += sizes[-1]
    assert (max(sizes) > 1000) == merges, sizes
