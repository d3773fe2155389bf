"""Record control packets of two real openvpn processes: handshakes.json.

Run as root: python tests/vectors/record.py. Both peers run in a network
namespace of their own, point to point on the null device, with a recorder
between them; every wrap has one handshake.
"""

import datetime
import json
import os
import pathlib
import select
import socket
import subprocess
import sys
import tempfile
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HERE = pathlib.Path(__file__).parent
KEYS = HERE / "keys"
WRAPS = {
    "plain": ([], []),
    "tls-auth": (
        ["--tls-auth", "static.key", "0", "--auth", "SHA256"],
        ["--tls-auth", "static.key", "1", "--auth", "SHA256"],
    ),
    "tls-auth-both": (
        ["--tls-auth", "static.key", "--auth", "SHA512"],
        ["--tls-auth", "static.key", "--auth", "SHA512"],
    ),
    "tls-crypt": (["--tls-crypt", "static.key"],) * 2,
    "tls-crypt-v2": (
        ["--tls-crypt-v2", "v2-server.key"],
        ["--tls-crypt-v2", "v2-client.key"],
    ),
}
STATIC = {
    f"static-{direction}-{cipher}-{digest}": [
        *["--secret", "static.key", *direction, "--cipher", cipher],
        *["--auth", digest],
    ]
    for direction in ("", "0", "1")
    for cipher, digest in (
        ("AES-256-CBC", "SHA256"),
        ("AES-128-CBC", "none"),
        ("AES-192-CBC", "SHA512"),
        ("AES-256-CBC", "SHA1"),
    )
}
COMMON = ["openvpn", "--dev", "null", "--proto", "udp4", "--ping", "1"]


def make_identity(folder):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name.from_rfc4514_string("CN=peer")
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            pem,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def wait_listening(port):
    """Wait until a port is taken: a first packet before that would be lost.

    The client's reset would be recorded twice, and no server's after it.
    """
    end = time.monotonic() + 10
    while f":{port:04X} " not in pathlib.Path("/proc/net/udp").read_text():
        if time.monotonic() > end:
            raise TimeoutError(f"nobody listens at {port}")
        time.sleep(0.01)


def record(folder, server_options, client_options):
    tls = [f"--{name}" for name in ("ca", "cert", "key")]
    paths = [str(folder / f) for f in ("cert.pem", "cert.pem", "key.pem")]
    identity = [word for pair in zip(tls, paths, strict=True) for word in pair]
    peer = [*COMMON, *identity, "--lport"]
    remote = ["--remote", "127.0.0.1", "4000"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as relay:
        relay.bind(("127.0.0.1", 4000))
        server = subprocess.Popen(
            [*peer, "4001", "--tls-server", "--dh", "none", *server_options],
            cwd=KEYS,
            stdout=subprocess.DEVNULL,
        )
        wait_listening(4001)
        client = subprocess.Popen(
            [*peer, "4002", "--tls-client", *remote, *client_options],
            cwd=KEYS,
            stdout=subprocess.DEVNULL,
        )
        packets = []
        data_packets = 0
        try:
            while select.select([relay], [], [], 2.5)[0]:
                content, (_, port) = relay.recvfrom(65535)
                sender = "server" if port == 4001 else "client"
                packets.append([sender, content.hex()])
                relay.sendto(content, ("127.0.0.1", 8003 - port))
                data_packets += content[0] >> 3 in {6, 9}
                if data_packets > 3:
                    break
        finally:
            for process in (server, client):
                process.terminate()
                process.wait()
    return packets


def record_static(options):
    """Return one data packet of a static key: a ping."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 4000))
        sender = subprocess.Popen(
            [*COMMON, "--remote", "127.0.0.1", "4000", *options],
            cwd=KEYS,
            stdout=subprocess.DEVNULL,
        )
        try:
            peer.settimeout(10)
            return peer.recv(65535).hex()
        finally:
            sender.terminate()
            sender.wait()


def main():
    if "inside" not in sys.argv:
        command = ["unshare", "--net", sys.executable, __file__, "inside"]
        return subprocess.run(command, check=True).returncode
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_identity(folder)
        recorded = {
            wrap: record(folder, *options) for wrap, options in WRAPS.items()
        }
    pings = {name: record_static(words) for name, words in STATIC.items()}
    for name, value in (("handshakes", recorded), ("static-pings", pings)):
        text = json.dumps(value, indent=1)
        (HERE / f"{name}.json").write_text(text + os.linesep)
    counts = {wrap: len(packets) for wrap, packets in recorded.items()}
    sys.stdout.write(f"{counts}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
