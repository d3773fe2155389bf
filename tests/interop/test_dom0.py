"""From one command in dom0 to traffic: the fake dom0 and the real qube.

`qvm-vpn create --profile` runs against the fake qubesd; the qrexec calls that
it causes are served by the product in the lab's VPN qube.
"""

import shlex
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "dom0")]
import dom0  # noqa: E402
from qube import Qube  # noqa: E402

from lab.traffic import fetch  # noqa: E402

OWN_TIME_S = 10


@pytest.fixture
def host(tmp_path, monkeypatch, capsys):
    model = dom0.standard_model()
    with dom0.running_host(model, tmp_path, monkeypatch, capsys) as host:
        yield host


def serve_by(host, qube):
    """Have the qube in the lab answer the calls to sys-vpn."""
    for name in ("Import", "Endpoints", "Status", "Switch"):
        words = [
            *(sys.executable, "-m", "qubes_vpn", "rpc", name),
            *("--folder", str(qube.profiles)),
        ]
        command = shlex.join(qube.lab.vpn.argv(words))
        # as the packaged service has it; the namespace wants our folder
        host.service(
            "sys-vpn",
            f"qubesvpn.{name}",
            f'cd {HERE.parents[1]}\nexec {command} "--argument=$1"',
        )


def test_from_create_to_traffic(host, lab, start_server, tmp_path):
    server = start_server()
    qube = Qube(lab, tmp_path)
    qube.lock()
    with lab.capture(server.settings.endpoint) as capture:
        qube.start()
        qube.wait_reason("QV-330")
        serve_by(host, qube)
        host.file("work", "berlin.ovpn", server.client_profile())

        before = time.monotonic()
        status, output, errors = host.run(
            *("create", "sys-vpn", "--template=fedora-43", "--yes"),
            "--profile=work:berlin.ovpn",
        )
        taken = time.monotonic() - before
        assert (status, errors) == (0, ""), output
        assert taken < OWN_TIME_S

        endpoint = server.settings.endpoint
        assert host.model.vms["sys-vpn"].firewall == [
            f"action=accept dst4={endpoint.address}/32 proto={endpoint.proto}"
            f" dstports={endpoint.port}-{endpoint.port}",
            "action=drop",
        ]
        assert host.run("assign", "sys-vpn", "personal")[0] == 0
        qube.wait_connected("berlin")
        assert fetch(lab.app(1)).status == 200
        assert "sys-vpn: connected; berlin; pinned" in host.run("status")[1]
        qube.stop()
        report = capture.report()
    assert not report.leaks, str(report)


def test_a_bad_profile_leaves_no_qube(host, lab, start_server, tmp_path):
    start_server()
    qube = Qube(lab, tmp_path)
    qube.lock()
    qube.start()
    qube.wait_reason("QV-330")
    serve_by(host, qube)
    host.file("work", "x.ovpn", "client\nup /bin/sh\n")
    status, _, errors = host.run(
        *("create", "sys-vpn", "--template=fedora-43", "--yes"),
        "--profile=work:x.ovpn",
    )
    assert status == 69
    assert "status 78" in errors
    assert "sys-vpn" not in host.model.vms
    qube.stop()
