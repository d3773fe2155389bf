"""A small host behind a fake qubesd, for the tests of `qvm-vpn`."""

import os
import stat
import sys
from pathlib import Path

import pytest

DOM0 = Path(__file__).resolve().parents[3] / "dom0"
sys.path.insert(0, str(DOM0))
try:
    import qubesadmin
except ImportError:
    sys.path.insert(0, str(DOM0 / "double"))
    import qubesadmin

import fake_qubesd  # noqa: E402

from qubes_vpn.cli.admin import main  # noqa: E402

SUPPORTED = {
    "supported-service.qubes-vpn": "1",
    "os-distribution": "fedora",
    "vmexec": "1",
}


def _program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


class Host:
    """The model of the host, and `qvm-vpn` on it."""

    def __init__(self, model, root, capsys):
        self.model = model
        self.root = root
        self._capsys = capsys
        self.app = None

    def run(self, *args):
        """Run qvm-vpn; returns (status, its output, its errors)."""
        self.model.calls.clear()
        status = main(list(args), app=qubesadmin.app.QubesLocal())
        captured = self._capsys.readouterr()
        return status, captured.out, captured.err

    def service(self, qube, name, text):
        """Give a qube a qrexec service: a shell script."""
        _program(self.root / qube / "rpc" / name, f"#!/bin/sh\n{text}\n")

    def file(self, qube, name, text):
        path = self.root / qube / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def made(self):
        """The changing calls of the last run, readable."""
        return [
            f"{dest} {method.removeprefix('admin.')}+{arg} {payload.decode()}"
            for dest, method, arg, payload in self.model.calls
            if not method.endswith((".Get", ".List", "CurrentState"))
        ]


@pytest.fixture
def model():
    model = fake_qubesd.Qubesd()
    model.add("fedora-43", klass="TemplateVM", features=dict(SUPPORTED))
    model.add(
        "debian-13", klass="TemplateVM", features={"os-distribution": "debian"}
    )
    model.add("sys-net", template="fedora-43", values={"netvm": ""})
    model.add("sys-firewall", template="fedora-43", values={"netvm": "sys-net"})
    for name in ("sys-net", "sys-firewall"):
        model.vms[name].values["provides_network"] = "True"
    model.vms["sys-firewall"].features["service.qubes-firewall"] = "1"
    model.values["default_netvm"] = "sys-firewall"
    model.add("work", template="fedora-43")
    model.add("personal", template="fedora-43")
    return model


@pytest.fixture
def host(model, tmp_path, monkeypatch, capsys):
    path = tmp_path / "qubesd.sock"
    stop = fake_qubesd.serve(model, path)
    root = tmp_path / "qubes"
    for name in (*model.vms, "sys-vpn", "disp1"):
        (root / name).mkdir(parents=True)
    for name in ("qrexec-client", "qrexec-client-vm"):
        _program(
            root / "bin" / name,
            f"#!/bin/sh\nexec {sys.executable} {DOM0 / 'fake_qrexec.py'}"
            f' {name} "$@"\n',
        )
    monkeypatch.setenv("FAKE_QREXEC_ROOT", str(root))
    monkeypatch.setattr(qubesadmin.config, "QUBESD_SOCKET", str(path))
    monkeypatch.setattr(
        qubesadmin.config, "QREXEC_CLIENT", str(root / "bin/qrexec-client")
    )
    monkeypatch.setattr(os, "isatty", lambda _fd: False)
    yield Host(model, root, capsys)
    stop()
    assert model.unknown == []


@pytest.fixture
def vpn(host):
    """The host with a VPN qube that knows one endpoint."""
    host.service("sys-vpn", "qubesvpn.Endpoints", "echo 203.0.113.7 udp 1194")
    host.service("sys-vpn", "qubesvpn.Import", "cat >imported.$1")
    host.service("sys-vpn", "qubesvpn.Status", "echo connected")
    status, _, errors = host.run("create", "sys-vpn", "--template=fedora-43")
    assert (status, errors) == (0, "")
    return host


class Policy:
    """qrexec.policy.admin_client.PolicyClient, in memory."""

    files: dict = {}  # noqa: RUF012  one policy for all clients

    def policy_list(self):
        return list(self.files)

    def policy_get(self, name):
        return self.files[name], "token"

    def policy_replace(self, name, content):
        self.files[name] = content

    def policy_remove(self, name):
        del self.files[name]


@pytest.fixture
def policy(monkeypatch):
    import types

    module = types.ModuleType("qrexec.policy.admin_client")
    module.PolicyClient = Policy
    for name in ("qrexec", "qrexec.policy"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "qrexec.policy.admin_client", module)
    Policy.files = {}
    return Policy.files
