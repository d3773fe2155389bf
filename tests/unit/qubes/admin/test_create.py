"""`qvm-vpn create`, `import`, `use` and `remove`."""

import shlex

import pytest

PINNED = [
    "action=accept dst4=203.0.113.7/32 proto=udp dstports=1194-1194",
    "action=drop",
]


def test_makes_a_closed_vpn_qube(host):
    status, _, errors = host.run("create", "sys-vpn", "--template=fedora-43")
    assert (status, errors) == (0, "")
    qube = host.model.vms["sys-vpn"]
    assert qube.klass == "AppVM"
    assert qube.label == "orange"
    assert qube.values == {
        "provides_network": "True",
        "netvm": "sys-firewall",
        "memory": "300",
    }
    assert qube.features == {"service.qubes-vpn": "1"}
    assert qube.tags == {"created-by-dom0", "qubes-vpn"}
    assert qube.firewall == ["action=drop"]


def test_is_idempotent(host):
    host.run("create", "sys-vpn", "--template=fedora-43", "--autostart")
    status, output, _ = host.run(
        "create", "sys-vpn", "--template=fedora-43", "--autostart"
    )
    assert status == 0
    assert "nothing to do" in output
    assert host.made() == []


def test_sends_the_profile_from_qube_to_qube_and_pins(vpn):
    vpn.file("work", "down/my vpn.ovpn", "client\n")
    status, _, errors = vpn.run(
        *("create", "sys-vpn", "--template=fedora-43", "--yes"),
        "--profile=work:down/my vpn.ovpn",
    )
    assert (status, errors) == (0, "")
    assert (vpn.root / "sys-vpn/imported.my_vpn").read_text() == "client\n"
    qube = vpn.model.vms["sys-vpn"]
    assert qube.features["vm-config.vpn-profile"] == "my_vpn"
    assert qube.firewall == PINNED
    profile = b"client\n"
    assert not any(profile in call[3] for call in vpn.model.calls)


def test_from_nothing_to_pinned_by_one_command(host):
    """A profile with a server's name: it is looked up, and then no more."""
    host.file("work", "home.ovpn", "client\n")
    host.service("sys-vpn", "qubesvpn.Import", "cat >/dev/null")
    host.service(
        "sys-vpn",
        "qubesvpn.Endpoints",
        '[ "$1" = refresh ] && echo 203.0.113.7 udp 1194; true',
    )
    status, _, errors = host.run(
        *("create", "sys-vpn", "--template=fedora-43", "--yes"),
        "--profile=work:home.ovpn",
    )
    assert (status, errors) == (0, "")
    assert host.model.vms["sys-vpn"].firewall == PINNED
    rules = [line for line in host.made() if "firewall.Set" in line]
    assert [rule.count("specialtarget=dns") for rule in rules] == [0, 1, 0]


def test_a_dry_run_changes_nothing_and_says_the_commands(host):
    host.file("work", "x.ovpn", "client\n")
    status, output, _ = host.run(
        *("create", "sys-vpn", "--template=fedora-43", "--dry-run"),
        "--profile=work:x.ovpn",
    )
    assert status == 0
    assert host.made() == []
    lines = [shlex.split(line) for line in output.splitlines()]
    assert lines == [
        shlex.split(line)
        for line in """\
qvm-create --class=AppVM --template=fedora-43 --label=orange sys-vpn
qvm-prefs -- sys-vpn provides_network True
qvm-prefs -- sys-vpn netvm sys-firewall
qvm-prefs -- sys-vpn memory 300
qvm-tags sys-vpn add qubes-vpn
qvm-features sys-vpn service.qubes-vpn 1
qvm-firewall sys-vpn add --before 0 action=drop
qvm-firewall sys-vpn del --rule-no 1
qvm-start --skip-if-running sys-vpn
qvm-run --pass-io work 'qrexec-client-vm sys-vpn qubesvpn.Import+x <x.ovpn'
qvm-features sys-vpn vm-config.vpn-profile x
qvm-run --pass-io --service sys-vpn qubesvpn.Endpoints+known
qvm-firewall sys-vpn add --before 0 action=drop
qvm-firewall sys-vpn add --before 0 action=accept dst4=ADDRESS proto=PROTO dstports=PORT
qvm-firewall sys-vpn del --rule-no 2
""".splitlines()
    ]


def test_a_template_without_the_package_is_told_how_to_get_it(host):
    status, _, errors = host.run("create", "sys-vpn", "--template=debian-13")
    assert status == 69
    assert "debian-13" in errors
    assert "qvm-run -u root -- debian-13 'apt-get install qubes-vpn'" in errors
    assert "sys-vpn" not in host.model.vms


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (("--template=nope",), 69, "there is no such qube"),
        (("--template=work",), 69, "not a template"),
        (("--template=fedora-43", "--netvm=work"), 69, "provide network"),
        (("--template=fedora-43", "--profile=gone:x"), 69, "gone"),
        (("--template=fedora-43", "--profile=x.ovpn"), 64, "QUBE:PATH"),
        ((), 64, "--template"),
    ],
)
def test_refuses_what_cannot_work_before_it_makes_anything(
    host, args, status, words
):
    answer, _, errors = host.run("create", "sys-vpn", *args)
    assert answer == status
    assert words in errors
    assert host.made() == []


def test_does_not_take_over_another_qube(host):
    status, _, errors = host.run("create", "work", "--template=fedora-43")
    assert status == 69
    assert "not a VPN qube" in errors
    assert host.made() == []


@pytest.mark.parametrize(
    "failing",
    [
        ("admin.vm.property.Set", "provides_network"),
        ("admin.vm.property.Set", "memory"),
        ("admin.vm.tag.Set", "qubes-vpn"),
        ("admin.vm.feature.Set", "service.qubes-vpn"),
        ("admin.vm.firewall.Set", "sys-vpn"),
    ],
)
@pytest.mark.parametrize("denied", [True, False])
def test_a_half_failure_leaves_nothing_behind(host, failing, denied):
    if denied:
        host.model.deny.add(failing)
    else:
        host.model.fail[failing] = ("QubesVMError", "disk full")
    status, _, errors = host.run("create", "sys-vpn", "--template=fedora-43")
    assert status == (77 if denied else 71)
    assert ("refused" if denied else "disk full") in errors
    assert "sys-vpn" not in host.model.vms


def test_a_refused_profile_takes_the_new_qube_with_it(host):
    host.service("sys-vpn", "qubesvpn.Import", "cat >/dev/null; exit 78")
    host.file("work", "x.ovpn", "nonsense\n")
    status, _, errors = host.run(
        *("create", "sys-vpn", "--template=fedora-43"),
        "--profile=work:x.ovpn",
    )
    assert status == 69
    assert "did not accept x.ovpn of work (status 78)" in errors
    assert "sys-vpn" not in host.model.vms


def test_a_policy_that_denies_the_import_is_named(vpn):
    vpn.file("sys-vpn", "denied", "qubesvpn.Import")
    vpn.file("work", "x.ovpn", "client\n")
    status, _, errors = vpn.run("import", "sys-vpn", "work:x.ovpn")
    assert status == 77
    assert "30-qubes-vpn.policy" in errors
    assert "vm-config.vpn-profile" not in vpn.model.vms["sys-vpn"].features


def test_an_undo_that_fails_is_said_and_the_others_are_done(host):
    host.model.fail["admin.vm.firewall.Set", "sys-vpn"] = ("QubesVMError", "x")
    host.model.deny.add(("admin.vm.Remove", "sys-vpn"))
    status, output, _ = host.run("create", "sys-vpn", "--template=fedora-43")
    assert status == 71
    assert "could not undo `qvm-create" in output


def test_a_named_disposable(host):
    host.model.add(
        "vpn-dvm",
        template="fedora-43",
        values={"template_for_dispvms": "True"},
    )
    status, _, errors = host.run(
        "create", "disp-vpn", "--template=vpn-dvm", "--disposable"
    )
    assert (status, errors) == (0, "")
    assert host.model.vms["disp-vpn"].klass == "DispVM"


def test_a_disposable_needs_a_disposable_template(host):
    status, _, errors = host.run(
        "create", "disp-vpn", "--template=work", "--disposable"
    )
    assert status == 69
    assert "qvm-prefs work template_for_dispvms True" in errors


def test_use_sets_the_profiles_in_order(vpn):
    assert vpn.run("use", "sys-vpn", "home,work.2")[0] == 0
    assert (
        vpn.model.vms["sys-vpn"].features["vm-config.vpn-profile"]
        == "home,work.2"
    )
    assert vpn.run("use", "sys-vpn", "../x")[0] == 64
    assert vpn.run("use", "work", "home")[0] == 69


def test_remove_needs_its_clients_elsewhere(vpn):
    vpn.run("assign", "sys-vpn", "work")
    status, _, errors = vpn.run("remove", "sys-vpn", "--yes")
    assert status == 69
    assert "qvm-vpn unassign work" in errors
    vpn.model.vms["sys-vpn"].state = "Running"
    assert vpn.run("remove", "sys-vpn", "--yes", "--unassign")[0] == 0
    assert "sys-vpn" not in vpn.model.vms
    assert vpn.model.vms["work"].values["netvm"] == ""
    assert vpn.run("remove", "sys-vpn", "--yes")[0] == 0


def test_remove_asks_and_no_terminal_means_no(vpn):
    status, _, errors = vpn.run("remove", "sys-vpn")
    assert status == 1
    assert "--yes" in errors
    assert "sys-vpn" in vpn.model.vms


# Qubes' own client leaves the socket that did not connect to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_qubesd_is_said(vpn):
    import qubesadmin

    qubesadmin.config.QUBESD_SOCKET += ".gone"
    status, _, errors = vpn.run("status")
    assert status == 69
    assert "systemctl status qubesd" in errors
