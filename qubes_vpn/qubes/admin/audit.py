"""What is wrong around the VPN qubes, and the command that mends each.

Each check is a generator over one VPN qube, or over the host; a finding has a
code of the handbook. Nothing is changed, and no qube is asked anything.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from qubes_vpn.qubes.admin import pin, updates
from qubes_vpn.qubes.admin.create import (
    install_command,
    template_with_package,
    whonix_above,
)
from qubes_vpn.qubes.admin.plan import (
    SERVICE_FEATURE,
    SUPPORTED_FEATURE,
    TAG_CLIENT,
    TAG_VPN,
    Host,
    Qube,
    net_qube_name,
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    serious: something can leave outside the tunnel, or the lock is not
    there. Otherwise it is worth knowing.
    """

    code: str
    qube: str
    problem: str
    fix: str
    serious: bool = True

    def __str__(self) -> str:
        """Format as two lines: what, and the fix."""
        kind = "problem" if self.serious else "note"
        return (
            f"{self.code} {kind}: {self.qube}: {self.problem}\n    {self.fix}"
        )


Findings: TypeAlias = Iterator[Finding]


def audit(host: Host, names: list[str]) -> list[Finding]:
    """Return what was found about these VPN qubes; about all for none."""
    qubes = [host.vpn_qube(name) for name in names] or host.vpn_qubes()
    findings = [
        finding
        for qube in qubes
        for check in _QUBE_CHECKS
        for finding in check(host, qube)
    ]
    for host_check in _HOST_CHECKS:
        findings.extend(host_check(host))
    return sorted(
        dict.fromkeys(findings), key=lambda f: (not f.serious, f.qube, f.code)
    )


def _lock(host: Host, qube: Qube) -> Findings:
    """The lock is in the template's package, and on by its service."""
    root = template_with_package(host, qube)
    if not root.features.get(SUPPORTED_FEATURE, None):
        yield Finding(
            "QV-201",
            qube.name,
            f"its template {root} has no qubes-vpn: nothing locks this qube",
            f"{install_command(root)}; then restart {qube}",
        )
    if not qube.features.get(SERVICE_FEATURE, None):
        yield Finding(
            "QV-202",
            qube.name,
            "the service qubes-vpn is off",
            f"qvm-service --enable {qube} qubes-vpn; then restart it",
        )
    if not getattr(qube, "provides_network", False):
        yield Finding(
            "QV-203",
            qube.name,
            "does not provide network: no qube can be behind it",
            f"qvm-prefs {qube} provides_network True",
            serious=False,
        )


def _uplink(host: Host, qube: Qube) -> Findings:
    netvm = net_qube_name(qube)
    if not netvm:
        yield Finding(
            "QV-204",
            qube.name,
            "has no net qube: Qubes then runs NetworkManager and an updates "
            "proxy in it, and there is no way to the server",
            f"qvm-prefs {qube} netvm sys-firewall",
        )
        return
    if qube.features.get("ipv6", None):
        yield Finding(
            "QV-205",
            qube.name,
            "IPv6 is on: needed only if the profile carries it",
            f"qvm-features --unset {qube} ipv6",
            serious=False,
        )
    rules = pin.current_rules(qube)
    if pin.pinned_now(rules) is None:
        yield Finding(
            "QV-206",
            qube.name,
            "is not pinned: what takes it over can reach any address",
            f"qvm-vpn pin {qube}",
        )
    if any("dsthost=" in rule for rule in rules):
        yield Finding(
            "QV-207",
            qube.name,
            "a firewall rule has a name: when it does not resolve, all its "
            "traffic stops",
            f"qvm-vpn pin {qube}",
            serious=False,
        )
    yield from _enforcer(qube, host.qube(netvm))
    if whonix_above(host, netvm) and any("proto=udp" in r for r in rules):
        yield Finding(
            "QV-208",
            qube.name,
            "Whonix is its net qube, and Tor carries no UDP",
            "use a profile with `proto tcp`",
        )


def _enforcer(qube: Qube, netvm: Qube) -> Findings:
    """Rules are enforced by the net qube, if it runs qubes-firewall.

    Qubes starts it by itself only where there is a net qube above.
    """
    service = netvm.features.get("service.qubes-firewall", None)
    if service == "" or (not service and not net_qube_name(netvm)):
        yield Finding(
            "QV-209",
            qube.name,
            f"its net qube {netvm} does not enforce firewall rules",
            f"qvm-service --enable {netvm} qubes-firewall, and restart it",
        )


def _extra_services(_host: Host, qube: Qube) -> Findings:
    for service in ("network-manager", "clocksync"):
        if qube.features.get(f"service.{service}", None):
            yield Finding(
                "QV-210",
                qube.name,
                f"the service {service} is on, and cannot work here",
                f"qvm-service --disable {qube} {service}",
                serious=False,
            )


def _clients(host: Host, qube: Qube) -> Findings:
    for client in host.clients(qube.name):
        if TAG_VPN in client.tags:
            continue
        if TAG_CLIENT not in client.tags:
            yield Finding(
                "QV-211",
                client.name,
                "is behind the VPN but not marked: `watch` does not see it "
                "move away",
                f"qvm-vpn assign {qube} {client}",
                serious=False,
            )
        yield from _disposables(host, client)
        yield from _dns(client)
        yield from _preloaded(host, client)


def _disposables(host: Host, client: Qube) -> Findings:
    """A disposable has the net qube of its template, not its caller's."""
    template = getattr(client, "default_dispvm", None)
    if template is None or not host.exists(str(template)):
        return
    netvm = net_qube_name(host.qube(str(template)))
    if netvm and not behind_vpn(host, netvm):
        yield Finding(
            "QV-212",
            client.name,
            f"disposables that it starts use {netvm}, by {template}",
            f"qvm-prefs {client} default_dispvm DVM, with a DVM behind "
            f"the VPN; or qvm-prefs {client} default_dispvm ''",
        )


def _dns(client: Qube) -> Findings:
    rules = pin.current_rules(client)
    closed = rules and rules[-1] == pin.DROP and pin.ACCEPT not in rules
    if closed and not any("specialtarget=dns" in rule for rule in rules):
        yield Finding(
            "QV-213",
            client.name,
            "its firewall rules allow no DNS",
            f"qvm-firewall {client} add --before 0 accept specialtarget=dns",
            serious=False,
        )


def _preloaded(host: Host, client: Qube) -> Findings:
    """A preloaded disposable was started with the net qube of then."""
    if not getattr(client, "template_for_dispvms", False):
        return
    ready = client.features.get("preload-dispvm", None) or ""
    stale = [
        name
        for name in ready.split()
        if host.exists(name)
        and not behind_vpn(host, net_qube_name(host.qube(name)))
    ]
    for name in stale:
        yield Finding(
            "QV-214",
            name,
            f"a preloaded disposable of {client} is not behind the VPN",
            f"qvm-kill {name}: a new one is made",
        )


def behind_vpn(host: Host, netvm: str) -> bool:
    """Tell if this net qube is a VPN qube, or all beyond it goes by one."""
    seen: set[str] = set()
    while netvm and netvm not in seen and host.exists(netvm):
        qube = host.qube(netvm)
        if TAG_VPN in qube.tags:
            return True
        seen.add(netvm)
        netvm = net_qube_name(qube)
    return False


def _moved(host: Host) -> Findings:
    for qube in host.app.domains:
        if qube.klass == "AdminVM" or TAG_CLIENT not in qube.tags:
            continue
        netvm = net_qube_name(qube)
        if netvm and not behind_vpn(host, netvm):
            yield Finding(
                "QV-215",
                qube.name,
                f"was assigned to a VPN qube, and is behind {netvm} now",
                f"qvm-vpn assign VPN-QUBE {qube}; or, if it shall stay: "
                f"qvm-tags {qube} del {TAG_CLIENT}",
            )


def _defaults(host: Host) -> Findings:
    default = _global(host, "default_netvm")
    if default and not behind_vpn(host, default):
        yield Finding(
            "QV-216",
            "dom0",
            f"new qubes, and those reset to the default, are behind {default}",
            "qubes-prefs default_netvm VPN-QUBE, or ''",
            serious=False,
        )
    updatevm = _global(host, "updatevm")
    if updatevm and not _carried(host, updatevm):
        yield Finding(
            "QV-217",
            "dom0",
            f"updates of dom0 are fetched by {updatevm}, outside the VPN",
            "qvm-vpn updates on VPN-QUBE",
            serious=False,
        )
    clockvm = _global(host, "clockvm")
    if clockvm and _carried(host, clockvm):
        yield Finding(
            "QV-218",
            "dom0",
            f"the clock comes from {clockvm}, which needs a right clock to "
            "connect",
            "qubes-prefs clockvm sys-net",
        )


def _carried(host: Host, name: str) -> bool:
    if not host.exists(name):
        return False
    qube = host.qube(name)
    return TAG_VPN in qube.tags or behind_vpn(host, net_qube_name(qube))


def _global(host: Host, key: str) -> str:
    value = getattr(host.app, key, None)
    return "" if value is None else str(value)


def _update_policy(host: Host) -> Findings:
    target = updates.target()
    if target is None:
        yield Finding(
            "QV-219",
            "dom0",
            "updates of templates go by the default proxy, outside the VPN",
            "qvm-vpn updates on VPN-QUBE",
            serious=False,
        )
    elif not _carried(host, target):
        yield Finding(
            "QV-220",
            "dom0",
            f"updates of templates are sent to {target}, outside the VPN",
            "qvm-vpn updates on VPN-QUBE",
        )


_QUBE_CHECKS: tuple[Callable[[Host, Qube], Findings], ...] = (
    _lock,
    _uplink,
    _extra_services,
    _clients,
)
_HOST_CHECKS: tuple[Callable[[Host], Findings], ...] = (
    _moved,
    _defaults,
    _update_policy,
)
