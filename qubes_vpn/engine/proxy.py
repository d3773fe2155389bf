"""Asking a proxy for a connection to the server: HTTP CONNECT and SOCKS5.

A dialog takes what the proxy says and gives what to say next. It is used
before the first byte of OpenVPN, over the stream that goes on to carry it,
or that must stay open while the proxy relays datagrams.
Sources: RFC 9110 9.3.6, RFC 7617 (basic), RFC 7616 (digest), RFC 1928 and
1929 (SOCKS5 with a password).
"""

import base64
import hashlib
import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Protocol

from qubes_vpn.config.model import Proxy, Remote
from qubes_vpn.errors import SessionError

REPLY_MAX: Final = 16 * 1024
DIGESTS: Final = {"MD5": "md5", "SHA-256": "sha256"}
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})")
_PARAMETER: Final = re.compile(r'([A-Za-z]+)\s*=\s*(?:"([^"]*)"|([^",\s]+))')
_SOCKS_ERRORS: Final = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "time to live expired",
    7: "command not supported",
    8: "address type not supported",
}


class Dialog(Protocol):
    """What both kinds of proxy have in common.

    done: the stream is the server's from now on. again: the proxy wants a
    new connection, on which begin() says more than before.
    """

    done: bool
    again: bool

    def begin(self) -> bytes:
        """Give what to say first on a fresh connection."""

    def feed(self, untrusted: bytes) -> bytes:
        """Take what the proxy said; give the answer. Raises SessionError."""

    def closed(self) -> None:
        """Take note of the connection's end. Raises SessionError."""


def dialog(remote: Remote, entropy: Callable[[int], bytes]) -> Dialog | None:
    """Give the dialog for a remote's proxy; None: it has none."""
    proxy, host, port = remote.proxy, remote.host, remote.port
    if proxy is None:
        return None
    if proxy.kind == "http":
        return HttpConnect(proxy, host, port, entropy)
    return Socks5(proxy, host, port, datagrams=remote.proto == "udp")


def relay_header(remote: Remote) -> bytes:
    """Give what stands before each datagram to a relay; b"" without one."""
    if remote.proxy is None or remote.proto != "udp":
        return b""
    return bytes(3) + _socks_address(remote.host, remote.port)


def relay_header_size(untrusted: memoryview) -> int:
    """Give the size of a relay's header; 0: it is none, or of a fragment."""
    if len(untrusted) < 5 or untrusted[:3] != bytes(3):
        return 0
    sizes = {1: 4, 3: 1 + untrusted[4], 4: 16}
    size = 4 + sizes.get(untrusted[3], len(untrusted)) + 2
    return size if size <= len(untrusted) else 0


def _socks_address(host: str, port: int) -> bytes:
    """Give kind, address and port, as SOCKS5 has them (RFC 1928, 4)."""
    try:
        address = ip_address(host)
        where = bytes((1 if address.version == 4 else 4,)) + address.packed
    except ValueError:
        name = host.encode("idna")
        where = bytes((3, len(name))) + name
    return where + port.to_bytes(2)


def _refused(detail: str) -> SessionError:
    return SessionError("proxy-refused", detail, "QV-304")


class HttpConnect:
    """HTTP CONNECT with basic or digest authentication."""

    def __init__(
        self,
        proxy: Proxy,
        host: str,
        port: int,
        entropy: Callable[[int], bytes],
    ) -> None:
        self.done = False
        self.again = False
        self._proxy = proxy
        name = f"[{host}]" if ":" in host else host
        self._target = f"{name}:{port}"
        self._entropy = entropy
        self._received = bytearray()
        self._challenge: dict[str, str] | None = None
        self._basic = proxy.auth == "basic"
        self._refusals = 0

    def begin(self) -> bytes:
        """Give the request."""
        self.again = False
        self._received.clear()
        lines = [
            f"CONNECT {self._target} HTTP/1.0",
            f"Host: {self._target}",
        ]
        proxy = self._proxy
        if proxy.user_agent:
            lines.append(f"User-Agent: {proxy.user_agent}")
        lines.extend(f"{name}: {value}" for name, value in proxy.headers)
        if self._challenge is not None:
            lines.append(f"Proxy-Authorization: {self._digest()}")
        elif self._basic:
            pair = f"{proxy.username}:{proxy.password}".encode()
            text = base64.b64encode(pair).decode()
            lines.append(f"Proxy-Authorization: Basic {text}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def feed(self, untrusted: bytes) -> bytes:
        """Take a part of the reply; only its head matters."""
        self._received += untrusted
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            if len(self._received) > REPLY_MAX:
                raise _refused("http-proxy: its reply does not end")
            return b""
        head = bytes(self._received[:end])
        found = _STATUS.match(head)
        if found is None:
            raise _refused("http-proxy: it does not speak HTTP")
        status = int(found[1])
        if status == 200:
            if len(self._received) > end + 4:
                raise _refused("http-proxy: it speaks out of turn")
            self.done = True
        elif status == 407:
            self._take_challenge(head.decode("latin-1"))
        else:
            raise _refused(f"http-proxy: it answers {status}")
        return b""

    def closed(self) -> None:
        """A proxy may hang up after its challenge; otherwise it is over."""
        if not self.again:
            raise _refused("http-proxy: it hangs up")

    def _take_challenge(self, head: str) -> None:
        self._refusals += 1
        if self._refusals > 1 or not self._proxy.username:
            raise _refused(
                "http-proxy: it wants a user name and a password"
                " (http-proxy-user-pass), or refuses those"
            )
        offers = [
            line.partition(":")[2].strip()
            for line in head.split("\r\n")
            if line.lower().startswith("proxy-authenticate:")
        ]
        for offer in offers:
            scheme, _, rest = offer.partition(" ")
            if not rest.isprintable():
                # it would become a line of what we say
                continue
            challenge = {
                name.lower(): quoted or plain
                for name, quoted, plain in _PARAMETER.findall(rest)
            }
            known = challenge.get("algorithm", "MD5").upper() in DIGESTS
            if scheme.lower() == "digest" and known and "nonce" in challenge:
                self._challenge = challenge
                self.again = True
                return
        # auto-nct: no clear text, so a basic offer is not taken up
        offered = {offer.partition(" ")[0].lower() for offer in offers}
        if "basic" in offered and self._proxy.auth in ("auto", "basic"):
            self._basic = True
            self.again = True
            return
        names = ", ".join(sorted(offered)) or "nothing"
        raise _refused(
            f"http-proxy: it offers {names[:60]}; basic and digest are"
            " possible, NTLM is not: its hashes are broken"
        )

    def _digest(self) -> str:
        """RFC 7616 3.4, with quality of protection auth where offered."""
        challenge, proxy = self._challenge, self._proxy
        assert challenge is not None
        name = DIGESTS[challenge.get("algorithm", "MD5").upper()]

        def digest(text: str) -> str:
            # the proxy chooses MD5; what it guards is the proxy's own door
            return hashlib.new(
                name, text.encode(), usedforsecurity=False
            ).hexdigest()

        realm, nonce = challenge.get("realm", ""), challenge["nonce"]
        first = digest(f"{proxy.username}:{realm}:{proxy.password}")
        second = digest(f"CONNECT:{self._target}")
        fields = {
            "username": proxy.username,
            "realm": realm,
            "nonce": nonce,
            "uri": self._target,
        }
        bare = {}
        offered = re.split(r"[,\s]+", challenge.get("qop", ""))
        if "auth" in offered:
            cnonce = self._entropy(16).hex()
            bare = {"qop": "auth", "nc": "00000001"}
            fields["cnonce"] = cnonce
            middle = f"{nonce}:00000001:{cnonce}:auth"
        else:
            middle = nonce
        fields["response"] = digest(f"{first}:{middle}:{second}")
        if "opaque" in challenge:
            fields["opaque"] = challenge["opaque"]
        if "algorithm" in challenge:
            bare["algorithm"] = challenge["algorithm"]
        quoted = [f'{key}="{_quote(value)}"' for key, value in fields.items()]
        plain = [f"{key}={value}" for key, value in bare.items()]
        return "Digest " + ", ".join(quoted + plain)


def _quote(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


class Socks5:
    """SOCKS5 with no authentication or a password.

    datagrams: UDP ASSOCIATE instead of CONNECT; then relay_port says where
    to send them, while the connection to the proxy is open.
    """

    def __init__(
        self, proxy: Proxy, host: str, port: int, *, datagrams: bool = False
    ) -> None:
        self.done = False
        self.again = False
        self._datagrams = datagrams
        self._relay = b""
        self._proxy = proxy
        self._host = host
        self._port = port
        self._received = bytearray()
        self._expect = self._method_chosen

    def begin(self) -> bytes:
        """Give the greeting: version, and the methods that we know."""
        methods = b"\x00\x02" if self._proxy.username else b"\x00"
        return bytes((5, len(methods))) + methods

    def feed(self, untrusted: bytes) -> bytes:
        """Take bytes; give the next message when one of theirs is whole."""
        self._received += untrusted
        if len(self._received) > REPLY_MAX:
            raise _refused("socks-proxy: its reply does not end")
        return self._expect()

    def closed(self) -> None:
        """Its end is ours too."""
        raise _refused("socks-proxy: it hangs up")

    def _method_chosen(self) -> bytes:
        if len(self._received) < 2:
            return b""
        version, method = self._take(2)
        if version != 5:
            raise _refused("socks-proxy: it does not speak SOCKS5")
        if method == 0:
            return self._request()
        if method == 2 and self._proxy.username:
            self._expect = self._logged_in
            name = self._proxy.username.encode()
            password = self._proxy.password.encode()
            if len(name) > 255 or len(password) > 255:
                raise _refused("socks-proxy: name or password too long")
            return (
                bytes((1, len(name)))
                + name
                + bytes((len(password),))
                + password
            )
        raise _refused(
            "socks-proxy: it wants a user name and a password (third word of"
            " socks-proxy), or a method that is not known here"
        )

    def _logged_in(self) -> bytes:
        if len(self._received) < 2:
            return b""
        _, status = self._take(2)
        if status != 0:
            raise _refused("socks-proxy: it refuses the password")
        return self._request()

    def _request(self) -> bytes:
        self._expect = self._connected
        if self._datagrams:
            # where we send from is not known yet: any address
            return b"\x05\x03\x00" + _socks_address("0.0.0.0", 0)  # noqa: S104
        return b"\x05\x01\x00" + _socks_address(self._host, self._port)

    def _connected(self) -> bytes:
        received = self._received
        if len(received) < 5:
            return b""
        if received[0] != 5:
            raise _refused("socks-proxy: it does not speak SOCKS5")
        if received[1] != 0:
            why = _SOCKS_ERRORS.get(received[1], f"error {received[1]}")
            raise _refused(f"socks-proxy: {why}")
        sizes = {1: 4, 3: 1 + received[4], 4: 16}
        if received[3] not in sizes:
            raise _refused("socks-proxy: an unknown kind of address")
        whole = 4 + sizes[received[3]] + 2
        if len(received) < whole:
            return b""
        if len(received) > whole:
            raise _refused("socks-proxy: it speaks out of turn")
        self._relay = bytes(received[3:])
        self.done = True
        return b""

    def relay_port(self, proxy: IPv4Address | IPv6Address) -> int:
        """Give the port of the relay, which must be the proxy itself.

        proxy: its address. Raises SessionError for another address: nothing
        may be sent there.
        """
        kind, where, port = self._relay[0], self._relay[1:-2], self._relay[-2:]
        if kind == 3:
            raise SessionError(
                "proxy-refused", "socks-proxy: it names its relay", "QV-305"
            )
        at = ip_address(where)
        number = int.from_bytes(port)
        if not number or (at != proxy and not at.is_unspecified):
            raise SessionError(
                "proxy-refused",
                f"socks-proxy: it relays at {at} port {number}, and only its"
                f" own address {proxy} may be used",
                "QV-305",
            )
        return number

    def _take(self, count: int) -> bytes:
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken
