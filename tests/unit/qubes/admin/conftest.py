"""A small host behind a fake qubesd, for the tests of `qvm-vpn`."""

import os
import sys
import types
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "dom0"))
import dom0


@pytest.fixture
def model():
    return dom0.standard_model()


@pytest.fixture
def host(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "isatty", lambda _fd: False)
    with dom0.running_host(model, tmp_path, monkeypatch, capsys) as host:
        yield host


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
    module = types.ModuleType("qrexec.policy.admin_client")
    module.PolicyClient = Policy
    for name in ("qrexec", "qrexec.policy"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "qrexec.policy.admin_client", module)
    Policy.files = {}
    return Policy.files
