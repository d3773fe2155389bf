"""The server's data path and files, with two openvpn clients."""

import contextlib
import json
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
from cryptography import x509

from lab.namespace import Namespace
from lab.openvpn import Client, Settings
from lab.ours import COMMAND, OurServer
from lab.relay import Relay
from qubes_vpn.cli import pki, pki_store
from qubes_vpn.crypto.pki import Usage

SERVER = "192.0.2.10"


class Place:
    """A server's namespace, and two clients' behind their own routers."""

    def __init__(self, scratch):
        name = f"qvnet{os.getpid()}"
        self.scratch = scratch
        self.server = Namespace(f"{name}s")
        self.a, self.b = Namespace(f"{name}a"), Namespace(f"{name}b")
        self.server.ip(f"""
            link set lo up
            addr add {SERVER}/32 dev lo
            addr add 192.0.2.20/32 dev lo
        """)
        for number, client in ((1, self.a), (2, self.b)):
            self.server.ip(f"""
                link add v{number} type veth peer name eth0 netns {client.path}
                link set v{number} up
                addr add 203.0.{number}.1/24 dev v{number}
            """)
            client.ip(f"""
                link set lo up
                link set eth0 up
                addr add 203.0.{number}.2/24 dev eth0
                route add default via 203.0.{number}.1
            """)
        store = pki_store.Store.create(scratch / "pki", "ca", "p256", 100)
        store.issue("server", Usage.SERVER, 90)
        for who in ("alice", "bob"):
            store.issue(who, Usage.CLIENT, 90)
        self.store = store

    def close(self):
        for namespace in (self.a, self.b, self.server):
            namespace.close()

    def profile(self, who, *lines, proto="udp", address=SERVER):
        text = pki.client_profile(
            self.store, self.store.pair(who), (address, "1194", proto)
        )
        return text + "".join(f"{line}\n" for line in lines)


class Ours(OurServer):
    """With the certificates of `qubes-vpn pki`."""

    place: Place

    def config(self):
        store = self.place.store
        pair = store.pair("server")
        lines = [
            f"dev {self.device}",
            f"proto {self.settings.proto}4"
            + ("-server" if self.settings.proto == "tcp" else ""),
            f"local {SERVER}",
            "port 1194",
            "server 10.8.0.0 255.255.255.0",
            "keepalive 2 10",
            "dh none",
            "remote-cert-tls client",
            *self.settings.extra,
        ]
        return pki.inline(
            lines,
            [
                ("ca", store.authority().certificate.decode()),
                ("cert", pair.certificate.decode()),
                ("key", pair.key.decode()),
            ],
        )


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.close()


@contextlib.contextmanager
def serving(place, *extra, words=(), **settings):
    server = Ours(
        place.server, place.scratch, Settings(extra=extra, **settings)
    )
    server.place = place
    server.words = words
    with server:
        yield server


@contextlib.contextmanager
def connected(namespace, place, who, *lines, **where):
    client = Client(
        namespace,
        place.scratch,
        place.profile(who, *lines, **where),
        device="tun-c",
        extra=["explicit-exit-notify 1"] if where.get("proto") != "tcp" else [],
    )
    with client:
        client.wait_connected()
        yield client


def reaches(namespace, address):
    done = namespace.run(
        ["ping", "-c", "3", "-i", "0.2", "-W", "2", address], check=False
    )
    return " 0% packet loss" in done.stdout


def status(server):
    words = [
        *COMMAND[:-1],
        "status",
        "--json",
        "--control",
        str(server.control),
    ]
    return json.loads(server.namespace.run(words).stdout)


def by_name(server):
    return {one["name"]: one for one in status(server)["clients"]}


def wait(condition, seconds=15.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize("proto", ["udp", "tcp"])
@pytest.mark.parametrize("together", [True, False])
def test_clients_reach_each_other_only_if_they_may(place, proto, together):
    extra = ["client-to-client"] if together else []
    with (
        serving(place, *extra, words=("--nat",), proto=proto),
        connected(place.a, place, "alice", proto=proto),
        connected(place.b, place, "bob", proto=proto),
    ):
        assert reaches(place.a, "10.8.0.1")
        assert reaches(place.b, "10.8.0.1")
        assert reaches(place.a, "10.8.0.3") is together


def test_a_client_cannot_send_from_another_address(place):
    with (
        serving(place, "client-to-client") as server,
        connected(place.a, place, "alice"),
        connected(place.b, place, "bob"),
    ):
        place.a.ip("addr add 10.8.0.3/32 dev tun-c")
        before = by_name(server)["bob"]["tx_bytes"]
        place.a.run(
            ["ping", "-c", "3", "-i", "0.2", "-W", "1", "-I", "10.8.0.3", "10.8.0.1"],
            check=False,
        )  # fmt: skip
        seen = status(server)
        assert seen["drops"]["bad-source"] >= 3
        assert by_name(server)["bob"]["tx_bytes"] == before


def test_a_network_behind_a_client_is_routed_to_it(place):
    ccd = place.scratch / "ccd"
    ccd.mkdir()
    (ccd / "alice").write_text(
        "ifconfig-push 10.8.0.100 255.255.255.0\n"
        "iroute 10.66.0.0 255.255.0.0\n"
        'push "route 10.77.0.0 255.255.0.0"\n'
    )
    (ccd / "bob").write_text("disable\n")
    with serving(
        place, f"client-config-dir {ccd}", "route 10.66.0.0 255.255.0.0"
    ) as server:
        place.a.ip("addr add 10.66.1.1/32 dev lo")
        with connected(place.a, place, "alice"):
            assert reaches(place.server, "10.66.1.1")
            assert reaches(place.server, "10.8.0.100")
            one = by_name(server)["alice"]
            assert one["address4"] == "10.8.0.100"
            assert one["networks"] == ["10.66.0.0/16"]
            assert "10.77.0.0/16" in place.a.run(["ip", "route"]).stdout
            bob = Client(
                place.b, place.scratch, place.profile("bob"), device="tun-c"
            )
            with bob:
                bob.wait_for("AUTH_FAILED")
            assert list(by_name(server)) == ["alice"]


def test_a_client_may_move_and_nobody_else_may_move_it(place):
    with serving(place) as server:
        relay = Relay(place.server, server.settings.endpoint)
        with relay, connected(place.a, place, "alice", address="192.0.2.20"):
            assert reaches(place.a, "10.8.0.1")
            with relay.recording() as tape:
                assert reaches(place.a, "10.8.0.1")
            first = by_name(server)["alice"]["remote"]
            # an attacker sends what it has seen from its own port
            with place.b.enter():
                attacker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            attacker.bind(("203.0.2.2", 5555))
            for _way, datagram in tape:
                attacker.sendto(datagram, (SERVER, 1194))
            wait(lambda: status(server)["drops"].get("replay", 0) >= 1)
            assert by_name(server)["alice"]["remote"] == first
            attacker.close()
            relay.rebind()
            assert reaches(place.a, "10.8.0.1")
            after = by_name(server)["alice"]
            assert after["remote"] != first
            assert after["floated"] == 1


def test_a_revoked_client_is_out_without_a_restart(place):
    crl = place.store.directory / "crl.pem"
    with serving(place, f"crl-verify {crl}") as server:
        with connected(place.a, place, "alice"):
            assert list(by_name(server)) == ["alice"]
        place.store.revoke("alice")
        server.wait_for(r"read .*crl\.pem")
        # an empty list is none: the last one holds
        revoking = crl.read_bytes()
        crl.write_bytes(b"")
        server.wait_for(r"stays as it was: .*crl\.pem: is empty")
        crl.write_bytes(revoking)
        client = Client(
            place.a, place.scratch, place.profile("alice"), device="tun-c"
        )
        with client, connected(place.b, place, "bob"):
            server.wait_for("not let in: .*revoked")
            assert list(by_name(server)) == ["bob"]


def test_a_folder_of_serial_numbers_revokes_clients(place):
    folder = place.scratch / "revoked"
    folder.mkdir()
    (folder / "README").touch()
    pair = place.store.pair("alice")
    serial = x509.load_pem_x509_certificate(pair.certificate).serial_number
    with serving(place, f"crl-verify {folder} dir") as server:
        with connected(place.a, place, "alice"):
            assert list(by_name(server)) == ["alice"]
        (folder / str(serial)).touch()
        server.wait_for(r"read .*revoked/")
        client = Client(
            place.a, place.scratch, place.profile("alice"), device="tun-c"
        )
        with client, connected(place.b, place, "bob"):
            server.wait_for("not let in: .*revoked")
            assert list(by_name(server)) == ["bob"]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_the_status_file_is_what_tools_for_openvpn_read(place, version):
    path = place.scratch / "status"
    with (
        serving(place, f"status {path} 1", f"status-version {version}"),
        connected(place.a, place, "alice"),
    ):
        wait(lambda: path.exists() and "alice" in path.read_text())
        lines = path.read_text().splitlines()
    assert lines[-1] == "END"
    if version == 1:
        assert lines[0] == "OpenVPN CLIENT LIST"
        (row,) = [x.split(",") for x in lines if x.startswith("alice,")]
        assert row[1].startswith("203.0.1.2:")
        assert any(x.startswith("10.8.0.2,alice,203.0.1.2:") for x in lines)
        return
    rows = [line.split("\t" if version == 3 else ",") for line in lines]
    header = next(row for row in rows if row[:2] == ["HEADER", "CLIENT_LIST"])
    client = next(row for row in rows if row[0] == "CLIENT_LIST")
    fields = dict(zip(header[2:], client[1:], strict=True))
    assert fields["Common Name"] == "alice"
    assert fields["Virtual Address"] == "10.8.0.2"
    assert fields["Data Channel Cipher"] == "AES-256-GCM"


def test_metrics_come_from_a_socket(place):
    path = str(place.scratch / "metrics")
    with (
        serving(place, words=("--metrics", path)),
        connected(place.a, place, "alice"),
    ):
        assert reaches(place.a, "10.8.0.1")
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(10)
        link.connect(path)
        link.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b"".join(iter(lambda: link.recv(65536), b"")).decode()
        link.close()
    assert "qubes_vpn_clients 1\n" in text
    assert 'qubes_vpn_client_bytes_total{client="alice",peer_id="0",way="rx"}' in text  # fmt: skip


def test_who_watches_is_told_of_every_change(place):
    with serving(place) as server:
        watch = place.server.popen(
            [*COMMAND[:-1], "status", "--watch", "--json",
             "--control", str(server.control)],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        with watch.stdout as lines:
            counts = [len(json.loads(lines.readline())["clients"])]
            with connected(place.a, place, "alice"):
                counts.append(len(json.loads(lines.readline())["clients"]))
            counts.append(len(json.loads(lines.readline())["clients"]))
            watch.terminate()
        assert counts == [0, 1, 0]


def test_addresses_stay_after_a_restart(place):
    path = place.scratch / "pool"

    def addresses(first, second):
        with (
            serving(place, f"ifconfig-pool-persist {path}") as server,
            connected(place.a, place, first),
            connected(place.b, place, second),
        ):
            return {n: c["address4"] for n, c in by_name(server).items()}

    before = addresses("alice", "bob")
    assert path.read_text().startswith("alice,10.8.0.2,")
    assert addresses("bob", "alice") == before


def test_it_gives_up_its_privileges_when_asked(place):
    with (
        serving(place, words=("--nat", "--user", "nobody")) as server,
        connected(place.a, place, "alice"),
    ):
        assert reaches(place.a, "10.8.0.1")
        text = Path(f"/proc/{server.process.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in text.splitlines())
        assert set(fields["Uid"].split()) == {"65534"}
        assert int(fields["CapEff"], 16) == 1 << 12
        assert fields["NoNewPrivs"].strip() == "1"
    assert "qubes_vpn" not in place.server.run(["nft", "list", "tables"]).stdout


def test_packets_of_all_sizes_pass(place):
    with serving(place), connected(place.a, place, "alice"):
        for size in (0, 1400, 1472):
            done = place.a.run(
                ["ping", "-c", "2", "-i", "0.2", "-s", str(size), "-W", "2",
                 "10.8.0.1"],
                check=False,
            )  # fmt: skip
            assert " 0% packet loss" in done.stdout
