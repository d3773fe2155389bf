"""Any bytes on the control socket get answers of one line, or a hang-up.

Nothing that changes something is done for who is not root.
"""

import contextlib
import json
import selectors
import socket
import tempfile

from qubes_vpn.runtime.control import ControlServer

FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-control-")
PATH = f"{FOLDER.name}/control.sock"
SELECTOR = selectors.DefaultSelector()
ASKED = []
SEEDS = (
    b'u{"v":1,"verb":"status"}\n',
    b'r{"v":1,"verb":"switch","profile":"a"}\n{"v":1,"verb":"connect"}\n',
    b'u{"v":1,"verb":"answer","username":"","password":"x"}\n',
    b'u{"v":2,"verb":"status"}\n[]\nnull\n{}\n\xff\n',
    b"u" + b"[" * 3000 + b"\n" + b'{"v":' + b"1" * 900 + b"}\n",
)


def handle(verb, request):
    """Note the verb; answer as the agent does to one it does not know."""
    ASKED.append(verb)
    if verb in {"status", "watch"}:
        return {"ok": True}
    return {"ok": False, "error": f"no verb {verb!r}"}


SERVER = ControlServer(PATH, SELECTOR, handle)


def turn() -> None:
    """Let the server do what is to be done."""
    while ready := SELECTOR.select(0):
        for key, _ in ready:
            key.data()


def one_input(data: bytes) -> None:
    """Connect, send, read the answers."""
    ASKED.clear()
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(PATH)
    turn()
    (one,) = SERVER._clients.values()
    one.uid = 0 if data[:1] == b"r" else 1000
    client.settimeout(5)
    with contextlib.suppress(BrokenPipeError):
        client.sendall(data[1:])
    turn()
    client.shutdown(socket.SHUT_WR)
    turn()
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while more := client.recv(1 << 16):
            received += more
    client.close()
    turn()
    assert not SERVER._clients
    answers = [json.loads(line) for line in received.splitlines()]
    assert all(answer["v"] == 1 for answer in answers)
    assert len(answers) <= data[1:].count(b"\n")
    if data[:1] != b"r":
        assert set(ASKED) <= {"status", "watch"}
