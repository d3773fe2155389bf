"""The shipped policies: what a management qube may do, and what nobody may.

The lines are matched as qrexec does: the first whose service, argument,
caller and target fit decides, and none means no.
"""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[4] / "rpm/policy.d"
MANAGER = "mgmt-vpn"


def lines(name):
    found = []
    for line in (FOLDER / name).read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            service, arg, source, target, *rest = line.split()
            found.append((service, arg, source, target, rest))
    return found


def fits(pattern, name, tags):
    if pattern == "@anyvm":
        return name != "dom0"
    if pattern.startswith("@tag:"):
        return pattern.removeprefix("@tag:") in tags
    return pattern == name


class Policy:
    """The policy of the example, for calls of the management qube."""

    def __init__(self, model):
        self.model = model
        self.lines = lines("30-qubes-vpn-mgmt.policy.example")
        self.denied = []

    def permit(self, method, arg, dest):
        tags = self.model.vms[dest].tags if dest in self.model.vms else ()
        for service, pattern, source, target, rest in self.lines:
            if (
                (service, source) == (method, MANAGER)
                and pattern in ("*", f"+{arg}")
                and fits(target, dest, tags)
            ):
                return rest[0] == "allow"
        self.denied.append(f"{method}+{arg} {dest}")
        return False


@pytest.fixture
def manager(host):
    """The host as a management qube sees it, with one qube marked."""
    host.service("sys-vpn", "qubesvpn.Endpoints", "echo 203.0.113.7 udp 1194")
    host.service("sys-vpn", "qubesvpn.Status", "echo connected")
    host.model.creator = MANAGER
    host.model.vms["work"].tags.add("qubes-vpn-client")
    host.policy = Policy(host.model)
    host.model.permit = host.policy.permit
    return host


@pytest.mark.parametrize(
    "words",
    [
        ("pin", "sys-vpn", "--yes"),
        ("use", "sys-vpn", "home"),
        ("assign", "sys-vpn", "work"),
        ("status",),
        ("unpin", "sys-vpn"),
        ("remove", "sys-vpn", "--yes"),
    ],
)
def test_a_manager_can_do_all_that_it_is_for(manager, words):
    create = ("create", "sys-vpn", "--template=fedora-43", "--autostart")
    assert manager.run(*create)[0] == 0, manager.policy.denied
    status, _, errors = manager.run(*words)
    assert (status, errors, manager.policy.denied) == (0, "", [])


def test_a_manager_can_audit(manager, policy):
    manager.run("create", "sys-vpn", "--template=fedora-43")
    status, output, errors = manager.run("audit")
    assert status in (0, 1), (errors, manager.policy.denied)
    assert "problems" in output
    assert manager.policy.denied == []


@pytest.mark.parametrize(
    "words",
    [
        ("assign", "sys-vpn", "personal"),
        ("remove", "sys-vpn-of-another", "--yes"),
        ("unpin", "sys-vpn-of-another"),
        ("use", "sys-vpn-of-another", "x"),
    ],
)
def test_a_manager_cannot_touch_what_is_not_its_own(manager, words):
    manager.run("create", "sys-vpn", "--template=fedora-43")
    model = manager.model
    model.add(
        "sys-vpn-of-another",
        template="fedora-43",
        values={"provides_network": "True"},
        tags={"qubes-vpn"},
        firewall=["action=drop"],
    )
    other, personal = model.vms["sys-vpn-of-another"], model.vms["personal"]
    before = (dict(other.features), list(other.firewall), dict(personal.values))
    status, _, errors = manager.run(*words)
    assert status == 77
    assert "policy" in errors
    assert "sys-vpn-of-another" in model.vms
    assert before == (
        dict(other.features),
        list(other.firewall),
        dict(personal.values),
    )


def test_every_admin_line_has_its_target():
    for service, _, source, _, rest in lines(
        "30-qubes-vpn-mgmt.policy.example"
    ):
        assert source == MANAGER
        assert rest[0] == "allow"
        assert rest[1:] == (
            ["target=dom0"] if service.startswith("admin.") else []
        )


def test_no_qube_changes_a_vpn_qube_unasked():
    for service, _, source, target, rest in lines("30-qubes-vpn.policy"):
        assert source in ("@anyvm", "@tag:qubes-vpn")
        assert rest[0] in ("ask", "deny"), (service, target)


def test_the_policy_names_every_service_and_denies_the_rest():
    folder = FOLDER.parent / "qubes-rpc"
    services = {path.name for path in folder.iterdir()}
    found = lines("30-qubes-vpn.policy")
    ours = [line for line in found if line[0].startswith("qubesvpn.")]
    assert {line[0] for line in ours} == services
    for service in services:
        last = [line for line in ours if line[0] == service][-1]
        assert last[2:] == ("@anyvm", "@anyvm", ["deny"])


def test_the_syntax_is_one_that_qrexec_reads():
    for name in ("30-qubes-vpn.policy", "30-qubes-vpn-mgmt.policy.example"):
        for service, arg, source, target, rest in lines(name):
            assert re.fullmatch(r"[A-Za-z0-9.]+", service)
            assert re.fullmatch(r"\*|\+[A-Za-z0-9_.-]*", arg)
            for word in (source, target):
                assert re.fullmatch(r"@?[a-z]+[A-Za-z0-9:_-]*", word)
            assert rest[0] in ("allow", "ask", "deny")
