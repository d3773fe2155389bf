"""An HTTP proxy that wants a digest, which no small one of Debian's does.

Source: RFC 7616.
"""

import hashlib
import re
import secrets
import socket

from lab import addresses as at
from lab.capture import Endpoint
from lab.namespace import Namespace
from lab.relay import TcpRelay

HEAD_MAX = 1 << 14
HTTP_PORT = 8888
REALM = "the lab"
ALGORITHMS = {"MD5": "md5", "SHA-256": "sha256"}
_FIELD = re.compile(r'(\w+)=(?:"([^"]*)"|([^\s,"]+))')


class DigestProxy(TcpRelay):
    """Connects who knows the password to one server, and nobody else.

    algorithm: MD5 or SHA-256. refused: how many were asked for a digest.
    """

    def __init__(
        self,
        namespace: Namespace,
        server: Endpoint,
        login: tuple[str, str],
        *,
        algorithm: str = "MD5",
    ) -> None:
        super().__init__(namespace, server)
        self.endpoint = Endpoint(at.RELAY4, "tcp", HTTP_PORT)
        self.refused = 0
        self._login = login
        self._algorithm = algorithm
        self._nonce = secrets.token_hex(8)

    def _join(self, client: socket.socket) -> None:
        client.settimeout(5)
        head = b""
        while not head.endswith(b"\r\n\r\n") and len(head) < HEAD_MAX:
            if not (more := client.recv(1)):
                client.close()
                return
            head += more
        if self._admits(head.decode("latin-1")):
            client.sendall(b"HTTP/1.1 200 go on\r\n\r\n")
            super()._join(client)
            return
        self.refused += 1
        client.sendall(
            "HTTP/1.1 407 who are you\r\n"
            f'Proxy-Authenticate: Digest realm="{REALM}", qop="auth",'
            f' nonce="{self._nonce}", algorithm={self._algorithm}\r\n'
            "Content-Length: 0\r\n\r\n".encode()
        )
        client.close()

    def _admits(self, head: str) -> bool:
        method, target, _ = head.split("\r\n", maxsplit=1)[0].split(" ")
        server = f"{self._server.address}:{self._server.port}"
        if (method, target) != ("CONNECT", server):
            return False
        _, found, given = head.partition("Proxy-Authorization: Digest ")
        if not found:
            return False
        fields = {
            name: quoted or plain
            for name, quoted, plain in _FIELD.findall(given.split("\r\n")[0])
        }
        name, password = self._login
        secret = self._hash(name, REALM, password)
        said = self._hash("CONNECT", fields["uri"])
        proof = self._hash(
            secret,
            self._nonce,
            *(fields["nc"], fields["cnonce"], fields["qop"], said),
        )
        claims = ("username", "nonce", "uri", "response")
        wanted = [name, self._nonce, server, proof]
        return [fields[claim] for claim in claims] == wanted

    def _hash(self, *parts: str) -> str:
        text = ":".join(parts).encode()
        return hashlib.new(ALGORITHMS[self._algorithm], text).hexdigest()
