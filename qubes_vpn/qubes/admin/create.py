"""Make a VPN qube, give it a profile, put qubes behind it, take it away."""

import re
import subprocess
from dataclasses import dataclass

from qubes_vpn.qubes.admin import pin
from qubes_vpn.qubes.admin.plan import (
    PROFILE_FEATURE,
    SERVICE_FEATURE,
    SUPPORTED_FEATURE,
    TAG_CLIENT,
    TAG_VPN,
    AdminError,
    Host,
    Plan,
    Qube,
    Step,
    net_qube_name,
)

IMPORT_SERVICE = "qubesvpn.Import"
EX_DENIED_BY_POLICY = 126

_PROFILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,47}")
# $1: the VPN qube, $2: the service, $3: the file. Run in the source qube.
_SEND = 'exec qrexec-client-vm "$1" "$2" <"$3"'
_INSTALL = {
    "fedora": "dnf install qubes-vpn",
    "centos": "dnf install qubes-vpn",
    "debian": "apt-get install qubes-vpn",
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a profile is: a file in a qube."""

    qube: str
    path: str

    @classmethod
    def parse(cls, text: str) -> "Source":
        """Read `QUBE:PATH`. Raises ValueError."""
        qube, colon, path = text.partition(":")
        if not (qube and colon and path):
            raise ValueError("not QUBE:PATH")
        return cls(qube, path)

    @property
    def profile_name(self) -> str:
        """The name that a profile gets from its file: `work` for work.ovpn."""
        stem = self.path.rpartition("/")[2].rpartition(".")
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", stem[0] or stem[2])[:48]
        return name.lstrip(".") or "profile"


@dataclass(frozen=True, slots=True)
class Wanted:
    """The VPN qube to make. memory: MiB. pinned: layer 4 is on."""

    name: str
    template: str
    netvm: str
    label: str = "orange"
    memory: int = 300
    autostart: bool = False
    disposable: bool = False
    pinned: bool = True
    profile: Source | None = None


def profile_name(text: str) -> str:
    """Return a profile's name, or raise AdminError if it cannot be one."""
    if _PROFILE_NAME.fullmatch(text) is None:
        raise AdminError(
            "", f"{text!r} cannot name a profile", "use A-Z a-z 0-9 _ . -", 64
        )
    return text


def create(host: Host, wanted: Wanted, consent: pin.Consent) -> Plan:
    """Make the qube, closed; then import, and open it for its endpoints."""
    _check_template(host, wanted)
    _check_net_qube(host, wanted)
    source = wanted.profile
    if source is not None:
        host.qube(source.qube)
    yield from _make(host, wanted)
    name = wanted.name
    yield from host.set_property(name, "provides_network", value=True)
    yield from host.set_property(name, "netvm", wanted.netvm)
    yield from host.set_property(name, "memory", wanted.memory)
    if wanted.autostart or name not in host.made:
        yield from host.set_property(name, "autostart", wanted.autostart)
    yield from host.set_tag(name, TAG_VPN)
    yield from host.set_feature(name, SERVICE_FEATURE, "1")
    if wanted.pinned and _is_open(host, name):
        yield from pin.set_rules(host, name, (pin.DROP,))
    if source is not None:
        yield from import_profile(
            host, name, source, source.profile_name, use=True
        )
        if wanted.pinned:
            yield from pin.pin_new_profile(host, name, consent)


def _is_open(host: Host, name: str) -> bool:
    """Tell if nothing pins the qube yet; what is pinned stays as it is."""
    if name in host.made:
        return True
    return pin.pinned_now(pin.current_rules(host.qube(name))) is None


def _make(host: Host, wanted: Wanted) -> Plan:
    kind = "DispVM" if wanted.disposable else "AppVM"
    if host.exists(wanted.name):
        _check_existing(host.qube(wanted.name), wanted, kind)
        yield from host.set_property(wanted.name, "label", wanted.label)
        return
    host.made.add(wanted.name)
    yield Step(
        (
            (
                "qvm-create",
                f"--class={kind}",
                f"--template={wanted.template}",
                f"--label={wanted.label}",
                wanted.name,
            ),
        ),
        lambda: host.app.add_new_vm(
            kind, wanted.name, wanted.label, template=wanted.template
        ),
        lambda: _destroy(host, wanted.name),
    )


def _check_existing(qube: Qube, wanted: Wanted, kind: str) -> None:
    """Refuse to turn somebody's other qube into a VPN qube."""
    if qube.klass != kind or str(qube.template) != wanted.template:
        raise AdminError(
            wanted.name,
            f"exists, as {qube.klass} of {qube.template}",
            f"choose another name, or `qvm-vpn remove {wanted.name}`",
        )
    if TAG_VPN not in qube.tags:
        raise AdminError(
            wanted.name,
            "exists, and is not a VPN qube",
            "choose another name; or, if it shall become one, "
            f"`qvm-tags {wanted.name} add {TAG_VPN}` first",
        )


def _destroy(host: Host, name: str) -> None:
    qube = host.app.domains[name]
    if qube.is_running():
        qube.kill()
    del host.app.domains[name]


def template_with_package(host: Host, qube: Qube) -> Qube:
    """Return the template whose root file system the qube has."""
    template = getattr(qube, "template", None)
    if template is None:
        return qube
    template = host.qube(str(template))
    return template_with_package(host, template)


def install_command(template: Qube) -> str:
    """Return what installs the package in this template."""
    family = template.features.get("os-distribution", None) or "fedora"
    likes = template.features.get("os-distribution-like", None) or ""
    for name in (family, *likes.split()):
        if name in _INSTALL:
            break
    else:
        name = "fedora"
    return f"qvm-run -u root -- {template} '{_INSTALL[name]}'"


def _check_template(host: Host, wanted: Wanted) -> None:
    template = host.qube(wanted.template)
    if wanted.disposable and not getattr(
        template, "template_for_dispvms", False
    ):
        raise AdminError(
            wanted.template,
            "is not a disposable template",
            f"`qvm-prefs {wanted.template} template_for_dispvms True`",
        )
    if not wanted.disposable and template.klass != "TemplateVM":
        raise AdminError(
            wanted.template, f"is a {template.klass}, not a template"
        )
    root = template_with_package(host, template)
    if not root.features.get(SUPPORTED_FEATURE, None):
        raise AdminError(
            str(root),
            "the package qubes-vpn is not installed in this template",
            f"{install_command(root)}; then `qvm-shutdown --wait {root}`",
        )


def _check_net_qube(host: Host, wanted: Wanted) -> None:
    netvm = host.qube(wanted.netvm)
    if not getattr(netvm, "provides_network", False):
        raise AdminError(
            wanted.netvm,
            "does not provide network",
            "name a net qube, such as sys-firewall",
        )
    if netvm.name == wanted.name:
        raise AdminError(wanted.name, "cannot be its own net qube", "", 64)


def import_profile(
    host: Host, name: str, source: Source, profile: str, *, use: bool
) -> Plan:
    """Have the source qube send a profile to the VPN qube by qrexec.

    The file never passes through here: qrexec's policy decides, and by the
    shipped one the user is asked.
    """
    profile = profile_name(profile)
    host.qube(source.qube)
    service = f"{IMPORT_SERVICE}+{profile}"
    arguments = (name, service, source.path)
    if name not in host.made:
        host.vpn_qube(name)
    yield from host.start(name)
    yield Step(
        (
            (
                "qvm-run",
                "--pass-io",
                source.qube,
                f"qrexec-client-vm {name} {service} <{source.path}",
            ),
        ),
        lambda: _send(host, source.qube, arguments),
    )
    if use:
        yield from host.set_feature(name, PROFILE_FEATURE, profile)


def _send(host: Host, source: str, arguments: tuple[str, str, str]) -> None:
    name = arguments[0]
    try:
        host.qube(source).run_with_args("sh", "-c", _SEND, "sh", *arguments)
    except subprocess.CalledProcessError as error:
        if error.returncode == EX_DENIED_BY_POLICY:
            raise AdminError(
                source,
                f"qrexec's policy does not let it send a profile to {name}",
                "see /etc/qubes/policy.d/30-qubes-vpn.policy",
                77,
            ) from error
        raise AdminError(
            name,
            f"did not accept {arguments[2]} of {source} "
            f"(status {error.returncode})",
            f"`qvm-run -p {source} 'qrexec-client-vm {name} {arguments[1]}"
            f" <{arguments[2]}'` shows its reason, line by line",
        ) from error


def use(host: Host, name: str, profiles: str) -> Plan:
    """Choose the profiles, in order of preference: a comma list."""
    host.vpn_qube(name)
    for profile in profiles.split(","):
        profile_name(profile)
    yield from host.set_feature(name, PROFILE_FEATURE, profiles)


def assign(host: Host, name: str, qubes: list[str]) -> Plan:
    """Put qubes behind the VPN qube."""
    host.vpn_qube(name)
    for client in qubes:
        _check_client(host, name, client)
    for client in qubes:
        yield from host.set_tag(client, TAG_CLIENT)
        yield from host.set_property(client, "netvm", name)


def _check_client(host: Host, name: str, client: str) -> None:
    qube = host.qube(client)
    if client == name:
        raise AdminError(client, "cannot be its own net qube", "", 64)
    if qube.klass in ("AdminVM", "TemplateVM"):
        raise AdminError(
            client,
            f"is a {qube.klass}, and has no net qube",
            f"for its updates: `qvm-vpn updates on {name}`",
        )


def unassign(host: Host, qubes: list[str], to: str) -> Plan:
    """Take qubes from behind a VPN qube: to another net qube, or to none."""
    if to:
        host.qube(to)
    for client in qubes:
        host.qube(client)
    for client in qubes:
        yield from host.set_property(client, "netvm", to or None)
        yield from host.set_tag(client, TAG_CLIENT, present=False)


def remove(host: Host, name: str, *, unassign_first: bool) -> Plan:
    """Remove a VPN qube with all that it keeps. There is no way back."""
    if not host.exists(name):
        return
    host.vpn_qube(name)
    clients = [str(qube) for qube in host.clients(name)]
    if clients and not unassign_first:
        raise AdminError(
            name,
            f"is the net qube of {', '.join(clients)}",
            f"`qvm-vpn unassign {' '.join(clients)}`, or --unassign: "
            "they are without network then",
        )
    yield from unassign(host, clients, "")
    yield from host.kill(name)
    yield Step((("qvm-remove", "--force", name),), lambda: _destroy(host, name))


def whonix_above(host: Host, name: str) -> bool:
    """Tell if a Whonix gateway is on the way from this qube to the world."""
    seen: set[str] = set()
    while name and name not in seen and host.exists(name):
        qube = host.qube(name)
        if "anon-gateway" in qube.tags:
            return True
        seen.add(name)
        name = net_qube_name(qube)
    return False
