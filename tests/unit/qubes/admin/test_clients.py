"""`assign`, `unassign`, `status`, `updates`, and the command line itself."""

import json
import subprocess
import sys

import pytest

from qubes_vpn.qubes.admin import updates


def test_assign_and_unassign(vpn):
    assert vpn.run("assign", "sys-vpn", "work", "personal")[0] == 0
    work = vpn.model.vms["work"]
    assert work.values["netvm"] == "sys-vpn"
    assert "qubes-vpn-client" in work.tags
    assert vpn.run("assign", "sys-vpn", "work")[1] == "nothing to do\n"
    assert vpn.run("unassign", "work")[0] == 0
    assert work.values["netvm"] == ""
    assert "qubes-vpn-client" not in work.tags
    assert vpn.run("unassign", "personal", "--to=sys-firewall")[0] == 0
    assert vpn.model.vms["personal"].values["netvm"] == "sys-firewall"


def test_assign_is_all_or_nothing(vpn):
    vpn.model.fail["admin.vm.property.Set", "personal"] = ("QubesVMError", "no")
    before = dict(vpn.model.vms["work"].values)
    assert vpn.run("assign", "sys-vpn", "work", "personal")[0] == 71
    assert vpn.model.vms["work"].values == before
    assert vpn.model.vms["work"].tags == set()
    # the net qube was the default before: it is that again, and not a copy
    assert any("property.Reset+netvm" in line for line in vpn.made())


@pytest.mark.parametrize(
    ("qubes", "words"),
    [
        (("nope",), "no such qube"),
        (("dom0",), "updates on sys-vpn"),
        (("fedora-43",), "updates on sys-vpn"),
        (("sys-vpn",), "its own net qube"),
        (("work", "nope"), "no such qube"),
    ],
)
def test_assign_refuses_before_it_changes(vpn, qubes, words):
    status, _, errors = vpn.run("assign", "sys-vpn", *qubes)
    assert status in (64, 69)
    assert words in errors
    assert vpn.made() == []


def test_a_loop_is_refused_by_qubesd_and_undone(vpn):
    vpn.model.vms["sys-vpn"].values["netvm"] = "sys-firewall"
    status, _, errors = vpn.run("assign", "sys-vpn", "sys-firewall")
    assert status == 71
    assert "Loop" in errors
    assert "while: qvm-prefs -- sys-firewall netvm sys-vpn" in errors
    assert vpn.model.vms["sys-firewall"].tags == set()


def test_status(vpn):
    vpn.run("assign", "sys-vpn", "work")
    assert vpn.run("status")[1] == (
        "sys-vpn: not running; no profile; pinned; through sys-firewall; "
        "for work\n"
    )
    vpn.model.vms["sys-vpn"].state = "Running"
    vpn.run("use", "sys-vpn", "home")
    assert "sys-vpn: connected; home; pinned" in vpn.run("status", "sys-vpn")[1]


def test_status_for_programs(vpn):
    vpn.run("assign", "sys-vpn", "work")
    assert json.loads(vpn.run("status", "--json")[1]) == {
        "v": 1,
        "qubes": [
            {
                "name": "sys-vpn",
                "state": "not running",
                "profile": "",
                "pinned": True,
                "netvm": "sys-firewall",
                "clients": ["work"],
            }
        ],
    }


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo blocked QV-017", "blocked QV-017"),
        (r"printf '\033[2Jconnected'", "strange answer"),
        ("echo all is well", "strange answer"),
        ("yes connected", "strange answer"),
        ("exit 1", "no answer"),
    ],
)
def test_status_shows_only_words_of_ours(vpn, script, words):
    vpn.model.vms["sys-vpn"].state = "Running"
    if script.startswith("yes"):
        script += " | head -1000"
    vpn.service("sys-vpn", "qubesvpn.Status", script)
    output = vpn.run("status")[1]
    assert words in output
    assert "\033" not in output


def test_a_clone_and_a_restored_backup_are_vpn_qubes_too(vpn):
    """Qubes copies tags, features and rules; no name is kept anywhere."""
    vpn.run("pin", "sys-vpn", "--yes")
    original = vpn.model.vms["sys-vpn"]
    vpn.model.add(
        "sys-vpn1",
        template=original.template,
        values=dict(original.values),
        features=dict(original.features),
        tags=set(original.tags),
        firewall=list(original.firewall),
    )
    vpn.service("sys-vpn1", "qubesvpn.Endpoints", "echo 203.0.113.7 udp 1194")
    assert vpn.run("pin", "sys-vpn1")[0] == 0
    assert vpn.model.vms["sys-vpn1"].firewall == original.firewall
    assert vpn.run("use", "sys-vpn1", "home")[0] == 0
    assert vpn.run("assign", "sys-vpn1", "work")[0] == 0
    assert "sys-vpn1: running, no answer; home; pinned" in vpn.run("status")[1]
    assert vpn.run("remove", "sys-vpn", "--yes")[0] == 0
    assert vpn.model.vms["work"].values["netvm"] == "sys-vpn1"


def test_updates(vpn, policy):
    vpn.model.values["updatevm"] = "sys-firewall"
    assert "default proxy" in vpn.run("updates", "status")[1]
    assert vpn.run("updates", "on", "sys-vpn")[0] == 0
    assert policy[updates.POLICY_NAME].splitlines()[1:] == [
        "qubes.UpdatesProxy * @type:TemplateVM @default allow target=sys-vpn",
        "qubes.UpdatesProxy * @type:TemplateVM sys-vpn allow target=sys-vpn",
        "qubes.UpdatesProxy * @type:TemplateVM @anyvm deny",
    ]
    features = vpn.model.vms["sys-vpn"].features
    assert features["service.qubes-updates-proxy"] == "1"
    assert vpn.model.values["updatevm"] == "sys-vpn"
    assert vpn.run("updates", "on", "sys-vpn")[1] == "nothing to do\n"
    assert "through sys-vpn" in vpn.run("updates", "status")[1]
    assert vpn.run("updates", "off")[0] == 0
    assert policy == {}
    assert "service.qubes-updates-proxy" not in features
    assert "updatevm" not in vpn.model.values


def test_updates_roll_back_the_policy(vpn, policy):
    vpn.model.fail["admin.property.Set", "updatevm"] = ("QubesVMError", "no")
    assert vpn.run("updates", "on", "sys-vpn")[0] == 71
    assert policy == {}
    features = vpn.model.vms["sys-vpn"].features
    assert "service.qubes-updates-proxy" not in features


def test_updates_dry_run_is_for_a_shell(vpn, policy, tmp_path):
    status, output, _ = vpn.run("updates", "on", "sys-vpn", "--dry-run")
    assert status == 0
    assert policy == {}
    tool = tmp_path / "qubes-policy"
    tool.write_text(f"#!/bin/sh\ncat >{tmp_path}/out\n")
    tool.chmod(0o755)
    line = output[output.index("sh -c") :].rpartition("\nqubes-prefs")[0]
    subprocess.run(
        ["sh", "-c", line],
        check=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )
    assert "@default allow target=sys-vpn\n" in (tmp_path / "out").read_text()


def test_updates_without_the_policy_tools(vpn, monkeypatch):
    monkeypatch.setitem(sys.modules, "qrexec", None)
    status, _, errors = vpn.run("updates", "on", "sys-vpn")
    assert status == 69
    assert "dom0" in errors


def test_help_and_version_need_no_qubes(monkeypatch, capsys):
    from qubes_vpn.cli.admin import main

    monkeypatch.setitem(sys.modules, "qubesadmin", None)
    assert main(["--help"]) == 0
    assert main(["--version"]) == 0
    assert main(["nonsense"]) == 64
    capsys.readouterr()
    assert main(["status"]) == 69
    assert "qubes-core-admin-client" in capsys.readouterr().err


def test_dom0_loads_nothing_of_ours_but_errors():
    code = (
        "import sys, qubes_vpn.cli.admin as a; a.make_parser();"
        "print(*sorted(m for m in sys.modules if m.startswith('qubes_vpn')))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    outside = [
        name for name in output if not name.startswith("qubes_vpn.qubes.admin")
    ]
    assert outside == [
        "qubes_vpn",
        "qubes_vpn.cli",
        "qubes_vpn.cli.admin",
        "qubes_vpn.errors",
        "qubes_vpn.qubes",
    ]
