"""Debian's openvpn as the peer: a server in the internet, a client in a qube.

Both write a log that tests read: what the peer says is what is asserted.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Self, TypeAlias

from lab import addresses as at
from lab.capture import Endpoint
from lab.namespace import LabError, Namespace, kill
from lab.pki import Pki, pki, static_key

Address: TypeAlias = IPv4Address | IPv6Address

OPENVPN = "/usr/sbin/openvpn"
STARTED = "Initialization Sequence Completed"
# openvpn 2.7 derives later epochs from the first key of each negotiation
KEYED = (
    r"Outgoing (?:Data Channel|Epoch Data key 1): "
    r"Cipher '([^']+)' initialized"
)
WAIT = 20.0
_numbers = itertools.count()

DEFAULT_PUSH = (
    "redirect-gateway def1",
    f"dhcp-option DNS {at.TUNNEL_DNS}",
    "ping 2",
    "ping-restart 10",
)


class Wrap(StrEnum):
    """How control packets are wrapped, by the directive's name."""

    PLAIN = "plain"
    TLS_AUTH = "tls-auth"
    TLS_CRYPT = "tls-crypt"
    TLS_CRYPT_V2 = "tls-crypt-v2"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a lab server is like; dataclasses.replace() makes another.

    proto: udp or tcp; IPv4 or IPv6 follows from the address.
    cipher: the data-ciphers list. auth: the HMAC of tls-auth and CBC.
    tunnel: its networks are 10.8.TUNNEL.0/24 and fd00:8:TUNNEL::/64.
    users: name -> password; then the client gives them. certificates: the
    client gives one. force_cookie: of tls-crypt-v2. reneg: --reneg-sec, 0 for
    never. push: pushed lines.
    extra: lines of its configuration. client_extra: lines of its profile.
    """

    wrap: Wrap = Wrap.TLS_CRYPT
    cipher: str = "AES-256-GCM"
    auth: str = "SHA256"
    proto: str = "udp"
    address: Address = at.SERVER4
    port: int = at.VPN_PORT
    tunnel: int = 0
    users: tuple[tuple[str, str], ...] = ()
    certificates: bool = True
    force_cookie: bool = False
    tls_max: str = ""
    reneg: int = 3600
    ipv6: bool = False
    push: tuple[str, ...] = DEFAULT_PUSH
    extra: tuple[str, ...] = ()
    client_extra: tuple[str, ...] = ()

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens."""
        return Endpoint(self.address, self.proto, self.port)

    @property
    def network4(self) -> IPv4Address:
        """The first address of its tunnel network; the server has the next."""
        return IPv4Address(f"10.8.{self.tunnel}.0")


@functools.cache
def wrap_keys(wrap: Wrap) -> tuple[str, str]:
    """The server's and the client's key file for a wrap, once per process."""
    if wrap == Wrap.PLAIN:
        return "", ""
    if wrap != Wrap.TLS_CRYPT_V2:
        key = static_key()
        return key, key
    with tempfile.TemporaryDirectory() as scratch:
        server, client = Path(scratch, "server"), Path(scratch, "client")
        genkey = [OPENVPN, "--genkey"]
        subprocess.run(
            [*genkey, "tls-crypt-v2-server", str(server)],
            check=True,
            capture_output=True,
        )
        subprocess.run(
            [
                *(OPENVPN, "--tls-crypt-v2", str(server)),
                *("--genkey", "tls-crypt-v2-client", str(client)),
            ],
            check=True,
            capture_output=True,
        )
        return server.read_text(), client.read_text()


def _inline(tag: str, text: str) -> str:
    return f"<{tag}>\n{text.strip()}\n</{tag}>"


class _Program:
    """A running openvpn and its log. program: the words that start it."""

    program: Sequence[str] = (OPENVPN,)

    def __init__(self, namespace: Namespace, name: str, scratch: Path) -> None:
        self.namespace = namespace
        self.name = f"{name}{next(_numbers)}"
        self.scratch = scratch / self.name
        self.scratch.mkdir(mode=0o700)
        self.log_path = self.scratch / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The running program."""
        if self._process is None:
            raise LabError(f"{self.name} is not running")
        return self._process

    @property
    def log(self) -> str:
        """All that it has said so far."""
        with contextlib.suppress(FileNotFoundError):
            return self.log_path.read_text(errors="replace")
        return ""

    def config(self) -> str:
        """Its configuration."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it (again); the log goes on."""
        path = self.scratch / "config"
        path.write_text(self.config())
        with self.log_path.open("ab") as log:
            self._process = self.namespace.popen(
                [
                    *self.program,
                    *("--config", str(path), "--suppress-timestamps"),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def signal(self, number: signal.Signals) -> None:
        """SIGUSR1 is a soft restart, SIGHUP a hard one, SIGSTOP silence."""
        self.process.send_signal(number)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            kill(self._process)
            self._process = None

    def wait_for(
        self, pattern: str, *, count: int = 1, timeout: float = WAIT
    ) -> re.Match[str]:
        """Wait until the log has `count` lines like this; return the last.

        Raises LabError, with the log, when it does not come or it exits.
        """
        found: list[re.Match[str]] = []

        def seen() -> bool:
            found[:] = re.finditer(pattern, self.log)
            return len(found) >= count

        self._wait(seen, timeout, f"{count} x {pattern!r}")
        return found[count - 1]

    def _wait(
        self, done: Callable[[], bool], timeout: float, what: str
    ) -> None:
        limit = time.monotonic() + timeout
        while not done():
            ended = self._process is None or self._process.poll() is not None
            if (ended and not done()) or time.monotonic() > limit:
                state = "ended" if ended else f"silent for {timeout} s"
                raise LabError(
                    f"{self.name} {state}, without {what}:\n{self.log[-4000:]}"
                )
            time.sleep(0.02)


class Server(_Program):
    """An openvpn server in the lab's internet.

    start() returns when it listens. The lab's tunnel resolver is behind it.
    """

    def __init__(
        self,
        namespace: Namespace,
        scratch: Path,
        settings: Settings | None = None,
    ) -> None:
        super().__init__(namespace, "server", scratch)
        self.settings = settings or Settings()
        self.pki = pki()

    def start(self) -> None:
        """Start it and wait until it listens."""
        before = self.log.count(STARTED)
        super().start()
        self.wait_for(STARTED, count=before + 1)

    def config(self) -> str:
        """Its configuration."""
        settings = self.settings
        family = settings.address.version
        role = "-server" if settings.proto == "tcp" else ""
        lines = [
            f"dev {self.device}",
            "dev-type tun",
            f"proto {settings.proto}{family}{role}",
            f"local {settings.address}",
            f"port {settings.port}",
            "topology subnet",
            f"server {settings.network4} 255.255.255.0",
            f"data-ciphers {settings.cipher}",
            f"auth {settings.auth}",
            "dh none",
            "keepalive 2 10",
            f"reneg-sec {settings.reneg}",
            "duplicate-cn",
            "disable-dco",
            "verb 4",
            *(f'push "{line}"' for line in settings.push),
            *self._ipv6(),
            *self._authentication(),
            *self._wrap(),
            *([f"tls-version-max {settings.tls_max}"] * bool(settings.tls_max)),
            *settings.extra,
            _inline("ca", self.pki.ca.certificate),
            _inline("cert", self.pki.server.certificate),
            _inline("key", self.pki.server.key),
        ]
        return "\n".join(lines) + "\n"

    @property
    def device(self) -> str:
        """Its tun device."""
        return f"tun-{self.name}"[:15]

    def ciphers(self) -> list[str]:
        """The data cipher of each key so far, in the server's own words."""
        return re.findall(KEYED, self.log)

    def wait_rekeyed(self, count: int = 1, timeout: float = 2 * WAIT) -> None:
        """Wait for so many keys more than there are now."""
        self.wait_for(KEYED, count=len(self.ciphers()) + count, timeout=timeout)

    def client_profile(self, **changed: object) -> str:
        """An .ovpn with everything inline.

        Keywords replace Settings' fields for the client's side alone, such as
        address= and port= of a relay, or wrap=, cipher=.
        """
        settings = dataclasses.replace(self.settings, **changed)  # type: ignore[arg-type]
        return client_profile(settings, self.pki)

    def credentials(self) -> str:
        """A --auth-user-pass file: name and password of the first user."""
        (name, password), *_ = self.settings.users
        return f"{name}\n{password}\n"

    def _ipv6(self) -> list[str]:
        if not self.settings.ipv6:
            return []
        return [
            f"server-ipv6 fd00:8:{self.settings.tunnel}::/64",
            'push "redirect-gateway def1 ipv6"',
        ]

    def _authentication(self) -> list[str]:
        settings, lines = self.settings, []
        if settings.users:
            script = self.scratch / "verify"
            pairs = self.scratch / "users"
            pairs.write_text(
                "".join(f"{n}\n{p}\n\n" for n, p in settings.users)
            )
            script.write_text(_VERIFY.format(users=pairs))
            script.chmod(0o700)
            lines += [
                "script-security 2",
                f"tmp-dir {self.scratch}",
                f"auth-user-pass-verify {script} via-file",
            ]
        if not settings.certificates:
            lines.append("verify-client-cert none")
        return lines

    def _wrap(self) -> list[str]:
        wrap = self.settings.wrap
        if wrap == Wrap.PLAIN:
            return []
        direction = ["key-direction 0"] * (wrap == Wrap.TLS_AUTH)
        key = wrap_keys(wrap)[0]
        if self.settings.force_cookie:
            # an inline block has no room for the word
            path = self.scratch / "tls-crypt-v2.key"
            path.touch(0o600)
            path.write_text(key)
            return [f"{wrap} {path} force-cookie"]
        return [*direction, _inline(wrap, key)]


# Each user is two lines and an empty one, as openvpn writes the two it asks of.
_VERIFY = """#!/bin/sh
{{ read -r name; read -r password; }} < "$1"
while read -r known && read -r secret && read -r _; do
    [ "$name" = "$known" ] && [ "$password" = "$secret" ] && exit 0
done < {users}
exit 1
"""


def client_profile(settings: Settings, known: Pki) -> str:
    """The profile that a provider of such a server would hand out."""
    role = "-client" if settings.proto == "tcp" else ""
    proto = f"{settings.proto}{settings.address.version}{role}"
    wrap, lines = settings.wrap, list[str]()
    if settings.certificates:
        lines += [
            _inline("cert", known.client.certificate),
            _inline("key", known.client.key),
        ]
    if settings.users:
        lines.append("auth-user-pass")
    if wrap == Wrap.TLS_AUTH:
        lines.append("key-direction 1")
    if wrap != Wrap.PLAIN:
        lines.append(_inline(wrap, wrap_keys(wrap)[1]))
    if settings.tls_max:
        lines.append(f"tls-version-max {settings.tls_max}")
    return (
        "\n".join(
            [
                "client",
                "dev tun",
                f"proto {proto}",
                f"remote {settings.address} {settings.port}",
                "nobind",
                "remote-cert-tls server",
                f"data-ciphers {settings.cipher}",
                f"auth {settings.auth}",
                f"reneg-sec {settings.reneg}",
                "verb 3",
                *lines,
                *settings.client_extra,
                _inline("ca", known.ca.certificate),
            ]
        )
        + "\n"
    )


class Client(_Program):
    """Debian's openvpn client with a profile: the other side of comparisons.

    It sets the routes of redirect-gateway in its namespace, closes nothing,
    and needs `credentials` where the profile says auth-user-pass.
    """

    def __init__(
        self,
        namespace: Namespace,
        scratch: Path,
        profile: str,
        *,
        credentials: str = "",
        device: str = "tun-openvpn",
        extra: Sequence[str] = (),
    ) -> None:
        super().__init__(namespace, "client", scratch)
        self.profile = profile
        self.device = device
        self._credentials = credentials
        self._extra = extra

    def config(self) -> str:
        """Its configuration: the profile, and what the lab needs."""
        lines = [*self._extra, "disable-dco", f"dev {self.device}"]
        lines.append("dev-type tun")
        profile = self.profile.replace("\ndev tun\n", "\n")
        if self._credentials:
            path = self.scratch / "credentials"
            path.touch(0o600)
            path.write_text(self._credentials)
            profile = profile.replace("\nauth-user-pass\n", "\n")
            lines.append(f"auth-user-pass {path}")
        return profile + "\n".join(lines) + "\n"

    def wait_connected(self, *, count: int = 1, timeout: float = WAIT) -> None:
        """Wait until it is up for the `count`-th time."""
        self.wait_for(STARTED, count=count, timeout=timeout)

    @property
    def cpu_seconds(self) -> float:
        """User and system time so far."""
        return cpu_seconds(self.process.pid)


def cpu_seconds(pid: int) -> float:
    """User and system CPU time of a process so far, in seconds."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
