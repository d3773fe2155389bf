"""What a real server can push, say and be: one scenario each."""

import re
import socket
import subprocess
from ipaddress import ip_address

import pytest

from qubes_vpn.config.profile import Credentials, parse_client_profile
from qubes_vpn.engine import effects
from qubes_vpn.engine.states import Asking, Closed, Established, Pulling
from tests.unit.engine.live import no_file, profile_of

pytestmark = [pytest.mark.netns, pytest.mark.interop]

GATEWAY = ip_address("10.8.0.1")
ALICE = Credentials("alice", "wonder land")


def settings_of(live):
    return live.of(effects.ApplySettings)[-1].settings


def over(live):
    return bool(live.of(effects.Ended))


def end_of(live):
    live.run_until(over)
    (ended,) = live.of(effects.Ended)
    return ended


# --- settings -----------------------------------------------------------------


@pytest.mark.parametrize("topology", ["net30", "p2p"])
def test_topologies(start_server, connect, topology):
    live = connect(start_server(extra=(f"topology {topology}",)))
    assert settings_of(live).topology == topology
    assert settings_of(live).ifconfig4.network.prefixlen == 32
    assert live.ping_through(GATEWAY)[20] == 0


def test_what_a_server_pushes(start_server, connect):
    push = (
        "block-ipv6",
        *("dhcp-option DNS 10.8.0.53", "dhcp-option DOMAIN example.org"),
        "route 172.16.0.0 255.240.0.0 vpn_gateway 50",
        "route 198.51.100.0 255.255.255.0 net_gateway",
        "redirect-gateway def1",
    )
    live = connect(
        start_server(
            push=push, ipv6=True, extra=("tun-mtu 1400", "keepalive 3 12")
        )
    )
    settings = settings_of(live)
    assert (settings.mtu, settings.ping, settings.ping_restart) == (
        *(1400, 3, 12),
    )
    assert [str(one) for one in settings.dns] == ["10.8.0.53"]
    assert settings.search == ("example.org",)
    assert settings.block_ipv6
    assert settings.default4
    routes = {str(one.network): one.metric for one in settings.routes}
    assert routes["172.16.0.0/12"] == 50
    assert "198.51.100.0/24" not in routes
    assert any("net_gateway" in name for name, _ in settings.refused)
    assert str(settings.ifconfig6).startswith("fd00:8:0::") or str(
        settings.ifconfig6
    ).startswith("fd00:8::")


def test_dns_options_of_27_are_understood(start_server, connect):
    push = (
        "dns server 1 address 10.8.0.54 fd00:8::54",
        "dns search-domains example.org example.net",
    )
    settings = settings_of(connect(start_server(push=push, ipv6=True)))
    assert [str(one) for one in settings.dns] == ["10.8.0.54", "fd00:8::54"]
    assert settings.search == ("example.org", "example.net")


# --- ends by time -------------------------------------------------------------


@pytest.mark.parametrize(
    ("push", "reason"),
    [
        (("inactive 1 1000",), "inactive"),
        (("session-timeout 1",), "session-timeout"),
    ],
)
def test_ends_by_time_are_final(start_server, connect, push, reason):
    live = connect(start_server(push=push))
    ended = end_of(live)
    assert (ended.reason, ended.retry) == (reason, False)


# --- what the management of a server does -------------------------------------


class Management:
    """The management socket of an openvpn."""

    def __init__(self, path):
        self.link = socket.socket(socket.AF_UNIX)
        self.link.connect(str(path))
        self.link.settimeout(10)
        self.said = b""

    def wait(self, pattern):
        while not (found := re.search(pattern, self.said.decode())):
            self.said += self.link.recv(4096)
        return found

    def say(self, words, answer="SUCCESS"):
        self.said = b""
        self.link.sendall(f"{words}\n".encode())
        self.wait(answer)


def managing(start_server, folder):
    """What a fixture yields: start(...) -> a server, and its management."""
    links = []

    def start(*words, **fields):
        path = folder / "management"
        extra = (f"management {path} unix", *words)
        server = start_server(extra=extra, **fields)
        links.append(Management(path))
        return server, links[-1]

    yield start
    for one in links:
        one.link.close()


@pytest.fixture
def managed(start_server, tmp_path):
    """managed(...) -> a server, and its management."""
    yield from managing(start_server, tmp_path)


@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        ("RESTART", ("server-restart", True, "addr")),
        ("RESTART,[P]", ("server-restart", True, "addr")),
        ("RESTART,[N]", ("server-restart", True, "remote")),
        ("RESTART,[N]come back", ("server-restart", True, "remote")),
        ("HALT", ("server-halt", False, "addr")),
        ("HALT,no more", ("server-halt", False, "addr")),
        ("EXIT", ("server-exit", True, "addr")),
    ],
)
def test_a_server_sends_its_client_away(managed, connect, message, outcome):
    server, management = managed()
    live = connect(server)
    management.say(f"client-kill 0 {message}")
    ended = end_of(live)
    assert (ended.reason, ended.retry, ended.advance) == outcome
    kinds = [type(one) for one in live.effects]
    assert kinds.index(effects.CloseForwarding) < kinds.index(
        effects.RemoveKeys
    )


def test_what_a_server_tells_is_shown_and_ends_nothing(managed, connect):
    server, management = managed()
    live = connect(server)
    # the server says these words, and goes five seconds later
    management.say('client-kill 0 "INFO,the cellar is flooded"')
    live.run_until(lambda one: one.of(effects.Notice))
    (notice,) = live.of(effects.Notice)
    assert (notice.code, notice.text) == ("QV-523", "the cellar is flooded")
    assert isinstance(live.engine.state, Established)
    assert live.ping_through(GATEWAY)[20] == 0


@pytest.fixture
def waiting(managed, attach):
    """A client that a server has not decided about yet."""
    server, management = managed(
        *("management-client-auth", "auth-user-pass-optional"),
        client_extra=("auth-user-pass",),
    )
    live = attach(profile_of(server), credentials=ALICE)
    live.run_until(lambda one: isinstance(one.engine.state, Pulling))
    return live, management


def test_a_login_page_is_shown_with_the_time_that_is_left(waiting):
    live, management = waiting
    management.wait(">CLIENT:ENV,END")
    management.say(
        "client-pending-auth 0 1 WEB_AUTH::https://example.org/in 45"
    )
    live.run_until(lambda one: one.of(effects.AskUser))
    (asked,) = live.of(effects.AskUser)
    assert (asked.kind, asked.prompt) == ("url", "https://example.org/in")
    assert 30 < asked.timeout <= 60
    assert live.engine.state.pending
    management.say("client-auth-nt 0 1")
    live.run_until(lambda one: isinstance(one.engine.state, Established))
    assert live.ping_through(GATEWAY)[20] == 0


@pytest.mark.parametrize(
    ("words", "kind", "shown"),
    [
        (
            "OPEN_URL:https://example.org/x",
            effects.AskUser,
            "https://example.org/x",
        ),
        ("call the front desk", effects.Notice, "call the front desk"),
        ("CR_TEXT:E:see your phone", effects.Notice, "see your phone"),
    ],
)
def test_other_words_before_a_login_are_shown(waiting, words, kind, shown):
    live, management = waiting
    management.wait(">CLIENT:ENV,END")
    management.say(f'client-pending-auth 0 1 "{words}" 45')
    live.run_until(lambda one: one.of(kind))
    (told,) = live.of(kind)
    assert shown in {getattr(told, "prompt", ""), getattr(told, "text", "")}
    assert isinstance(live.engine.state, Pulling)
    management.say("client-auth-nt 0 1")
    live.run_until(lambda one: isinstance(one.engine.state, Established))


def test_a_refusal_says_the_servers_words(waiting):
    live, management = waiting
    management.wait(">CLIENT:ENV,END")
    management.say('client-deny 0 1 "x" "your plan has ended"')
    ended = end_of(live)
    assert (ended.reason, ended.retry) == ("auth-failed", False)
    assert ended.detail == "your plan has ended"


# --- who the server is --------------------------------------------------------


def fingerprint(pem):
    return (
        subprocess.run(
            ["openssl", "x509", "-noout", "-fingerprint", "-sha256"],
            input=pem,
            capture_output=True,
            text=True,
            check=True,
        )
        .stdout.partition("=")[2]
        .strip()
    )


@pytest.mark.parametrize(
    ("line", "passes"),
    [
        ("verify-x509-name server name", True),
        ("verify-x509-name serv name-prefix", True),
        ("verify-x509-name 'CN=server' subject", True),
        ("verify-x509-name other name", False),
        ("verify-x509-name erver name-prefix", False),
        ("verify-x509-name 'CN=other' subject", False),
        ("peer-fingerprint {ours}", True),
        ("peer-fingerprint {other}", False),
    ],
)
def test_the_server_must_be_the_right_one(start_server, connect, line, passes):
    server = start_server()
    line = line.format(
        ours=fingerprint(server.pki.server.certificate),
        other=fingerprint(server.pki.client.certificate),
    )
    live = connect(server, client_extra=(line,))
    opened = bool(live.of(effects.OpenForwarding))
    assert opened == passes
    if not passes:
        assert end_of(live).retry, "somebody else's server is no reason to end"


@pytest.mark.parametrize(
    ("ours", "theirs", "passes"),
    [
        ("tls-version-max 1.2", "tls-version-min 1.2", True),
        ("tls-version-min 1.3", "tls-version-min 1.2", True),
        ("tls-version-max 1.2", "tls-version-min 1.3", False),
        ("tls-version-min 1.3", "tls-version-max 1.2", False),
    ],
)
def test_tls_versions_must_meet(start_server, connect, ours, theirs, passes):
    patience = () if passes else ("hand-window 3",)
    server = start_server(extra=(theirs,), client_extra=(ours, *patience))
    live = connect(server)
    assert bool(live.of(effects.OpenForwarding)) == passes


# --- who we are ---------------------------------------------------------------


def openssl(*words, text=""):
    return subprocess.run(
        ["openssl", *words],
        input=text,
        capture_output=True,
        check=True,
        text=True,
    ).stdout


def without(text, *tags):
    for tag in tags:
        text = re.sub(f"<{tag}>.*?</{tag}>\n", "", text, flags=re.DOTALL)
    return text


@pytest.fixture(params=["key", "pkcs12"])
def locked(request, start_server, tmp_path):
    """A server, and the text of a profile whose key needs a passphrase."""
    server = start_server()
    ours, text = server.pki.client, server.client_profile()
    if request.param == "key":
        key = openssl("ec", "-aes256", "-passout", "pass:sesame", text=ours.key)
        return without(text, "key") + f"<key>\n{key}</key>\n"
    bundle = tmp_path / "client.p12"
    openssl(
        *("pkcs12", "-export", "-out", str(bundle), "-passout", "pass:sesame"),
        text=ours.key + ours.certificate,
    )
    return without(text, "key", "cert") + f"pkcs12 {bundle}\n"


def test_a_locked_key_is_opened_by_askpass(locked, attach, tmp_path):
    path = tmp_path / "askpass"
    path.write_text("sesame\n")
    text = f"{locked}askpass {path}\n"
    live = attach(parse_client_profile(text, "live.ovpn", no_file))
    live.run_until(lambda one: isinstance(one.engine.state, Established))
    assert not live.of(effects.AskUser)


def test_a_locked_key_is_opened_by_a_person(locked, attach):
    profile = parse_client_profile(locked, "live.ovpn", no_file)
    live = attach(profile)
    assert isinstance(live.engine.state, Asking)
    assert [one.kind for one in live.of(effects.AskUser)] == ["passphrase"]
    live.engine.answer("passphrase", "", "sesame", live.now())
    live.drain()
    live.run_until(lambda one: isinstance(one.engine.state, Established))
    # and not asked for again
    later = attach(profile, passphrase=live.engine.passphrase)
    later.run_until(lambda one: isinstance(one.engine.state, Established))
    assert not later.of(effects.AskUser)


def test_a_wrong_passphrase_is_not_tried_for_ever(locked, attach):
    live = attach(parse_client_profile(locked, "live.ovpn", no_file))
    live.engine.answer("passphrase", "", "abracadabra", live.now())
    live.drain()
    assert isinstance(live.engine.state, Closed)
    (ended,) = live.of(effects.Ended)
    assert (ended.reason, ended.retry) == ("wrong-passphrase", False)
    assert live.engine.passphrase is None


# --- tokens -------------------------------------------------------------------


@pytest.mark.slow
def test_a_token_that_has_expired_gives_way_to_the_password(
    start_server, attach
):
    server = start_server(
        users=(("alice", "wonder land"),),
        extra=("hand-window 10", "auth-gen-token 2 20"),
        reneg=3,
    )
    profile = profile_of(server, reneg=0)
    live = attach(profile, credentials=ALICE)
    ended = end_of(live)
    assert (ended.reason, ended.retry, ended.drop_token) == (
        *("auth-token", True, True),
    )
    later = attach(profile, credentials=live.engine.credentials)
    later.run_until(lambda one: isinstance(one.engine.state, Established))
