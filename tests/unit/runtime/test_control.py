"""The status socket: real sockets, one loop."""

import os
import selectors
import socket
import stat
import threading

import pytest

from qubes_vpn.errors import OsRefusedError, UnavailableError
from qubes_vpn.runtime.control import LINE_MAX, ControlClient, ControlServer


@pytest.fixture
def served(tmp_path):
    """A server that answers with the verb, in a thread."""
    path = str(tmp_path / "run" / "control.sock")
    selector = selectors.DefaultSelector()
    server = ControlServer(
        path, selector, lambda verb, request: {"ok": True, "verb": verb}
    )
    wake_read, wake_write = os.pipe()
    ended = threading.Event()
    selector.register(wake_read, selectors.EVENT_READ, ended.set)

    def loop() -> None:
        while not ended.is_set():
            for key, _ in selector.select():
                key.data()

    thread = threading.Thread(target=loop)
    thread.start()
    yield path, server
    os.write(wake_write, b"\0")
    thread.join()
    server.close()
    selector.close()
    os.close(wake_read)
    os.close(wake_write)


def test_a_request_gets_its_answer(served):
    client = ControlClient(served[0])
    assert client.ask("status") == {"v": 1, "ok": True, "verb": "status"}
    client.close()


def test_the_socket_is_not_for_everybody(served):
    mode = stat.S_IMODE(os.stat(served[0]).st_mode)
    assert mode == 0o660


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[]",
        b"nonsense",
        b'{"v":2,"verb":"status"}',
        b'{"v":1,"verb":7}',
        b"[" * 5000,
        b"\xff\xfe",
    ],
)
def test_what_is_no_request_is_said_to_be_none(served, line):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(served[0])
        sock.sendall(line + b"\n")
        assert b"not a request" in sock.recv(4096)


def test_an_endless_line_ends_the_connection(served):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(served[0])
        sock.settimeout(10)
        try:
            sock.sendall(b"x" * (LINE_MAX + 100))
            received = sock.recv(1)
        except ConnectionError:
            received = b""
        assert received == b""
    client = ControlClient(served[0])
    assert client.ask("status")["ok"]
    client.close()


def test_who_watches_is_told(served):
    client = ControlClient(served[0])
    client.ask("watch")
    served[1].changed({"ok": True, "phase": "connected"})
    assert client.next()["phase"] == "connected"
    client.close()


def test_nobody_there_is_said_in_one_line(tmp_path):
    with pytest.raises(UnavailableError, match="no client answers at"):
        ControlClient(str(tmp_path / "none.sock"))


def test_a_place_where_no_socket_can_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with selectors.DefaultSelector() as selector, pytest.raises(OsRefusedError):
        ControlServer(
            str(tmp_path / "file" / "sock"), selector, lambda v, r: {}
        )
