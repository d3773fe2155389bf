import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_vpn.config.profile import parse_client_profile
from qubes_vpn.qubes import agent


class Runs:
    """Records commands; the DNAT script answers `status`."""

    def __init__(self, status=0):
        self.status = status
        self.made = []

    def __call__(self, command):
        self.made.append(command[0])
        if command[0] == agent.DNAT_SCRIPT:
            if self.status is None:
                raise FileNotFoundError(command[0])
            return self.status
        return 0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "resolv.conf"


def test_resolv_conf_names_the_tunnels_resolvers():
    assert agent.resolv_conf(["10.8.0.1", "10.8.0.2"], ["corp.example"]) == (
        "# Written by qubes-vpn: the tunnel's resolvers.\n"
        "nameserver 10.8.0.1\nnameserver 10.8.0.2\nsearch corp.example\n"
    )
    assert "nameserver" not in agent.resolv_conf([], [])


def test_a_search_domain_cannot_add_a_line():
    text = agent.resolv_conf(["10.8.0.1"], ["a\nnameserver 6.6.6.6", "b c"])
    assert text.count("nameserver") == 1


def test_the_files_come_first_then_the_script_then_the_firewall(path):
    runs = Runs()
    files = agent.DnsFiles(runs, path)

    def script_sees_the_file(command, inner=runs.__call__):
        assert "10.8.0.1" in path.read_text()
        return inner(command)

    files._run = script_sees_the_file
    assert files.set(["10.8.0.1"], [])
    assert runs.made == [agent.DNAT_SCRIPT, "systemctl", "systemctl"]


def test_an_unchanged_redirection_reloads_nothing(path):
    runs = Runs(agent.DNAT_UNCHANGED)
    agent.DnsFiles(runs, path).set(["10.8.0.1"], [])
    assert runs.made == [agent.DNAT_SCRIPT]


def test_without_qubes_script_the_file_is_still_written(path):
    assert agent.DnsFiles(Runs(None), path).set(["10.8.0.1"], [])
    assert "10.8.0.1" in path.read_text()


def test_what_setup_ip_wrote_is_put_right(path):
    runs = Runs()
    files = agent.DnsFiles(runs, path)
    assert files.check()
    assert not path.exists(), "nothing is written before there is a tunnel"
    files.set(["10.8.0.1"], [])
    runs.made.clear()
    assert files.check()
    assert runs.made == []
    path.unlink()
    path.write_text("nameserver 10.139.1.1\n")
    assert files.check()
    assert "10.8.0.1" in path.read_text()
    assert runs.made[0] == agent.DNAT_SCRIPT


def test_the_link_of_resolved_is_replaced_and_its_file_left(path, tmp_path):
    stub = tmp_path / "stub"
    stub.write_text("nameserver 127.0.0.53\n")
    path.symlink_to(stub)
    agent.DnsFiles(Runs(), path).set(["10.8.0.1"], [])
    assert not path.is_symlink()
    assert stub.read_text() == "nameserver 127.0.0.53\n"


def test_a_file_that_cannot_be_written_is_reported(tmp_path):
    path = tmp_path / "gone" / "resolv.conf"
    assert not agent.DnsFiles(Runs(), path).set(["10.8.0.1"], [])


PROFILE = (
    "client\ndev tun\nauth-user-pass\nremote 192.0.2.1\npeer-fingerprint "
    + ":".join(["AA"] * 32)
)


@pytest.mark.parametrize("address", ["9.9.9.9", "2620:fe::fe"])
def test_the_chosen_resolver_is_the_profiles_only_one(address):
    text = PROFILE + "\n" + agent.dns_directives(address)
    profile = parse_client_profile(text, "x", lambda _: b"")
    assert profile.dns == (address,)
    prefixes = [prefix for _, prefix in profile.pull_filters]
    assert "dhcp-option DNS" in prefixes


def test_a_resolver_that_is_no_address_is_refused():
    with pytest.raises(ValueError, match="address"):
        agent.dns_directives("9.9.9.9\nup /bin/sh")


def test_notices_are_seldom_and_lose_none():
    shown = []
    notices = agent.Notices(lambda title, text: shown.append((title, text)))
    assert notices.show("down", "a", 0.0)
    assert not notices.show("down", "b", 59.0)
    assert not notices.show("down", "c", 59.9)
    assert notices.show("up", "d", 59.9)
    assert notices.show("down", "e", 60.0)
    assert shown == [
        ("VPN: down", "a"),
        ("VPN: up", "d"),
        ("VPN: down", "e (2 more like this)"),
    ]


@given(st.text())
def test_a_notice_is_one_bounded_line_without_markup(text):
    shown = []
    agent.Notices(lambda _, body: shown.append(body)).show("up", text, 0.0)
    (line,) = shown
    assert line.isprintable()
    assert "<" not in line
    assert len(line) <= agent.NOTICE_MAX * 5


def test_the_notification_is_the_users_and_its_text_no_option():
    command = agent.notify_command("user", 1000, "VPN: up", "-x")
    assert command[:3] == ["runuser", "-u", "user"]
    assert command[-3:] == ["--", "VPN: up", "-x"]


def test_other_vpn_programs_are_named():
    assert agent.foreign_programs(["bash", "openvpn", "mullvad-daemon"]) == (
        "Mullvad VPN",
        "openvpn",
    )
    assert agent.foreign_programs(["python3", "qubes-vpn"]) == ()


def test_processes_of_this_namespace_only(tmp_path):
    def process(pid, name, netns):
        (tmp_path / str(pid) / "ns").mkdir(parents=True)
        (tmp_path / str(pid) / "ns/net").symlink_to(netns)
        (tmp_path / str(pid) / "comm").write_text(f"{name}\n")

    process(1, "init", "net:[1]")
    process(2, "openvpn", "net:[2]")
    (tmp_path / "self").symlink_to("1")
    assert list(agent.running_commands(tmp_path)) == ["init"]
    assert list(agent.running_commands())
    assert os.getpid()


@pytest.mark.parametrize(
    "url",
    [
        "https://login.example.com",
        "https://login.example.com/a/b?state=x&y=%20",
        "https://vpn.example.com:8443/",
    ],
)
def test_a_web_login_is_a_plain_https_address(url):
    assert agent.web_login_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://login.example.com/",
        "https://user@login.example.com/",
        "https://login.example.com@evil.example/",
        "https://localhost/",
        "https://10.137.0.5/",
        "https://printer.local/",
        "https://login.example.com:99999/",
        "https://login.example.com/#fragment",
        "https://login.example.com/a b",
        "https://login.example.com/\nx",
        "https://login.example.com/$(reboot)",
        "https://xn--e1awd7f.example/",
        "https://a..b/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "--version",
        "",
        "https://login.example.com/" + "a" * 2000,
    ],
)
def test_any_other_web_login_is_refused(url):
    with pytest.raises(ValueError, match=r"."):
        agent.web_login_url(url)
