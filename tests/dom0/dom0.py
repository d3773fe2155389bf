"""A small host: a fake qubesd, a fake qrexec, and `qvm-vpn` on them.

With Qubes' own qubesadmin where it can be imported, else with a stand-in.
"""

import contextlib
import stat
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
try:
    import qubesadmin
except ImportError:
    sys.path.insert(0, str(HERE / "double"))
    import qubesadmin

import fake_qubesd  # noqa: E402

from qubes_vpn.cli.admin import main  # noqa: E402

SUPPORTED = {
    "supported-service.qubes-vpn": "1",
    "os-distribution": "fedora",
    "vmexec": "1",
}


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def standard_model():
    """A host with two templates, net qubes and two other qubes."""
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


class Host:
    """The model of the host, and `qvm-vpn` on it."""

    def __init__(self, model, root, capsys=None):
        self.model = model
        self.root = root
        self._capsys = capsys

    def run(self, *args):
        """Run qvm-vpn; returns (status, its output, its errors)."""
        self.model.calls.clear()
        status = main(list(args), app=qubesadmin.app.QubesLocal())
        if self._capsys is None:
            return status, "", ""
        captured = self._capsys.readouterr()
        return status, captured.out, captured.err

    def service(self, qube, name, text):
        """Give a qube a qrexec service: a shell script."""
        write_program(self.root / qube / "rpc" / name, f"#!/bin/sh\n{text}\n")

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


@contextlib.contextmanager
def running_host(model, folder, monkeypatch, capsys=None):
    """Serve the model; afterwards no unknown call may have been made."""
    path = folder / "qubesd.sock"
    stop = fake_qubesd.serve(model, path)
    root = folder / "qubes"
    for name in (*model.vms, "sys-vpn", "disp1"):
        (root / name).mkdir(parents=True)
    for name in ("qrexec-client", "qrexec-client-vm"):
        write_program(
            root / "bin" / name,
            f"#!/bin/sh\nexec {sys.executable} {HERE / 'fake_qrexec.py'}"
            f' {name} "$@"\n',
        )
    monkeypatch.setenv("FAKE_QREXEC_ROOT", str(root))
    monkeypatch.setattr(qubesadmin.config, "QUBESD_SOCKET", str(path))
    monkeypatch.setattr(
        qubesadmin.config, "QREXEC_CLIENT", str(root / "bin/qrexec-client")
    )
    try:
        yield Host(model, root, capsys)
    finally:
        stop()
    assert model.unknown == []
