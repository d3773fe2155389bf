"""A password is asked of PAM, with a service of the test's own."""

import os
import sys

import pytest

from lab.namespace import Namespace

ASK = """
import sys
from qubes_vpn.system.pam import authenticate
user, password = sys.argv[1:]
print(authenticate("qubes-vpn-test", user, password))
"""
SCRIPT = """#!/bin/sh
read -r password
test "$PAM_USER" = alice && test "$password" = "wonder land"
"""


@pytest.fixture
def ask(tmp_path):
    script = tmp_path / "check"
    script.write_text(SCRIPT)
    script.chmod(0o755)

    def ask(user, password, account="required pam_permit.so"):
        service = (
            f"auth required pam_exec.so quiet expose_authtok {script}\n"
            f"account {account}\n"
        )
        files = {"/etc/pam.d/qubes-vpn-test": service}
        namespace = Namespace(f"qvpam{os.getpid()}", private=files)
        try:
            return namespace.run([sys.executable, "-c", ASK, user, password])
        finally:
            namespace.close()

    return lambda *words, **more: ask(*words, **more).stdout.strip()


def test_pam_decides(ask):
    assert ask("alice", "wonder land") == "True"
    assert ask("alice", "wonder") == "False"
    assert ask("bob", "wonder land") == "False"
    assert ask("alice", "") == "False"


def test_an_account_that_is_closed_is_refused(ask):
    closed = "required pam_deny.so"
    assert ask("alice", "wonder land", account=closed) == "False"


def test_too_long_an_answer_is_refused_and_not_cut(ask):
    assert ask("alice", "x" * 600) == "False"
