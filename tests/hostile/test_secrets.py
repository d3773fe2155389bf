"""Secrets stay where they are: in source, in files, in a whole run."""

import ast
import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from lab import Lab
from lab import addresses as at
from lab.appliance import Appliance
from lab.openvpn import Server, Settings
from qubes_vpn.errors import UnreadableError
from qubes_vpn.runtime.foreground import read_login
from tests.hostile.rows import ROOT
from tests.interop.test_proxies import (
    NAME,
    start_tinyproxy,
    wait_for_port,
)
from tests.interop.test_proxies import PASSWORD as PROXY_PASSWORD

# What is compared byte by byte with something secret, by its usual names.
TAGS = {
    *("tag", "mac", "hmac", "digest", "expected", "cookie", "signature"),
    *("password", "token", "secret", "psk"),
}
PACKAGES = ("crypto", "engine", "dataplane", "runtime")


def named(node):
    """Give the last name of an expression."""
    match node:
        case ast.Name(name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value) | ast.Call(value):
            return named(value)
    return ""


def comparisons(tree):
    """Give every == and != with a tag on a side, constants apart."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        equal = any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops)
        words = {
            word for side in sides for word in named(side).split("_") if word
        }
        fixed = any(isinstance(side, ast.Constant) for side in sides)
        if equal and words & TAGS and not fixed:
            yield ast.unparse(node), node.lineno


def test_tags_meet_in_constant_time():
    found = [
        (str(path.relative_to(ROOT)), text)
        for package in PACKAGES
        for path in (ROOT / "qubes_vpn" / package).glob("*.py")
        for text, _ in comparisons(ast.parse(path.read_text()))
    ]
    assert found == []


def test_a_comparison_of_tags_is_found():
    bad = "if tag == expected: pass\nif packet.hmac[:8] != self._tag: pass"
    assert len(list(comparisons(ast.parse(bad)))) == 2
    good = "hmac.compare_digest(tag, expected)\nif size == 3: pass"
    assert not list(comparisons(ast.parse(good)))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_login_that_others_can_use_is_refused(tmp_path, monkeypatch, mode):
    login = tmp_path / "login"
    login.write_text(f"alice\n{PASSWORD}\n")
    login.chmod(mode)
    with pytest.raises(UnreadableError, match="chmod go=") as raised:
        read_login(str(login))
    assert PASSWORD not in str(raised.value)
    login.chmod(0o600)
    assert read_login(str(login)) == ("alice", PASSWORD)
    if not os.geteuid():
        os.chown(login, 1234, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    with pytest.raises(UnreadableError, match="others"):
        read_login(str(login))


# --- a whole run ---------------------------------------------------------------

PASSWORD = "correct-horse-battery-staple"
PASSPHRASE = "open-up-the-private-key"
# what a key is when it is printed, in hex or base64
LIKE_A_KEY = re.compile(rb"[0-9a-fA-F]{32}|[0-9A-Za-z+/]{43}")
USERS = (("alice", PASSWORD),)


def secrets_of(profile):
    """Give every secret of a profile: lines of its keys, and the password."""
    found = [PASSWORD, PASSPHRASE, PROXY_PASSWORD, "SESS_ID_AT_"]
    found.append(base64.b64encode(f"{NAME}:{PROXY_PASSWORD}".encode()).decode())
    for tag in ("key", "tls-crypt"):
        _, _, rest = profile.partition(f"<{tag}>\n")
        body, _, _ = rest.partition(f"</{tag}>")
        found += [
            line
            for line in body.split("\n")
            if len(line) >= 32 and not line.startswith(("-", "#"))
        ]
    return [one.encode() for one in found]


def seen_of(pid):
    """Give what everybody, and who is root, can see of a process."""
    for name in ("cmdline", "environ", "comm", "status"):
        with contextlib.suppress(OSError):
            yield f"{pid}/{name}", Path(f"/proc/{pid}/{name}").read_bytes()


def locked(profile):
    """Give the profile with its key under a passphrase."""
    head, key, tail = re.split(r"(?s)(?<=<key>\n)(.*)(?=</key>)", profile)
    found = load_pem_private_key(key.encode(), None)
    shut = found.private_bytes(
        Encoding.PEM,
        PrivateFormat.PKCS8,
        BestAvailableEncryption(PASSPHRASE.encode()),
    )
    return head + shut.decode() + tail


def private(path, text):
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.mark.netns
def test_a_whole_run_shows_no_secret():
    settings = Settings(users=USERS, proto="tcp", extra=("auth-gen-token",))
    with Lab() as lab:
        server = Server(lab.internet, lab.scratch, settings)
        server.start()
        profile = server.client_profile()
        secrets = secrets_of(profile)
        assert len(secrets) > 22
        port = start_tinyproxy(lab, login=True)
        wait_for_port(lab, port)
        through = private(
            lab.scratch / "proxy-login", f"{NAME}\n{PROXY_PASSWORD}\n"
        )
        shut = private(lab.scratch / "askpass", f"{PASSPHRASE}\n")
        profile = locked(profile) + (
            f"askpass {shut}\nhttp-proxy {at.RELAY4} {port} {through} basic\n"
        )
        login = private(lab.scratch / "login", server.credentials())
        wrong = private(lab.scratch / "wrong", f"alice\n{PASSWORD}x\n")
        state = lab.scratch / "state.json"
        appliance = Appliance(lab).lock()
        where = {}
        words = ("--auth-user-pass", str(login), "--state", str(state))
        appliance.connect(profile, *words).wait_connected()
        for pid in lab.vpn.pids():
            where.update(seen_of(pid))
            children = Path(f"/proc/{pid}/task/{pid}/children")
            assert children.exists()
        where["status"] = json.dumps(appliance.status()).encode()
        appliance.signal("engine", signal.SIGABRT)
        appliance.wait_connected(count=2)
        appliance.stop()
        where["log"] = appliance.log().encode()
        appliance.connect(profile, "--auth-user-pass", str(wrong))
        assert appliance.exit_status() == os.EX_NOPERM
        where["log of a refusal"] = appliance.log().encode()
        appliance.stop()
        server.stop()
        if state.exists():
            where["state.json"] = state.read_bytes()
        # the token was used: a second session came without a question
        assert "auth-token" in server.log
        cores = list(ROOT.glob("core*")) + list(lab.scratch.glob("core*"))
        assert not cores
        assert any(name.endswith("cmdline") for name in where)
        for name, content in where.items():
            for secret in secrets:
                assert secret not in content, name
            if name.startswith(("log", "status", "state")):
                assert not LIKE_A_KEY.search(content), name
        # the search finds what is there
        assert LIKE_A_KEY.search(profile.encode())
        assert any(secret in profile.encode() for secret in secrets[1:])


def test_the_engine_cannot_be_dumped_or_swapped():
    """Its limits and its flag, from a child that gives up as it does."""
    code = (
        "import os\n"
        "from qubes_vpn.system.privileges import drop_privileges\n"
        "drop_privileges(None, None)\n"
        "import ctypes\n"
        "import resource\n"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))\n"
        "if not os.geteuid():\n"
        "    print(resource.getrlimit(resource.RLIMIT_CORE))\n"
        "    print(resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == -1)\n"
        "    print(*open('/proc/self/status').read().split('VmLck:')[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    dumpable, *more = done.stdout.splitlines()
    assert dumpable == "0"
    if not os.geteuid():
        assert more[0] == "(0, 0)"
        # a container's root may be unable to raise the limit
        assert (int(more[2].split()[0]) > 1000) == (more[1] == "True")
