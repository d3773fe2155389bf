"""Updates over the VPN: the qrexec policy for the updates proxy, and dom0's.

Template updates are qrexec calls to a proxy in a net qube; by default that of
sys-net, so they pass by any VPN. A policy file of ours, before Qubes' own,
sends them to the proxy in a VPN qube, which knows no other way out.
"""

import re
import shlex

from qubes_vpn.qubes.admin.plan import (
    EX_OSERR,
    AdminError,
    Command,
    Host,
    Plan,
    Step,
)

POLICY_NAME = "30-qubes-vpn-updates"
PROXY_FEATURE = "service.qubes-updates-proxy"

_TEXT = """\
# Written by `qvm-vpn updates on`; `qvm-vpn updates off` removes it.
qubes.UpdatesProxy * @type:TemplateVM @default allow target={0}
qubes.UpdatesProxy * @type:TemplateVM {0} allow target={0}
qubes.UpdatesProxy * @type:TemplateVM @anyvm deny
"""
_TARGET = re.compile(r"@default allow target=([A-Za-z][A-Za-z0-9_.-]{0,30})\n")


def read() -> str | None:
    """Return our policy file's text; None when there is none.

    Raises AdminError when the policy cannot be asked for.
    """
    from qrexec.policy.admin_client import PolicyClient

    client = PolicyClient()
    try:
        if POLICY_NAME not in client.policy_list():
            return None
        text: str = client.policy_get(POLICY_NAME)[0]
    except Exception as error:
        raise _failed(error) from error
    return text


def target() -> str | None:
    """Return the qube that template updates are sent to, if by us."""
    try:
        text = read()
    except ImportError:
        return None
    match = _TARGET.search(text or "")
    return match[1] if match else None


def _write(text: str | None) -> None:
    from qrexec.policy.admin_client import PolicyClient

    try:
        if text is None:
            PolicyClient().policy_remove(POLICY_NAME)
        else:
            PolicyClient().policy_replace(POLICY_NAME, text)
    except Exception as error:
        raise _failed(error) from error


def _failed(error: Exception) -> AdminError:
    return AdminError(
        "dom0",
        f"the qrexec policy cannot be reached: {error}",
        "run this in dom0, or allow policy.* for this qube",
        EX_OSERR,
    )


def turn_on(host: Host, name: str) -> Plan:
    """Send updates of templates, and of dom0, through the VPN qube."""
    host.vpn_qube(name)
    yield from host.set_feature(name, PROXY_FEATURE, "1")
    yield from _policy(_TEXT.format(name))
    yield from _update_qube(host, name)


def turn_off(host: Host) -> Plan:
    """Let updates go as Qubes has it by default."""
    name = target()
    yield from _policy(None)
    if name is None or not host.exists(name):
        return
    yield from host.set_feature(name, PROXY_FEATURE, None)
    if str(getattr(host.app, "updatevm", None)) == name:
        before = host.app.updatevm
        yield Step(
            (("qubes-prefs", "--default", "updatevm"),),
            lambda: delattr(host.app, "updatevm"),
            lambda: setattr(host.app, "updatevm", before),
        )


def _update_qube(host: Host, name: str) -> Plan:
    before = getattr(host.app, "updatevm", None)
    if str(before) == name:
        return
    yield Step(
        (("qubes-prefs", "updatevm", name),),
        lambda: setattr(host.app, "updatevm", name),
        lambda: setattr(host.app, "updatevm", before),
    )


def _policy(text: str | None) -> Plan:
    before = read()
    if before == text:
        return
    command: Command = ("qubes-policy", "--remove", POLICY_NAME)
    if text is not None:
        words = f"printf %s {shlex.quote(text)} | qubes-policy --replace"
        command = ("sh", "-c", f"{words} {POLICY_NAME}")
    yield Step(
        (command,),
        lambda: _write(text),
        lambda: _write(before),
    )
