"""Record data packets and keys of real openvpn processes.

Run as root: python -m tests.vectors.record_data. At verb 11 openvpn prints the
keys that it derived; a recorder between two of them keeps the packets. Where a
derivation needs what neither prints, our own client is one of the two.
"""

import contextlib
import json
import pathlib
import re
import select
import socket
import sys
import tempfile
from ipaddress import ip_address

from lab import openvpn27
from lab.namespace import Namespace
from lab.openvpn import (
    OPENVPN,
    Client,
    Server,
    Settings,
    Wrap,
    wrap_keys,
)
from lab.relay import Relay, Way
from qubes_vpn.engine import effects, peer_info
from qubes_vpn.engine.push_options import IvProto
from tests.unit.engine.live import Live, profile_of
from tests.vectors.record import make_identity

HERE = pathlib.Path(__file__).parent
RELAY, SERVER, CLIENT = 4000, 4001, 4002
DATA_KINDS = (6, 9)
PACKETS = 3
AEAD = ("AES-128-GCM", "AES-192-GCM", "AES-256-GCM", "CHACHA20-POLY1305")
CBC = [
    (f"AES-{size}-CBC", digest)
    for size in (128, 192, 256)
    for digest in ("SHA1", "SHA256", "SHA512")
]
HEX = "([0-9a-f ]*)"
LOOPBACK, BETWEEN = ip_address("127.0.0.1"), ip_address("127.0.0.2")
EKM = (b"EXPORTER-OpenVPN-datakeys", 256)
DYNAMIC_EKM = (b"EXPORTER-OpenVPN-dynamic-tls-crypt", 256)


def hexed(text):
    return text.replace(" ", "")


def keys_of(log, role):
    """What one side printed: the keys of both directions.

    "Encrypt" is the first half of the key block, which is the client's.
    """
    ways = {"encrypt": "Encrypt", "decrypt": "Decrypt"}
    if role == "server":
        ways = {"encrypt": "Decrypt", "decrypt": "Encrypt"}
    found = {}
    for way, word in ways.items():
        for kind in ("cipher", "hmac"):
            printed = re.search(rf"Master {word} \({kind}, .*?\): {HEX}", log)
            found[f"{way} {kind}"] = hexed(printed[1])
    return found


def epochs_of(log, way):
    """What one side printed: number -> the key of each epoch."""
    words = rf"{way} Epoch Data key (\d+): CIPHER KEY: {HEX}"
    return {number: hexed(key) for number, key in re.findall(words, log)}


def said(log):
    """Version, the first nonce, the keys of epochs."""
    return {
        "version": re.search(r"OpenVPN (\d\S*)", log)[1],
        "nonce": hexed(re.search(rf"ENCRYPT IV: {HEX}", log)[1]),
        "outgoing epochs": epochs_of(log, "Outgoing"),
        "incoming epochs": epochs_of(log, "Incoming"),
    }


def pair(namespace, program, options):
    """Two processes and their data packets: {"client": ..., "server": ...}."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_identity(folder)
        common = [
            *(*program, "--dev", "null", "--proto", "udp4", "--ping", "1"),
            *("--ca", str(folder / "cert.pem"), "--cert"),
            *(str(folder / "cert.pem"), "--key", str(folder / "key.pem")),
            *("--verb", "11", *options),
        ]
        with namespace.enter():
            relay = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        roles = {
            "server": ["--lport", f"{SERVER}", "--tls-server", "--dh", "none"],
            "client": [
                *("--lport", f"{CLIENT}", "--tls-client"),
                *("--remote", "127.0.0.1", f"{RELAY}"),
            ],
        }
        running = []
        with relay:
            relay.bind(("127.0.0.1", RELAY))
            for role, words in roles.items():
                with (folder / role).open("wb") as log:
                    running.append(
                        namespace.popen([*common, *words], stdout=log)
                    )
            packets = relayed(relay)
            for process in running:
                process.terminate()
                process.wait()
        logs = {role: (folder / role).read_text() for role in roles}
    return {
        role: {
            **said(log),
            **keys_of(log, role),
            "packets": [one for who, one in packets if who == role],
        }
        for role, log in logs.items()
    }


def relayed(relay):
    """Pass on what both say until both have sent enough data."""
    packets = []
    counts = {"server": 0, "client": 0}
    while min(counts.values()) < PACKETS:
        assert select.select([relay], [], [], 10)[0], counts
        content, (_, port) = relay.recvfrom(65535)
        relay.sendto(content, ("127.0.0.1", SERVER + CLIENT - port))
        sender = "server" if port == SERVER else "client"
        if content[0] >> 3 in DATA_KINDS and counts[sender] < PACKETS:
            packets.append((sender, content.hex()))
            counts[sender] += 1
    return packets


def dynamic_keys(log):
    """What a server printed as the keys of dynamic tls-crypt."""
    found = {}
    for way in ("Outgoing", "Incoming"):
        for kind in ("CIPHER", "HMAC"):
            words = rf"{way} dynamic tls-crypt: {kind} KEY: {HEX}"
            found[f"{way} {kind}".lower()] = hexed(re.search(words, log)[1])
    return found


def cookie(namespace):
    """A handshake that a server begins with a cookie, and the next one.

    The wrapped client key comes twice, and the second handshake is wrapped
    with dynamic tls-crypt.
    """
    settings = Settings(
        address=LOOPBACK,
        wrap=Wrap.TLS_CRYPT_V2,
        force_cookie=True,
        reneg=2,
        extra=("verb 11",),
    )
    ours = wrap_keys(Wrap.TLS_CRYPT_V2)
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        with (
            Server(namespace, folder, settings) as server,
            Relay(namespace, settings.endpoint, address=BETWEEN) as relay,
            relay.recording() as tape,
        ):
            profile = server.client_profile(address=BETWEEN, reneg=0)
            extra = ["route-nopull"]
            with Client(namespace, folder, profile, extra=extra) as client:
                client.wait_connected()
                server.wait_rekeyed()
            log = server.log
    senders = {Way.UP: "client", Way.DOWN: "server"}
    return {
        "version": re.search(r"OpenVPN (\d\S*)", log)[1],
        "server key": ours[0],
        "client key": ours[1],
        "dynamic": dynamic_keys(log),
        "packets": [
            [senders[way], content.hex()]
            for way, content in tape
            if content[0] >> 3 not in DATA_KINDS
        ],
    }


def derivation(namespace, *, exporter):
    """What our client and an openvpn server put in, and what it printed."""
    bits = peer_info._ALWAYS_BITS
    if not exporter:
        # as clients before 2.6 ask: without the bit the PRF is used
        peer_info._ALWAYS_BITS = bits & ~IvProto.TLS_KEY_EXPORT
    settings = Settings(
        address=LOOPBACK,
        wrap=Wrap.TLS_CRYPT if exporter else Wrap.PLAIN,
        cipher="AES-256-CBC",
        auth="SHA512",
        extra=("verb 11",),
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        with Server(namespace, folder, settings) as server:
            live = Live(namespace, profile_of(server))
            live.run_until(lambda one: one.of(effects.OpenForwarding))
            channel = live.engine._channel
            key = channel.key
            ours, theirs = key._ours.source, key._peers.source
            live.close()
            log = server.log
    peer_info._ALWAYS_BITS = bits
    found = {
        "version": re.search(r"OpenVPN (\d\S*)", log)[1],
        "server": keys_of(log, "server"),
    }
    if exporter:
        return found | {
            "ekm": key.tls.export(*EKM).hex(),
            "dynamic": dynamic_keys(log),
            "dynamic ekm": key.tls.export(*DYNAMIC_EKM).hex(),
            "static key": wrap_keys(Wrap.TLS_CRYPT)[0],
        }
    return found | {
        "pre_master": ours.pre_master.hex(),
        "client random": [ours.random1.hex(), ours.random2.hex()],
        "server random": [theirs.random1.hex(), theirs.random2.hex()],
        "session ids": [
            channel.session_id.hex(),
            channel.peer_session_id.hex(),
        ],
    }


def epochs(namespace, cipher):
    """What the exporter gave our client, and what a 2.7 server printed.

    It prints no more of the first secrets than a key of the cipher is long.
    """
    settings = Settings(address=LOOPBACK, cipher=cipher, extra=("verb 11",))
    with tempfile.TemporaryDirectory() as scratch:
        server = Server(namespace, pathlib.Path(scratch), settings)
        server.program = openvpn27.command()
        with server:
            features = peer_info.PlaneFeatures(epoch=True)
            live = Live(namespace, profile_of(server), features=features)
            live.run_until(lambda one: one.of(effects.OpenForwarding))
            exported = live.engine._channel.key.tls.export(*EKM)
            live.close()
            log = server.log
    return {
        "version": re.search(r"OpenVPN (\d\S*)", log)[1],
        "ekm": exported.hex(),
        "outgoing epochs": epochs_of(log, "Outgoing"),
        "incoming epochs": epochs_of(log, "Incoming"),
    }


def write(name, value):
    path = HERE / f"{name}.json"
    path.write_text(json.dumps(value, indent=1) + "\n")
    sys.stdout.write(f"{path.name}: {', '.join(value)}\n")


def main():
    with contextlib.closing(Namespace("vectors")) as namespace:
        namespace.ip("link set lo up")
        program = (OPENVPN,)
        packets = {}
        for cipher in AEAD:
            options = ("--data-ciphers", cipher)
            packets[cipher] = pair(namespace, program, options)
        for cipher, digest in CBC:
            options = ("--data-ciphers", cipher, "--auth", digest)
            packets[f"{cipher} {digest}"] = pair(namespace, program, options)
        write("data-packets", packets)
        program = openvpn27.command()
        write(
            "epoch-packets",
            {
                cipher: pair(namespace, program, ("--data-ciphers", cipher))
                for cipher in ("AES-256-GCM", "CHACHA20-POLY1305")
            },
        )
        write("cookie-handshake", cookie(namespace))
        write(
            "derivations",
            {
                "PRF": derivation(namespace, exporter=False),
                "EKM": derivation(namespace, exporter=True),
                **{cipher: epochs(namespace, cipher) for cipher in AEAD},
            },
        )


if __name__ == "__main__":
    main()
