"""Our server: Debian's openvpn and our own client, each wrap, UDP and TCP."""

import itertools
import json

import pytest

from lab import addresses as at
from lab.appliance import Appliance
from lab.openvpn import Client, Settings, Wrap
from lab.ours import COMMAND, OurServer
from lab.traffic import Flood, download, fetch

MATRIX = list(itertools.product(Wrap, ("udp", "tcp")))
BULK = 200_000


@pytest.fixture
def start_server(request):
    name = "lab6" if "lab6" in request.fixturenames else "lab"
    lab = request.getfixturevalue(name)
    started = []

    def start(*words, **fields):
        server = OurServer(lab.internet, lab.scratch, Settings(**fields))
        server.words = words
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()


def connect(lab, server, *extra, **changed):
    client = Client(
        lab.vpn,
        lab.scratch,
        server.client_profile(**changed),
        credentials=server.credentials() if server.settings.users else "",
        extra=extra,
    )
    client.start()
    client.wait_connected()
    return client


def status(server):
    words = [
        *COMMAND[:-1],
        "status",
        "--json",
        "--control",
        str(server.control),
    ]
    return json.loads(server.namespace.run(words).stdout)


def traffic_survives_a_rekey(lab, server):
    with Flood(lab.app(1), rate=50) as flood:
        flood.wait_echoes(10)
        server.wait_rekeyed(2)
        assert download(lab.app(2), BULK) == BULK
        flood.wait_echoes(20)
        lost = flood.sent - len(flood.echoes)
    assert lost < flood.sent * 0.1, "a rekey must lose nothing"


@pytest.mark.parametrize(("wrap", "proto"), MATRIX, ids=str)
@pytest.mark.parametrize("rekeys", ["client", "server"])
def test_openvpn_connects_and_either_side_rekeys(
    lab, start_server, wrap, proto, rekeys
):
    server = start_server(
        wrap=wrap, proto=proto, reneg=3 if rekeys == "server" else 3600
    )
    extra = ["reneg-sec 3"] if rekeys == "client" else []
    client = connect(lab, server, "verb 4", *extra)
    assert fetch(lab.app(1)).seen == server.settings.network4 + 2
    traffic_survives_a_rekey(lab, server)
    (one,) = status(server)["clients"]
    assert one["name"] == "client"
    assert one["address4"] == "10.8.0.2"
    assert one["transport"] == proto
    assert one["rx_bytes"] > 1000
    assert "WARNING" not in client.log.split("Initialization Sequence")[1]


@pytest.mark.parametrize(("wrap", "proto"), MATRIX, ids=str)
def test_our_client_connects_and_rekeys(lab, start_server, wrap, proto):
    server = start_server(wrap=wrap, proto=proto, reneg=6)
    profile = server.client_profile() + "reneg-sec 5\n"
    with Appliance(lab).lock() as appliance:
        appliance.connect(profile).wait_connected()
        assert fetch(lab.app(1)).seen == server.settings.network4 + 2
        traffic_survives_a_rekey(lab, server)


@pytest.mark.parametrize(
    "cipher", ["AES-128-GCM", "CHACHA20-POLY1305", "AES-256-CBC"]
)
def test_the_cipher_is_what_the_server_wants(lab, start_server, cipher):
    server = start_server(cipher=cipher)
    connect(lab, server)
    assert fetch(lab.app(1)).status == 200
    assert set(server.ciphers()) == {cipher}


def test_ipv6_outside_and_inside(lab6, start_server):
    server = start_server(address=at.SERVER6, ipv6=True)
    connect(lab6, server)
    assert str(fetch(lab6.app(1), to=at.WEB6).seen).startswith("fd00:8::")
    assert status(server)["clients"][0]["remote"].startswith("[2001:db8:")


@pytest.mark.parametrize("certificates", [True, False])
def test_a_password_is_asked_for_and_a_wrong_one_refused(
    lab, start_server, certificates
):
    users = (("bob", "x"), ("alice", "wonder land"))
    server = start_server(users=users[1:], certificates=certificates)
    connect(lab, server, "explicit-exit-notify 1").stop()
    server.wait_for("is gone: exit")
    wrong = Client(
        lab.vpn,
        lab.scratch,
        server.client_profile(),
        credentials="alice\nguess\n",
    )
    wrong.start()
    wrong.wait_for("AUTH_FAILED")
    nobody = Client(
        lab.vpn, lab.scratch, server.client_profile(), credentials="eve\nx\n"
    )
    nobody.start()
    nobody.wait_for("AUTH_FAILED")
    assert status(server)["clients"] == []


def test_a_token_stands_for_the_password_at_a_rekey(lab, start_server):
    server = start_server(
        users=(("alice", "wonder land"),), extra=("auth-gen-token 3600",)
    )
    client = connect(lab, server, "reneg-sec 3", "auth-nocache", "verb 4")
    (server.scratch / "passwords").write_text("")
    server.wait_rekeyed(3)
    assert fetch(lab.app(1)).status == 200
    assert "AUTH_FAILED" not in client.log


@pytest.mark.long
def test_a_token_is_for_the_name_that_the_clients_file_gives(lab, start_server):
    folder = lab.scratch / "ccd"
    folder.mkdir()
    (folder / "client").write_text("override-username bob\n")
    extra = ("auth-gen-token 3600", f"client-config-dir {folder}")
    server = start_server(users=(("alice", "wonder land"),), extra=extra)
    client = connect(lab, server, "reneg-sec 3", "auth-nocache", "verb 4")
    (server.scratch / "passwords").write_text("")
    server.wait_rekeyed(3)
    assert fetch(lab.app(1)).status == 200
    assert "AUTH_FAILED" not in client.log
    assert [one["username"] for one in status(server)["clients"]] == ["bob"]


def test_the_server_says_goodbye_and_the_client_comes_back(lab, start_server):
    server = start_server()
    client = connect(lab, server)
    server.stop()
    client.wait_for("Connection reset command was pushed by server")
    server.start()
    client.wait_connected(count=2)
    assert fetch(lab.app(1)).status == 200


def test_a_client_that_leaves_is_forgotten(lab, start_server):
    server = start_server()
    client = connect(lab, server, "explicit-exit-notify 1")
    assert len(status(server)["clients"]) == 1
    client.stop()
    server.wait_for("is gone: exit")
    assert status(server)["clients"] == []


def test_nat_lets_out_and_nobody_in(lab, start_server):
    server = start_server("--nat")
    before = lab.internet.run(["nft", "list", "tables"]).stdout
    assert "qubes_vpn_server" in before
    connect(lab, server)
    # the web server is this machine itself: what it sees is not masqueraded
    assert fetch(lab.app(1)).status == 200
    server.stop()
    after = lab.internet.run(["nft", "list", "tables"]).stdout
    assert "qubes_vpn_server" not in after
