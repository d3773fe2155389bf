"""Questions of a server, answered by a command as a person would."""

import json

from lab.appliance import CONTROL, Appliance
from lab.namespace import LabError
from lab.traffic import fetch
from tests.unit.engine.test_live import ASKING


def answer(appliance, kind, text, *words):
    """Wait for a question of this kind, and answer it."""

    def asked():
        try:
            prompt = appliance.status()["prompt"]
        except LabError:
            return False
        return bool(prompt) and prompt["kind"] == kind

    appliance.wait(asked, 30, f"a question: {kind}")
    shown = json.dumps(appliance.status()["prompt"])
    appliance.command("answer", "--control", CONTROL, *words, text=text + "\n")
    return shown


def test_a_login_and_a_challenge_are_answered_once(lab, start_server, tmp_path):
    script = tmp_path / "verify"
    script.write_text(ASKING)
    script.chmod(0o700)
    server = start_server(
        extra=(
            *("script-security 2", f"tmp-dir {tmp_path}"),
            f"auth-user-pass-verify {script} via-file",
            "auth-gen-token 600",
        ),
        client_extra=("auth-user-pass", "connect-retry-max 1"),
    )
    appliance = Appliance(lab).lock()
    with appliance:
        appliance.connect(server.client_profile())
        answer(appliance, "credentials", "wonder land", "--username", "alice")
        shown = answer(appliance, "challenge", "4711")
        assert "Which code?" in shown
        appliance.wait_connected()
        assert fetch(lab.app(1)).status == 200
        # the token that the server gave is enough for the next session
        appliance.command("connect", "--control", CONTROL)
        appliance.wait_connected(count=2)
        assert fetch(lab.app(1)).status == 200
        assert appliance.log().count("QV-320") == 2
        server.wait_for("Username/auth-token authentication succeeded")
        assert "4711" not in appliance.log()
        assert "wonder land" not in appliance.log()


def test_nobody_is_connected_to_before_the_user_has_answered(lab, start_server):
    server = start_server(proto="tcp", users=(("alice", "wonder land"),))
    with Appliance(lab).lock() as appliance:
        appliance.connect(server.client_profile())
        appliance.wait_log("QV-320")
        assert "TCP connection established" not in server.log
        assert appliance.status()["phase"] == "blocked"
        answer(appliance, "credentials", "wonder land", "--username", "alice")
        appliance.wait_connected()
        assert fetch(lab.app(1)).status == 200
    assert server.log.count("TCP connection established") == 1


def test_what_was_answered_is_forgotten_with_auth_nocache(lab, start_server):
    server = start_server(
        users=(("alice", "wonder land"),),
        client_extra=("auth-nocache",),
    )
    with Appliance(lab).lock() as appliance:
        appliance.connect(server.client_profile())
        answer(appliance, "credentials", "wonder land", "--username", "alice")
        appliance.wait_connected()
        appliance.command("connect", "--control", CONTROL)
        answer(appliance, "credentials", "wonder land", "--username", "alice")
        appliance.wait_connected(count=2)
        assert fetch(lab.app(1)).status == 200


def test_a_question_of_the_profile_is_asked_with_the_login(
    lab, start_server, tmp_path
):
    script = tmp_path / "verify"
    script.write_text(ASKING)
    script.chmod(0o700)
    server = start_server(
        extra=(
            *("script-security 2", f"tmp-dir {tmp_path}"),
            f"auth-user-pass-verify {script} via-file",
        ),
        client_extra=(
            "auth-user-pass",
            'static-challenge "Which code?" 1',
        ),
    )
    with Appliance(lab).lock() as appliance:
        appliance.connect(server.client_profile())
        answer(appliance, "credentials", "wonder land", "--username", "alice")
        assert "Which code?" in answer(appliance, "challenge", "4711")
        appliance.wait_connected()
        assert fetch(lab.app(1)).status == 200
