"""Watch the host's events: a protected qube moved away, a lock taken off."""

import re

from qubes_vpn.qubes.admin.audit import behind_vpn
from qubes_vpn.qubes.admin.plan import (
    SERVICE_FEATURE,
    TAG_CLIENT,
    TAG_VPN,
    App,
    Host,
    Qube,
    Say,
    net_qube_name,
)

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,30}")


class Watcher:
    """Says what changed, and with `restore` puts a moved qube back.

    Events are only hints: each is answered by looking at what is there, so
    that a missed one is made good by the next, or by a new connection.
    """

    def __init__(self, app: App, say: Say, *, restore: bool) -> None:
        self.host = Host(app)
        self._say = say
        self._restore = restore
        self._behind: dict[str, str] = {}

    def look(self) -> None:
        """Compare every protected qube with the last look."""
        for qube in self.host.app.domains:
            if qube.klass != "AdminVM" and TAG_CLIENT in qube.tags:
                self._look_at(qube)

    def _look_at(self, qube: Qube) -> None:
        name, netvm = str(qube), net_qube_name(qube)
        if netvm and behind_vpn(self.host, netvm):
            if self._behind.get(name) != netvm:
                self._say(f"{name}: behind {netvm}")
            self._behind[name] = netvm
            return
        if not netvm:
            # without network nothing leaks; it may be on its way elsewhere
            self._say(f"{name}: has no network now")
            return
        self._say(f"{name}: LEFT THE VPN, behind {netvm} now")
        self._put_back(qube)

    def _put_back(self, qube: Qube) -> None:
        name = str(qube)
        home = self._behind.get(name, "")
        if not self._restore:
            self._say(f"    qvm-vpn assign {home or 'VPN-QUBE'} {name}")
            return
        if not home or not self.host.exists(home):
            self._say(f"    not put back: it is not known where {name} was")
            return
        qube.netvm = home
        self._say(f"    put back behind {home}")

    def handle(self, subject: Qube, event: str, **values: str) -> None:
        """Take one event, as EventsDispatcher gives them."""
        if event == "connection-established":
            self.look()
            return
        if subject is None:
            return
        if event in ("property-set:netvm", "property-reset:netvm"):
            self._net_qube_changed(subject, values)
        elif event.startswith("domain-feature-") and event.endswith(
            f":{SERVICE_FEATURE}"
        ):
            self._service_changed(subject)
        elif event == "firewall-changed" and TAG_VPN in subject.tags:
            self._say(f"{subject}: its firewall rules changed")

    def _net_qube_changed(self, qube: Qube, values: dict[str, str]) -> None:
        if TAG_CLIENT not in qube.tags:
            return
        old = values.get("oldvalue", "")
        if _NAME.fullmatch(old) and behind_vpn(self.host, old):
            self._behind.setdefault(str(qube), old)
        self._look_at(qube)

    def _service_changed(self, qube: Qube) -> None:
        if TAG_VPN not in qube.tags:
            return
        on = qube.features.get(SERVICE_FEATURE, None)
        if not on:
            self._say(f"{qube}: its service qubes-vpn was turned off")


async def watch(watcher: Watcher) -> None:
    """Handle events until the task is cancelled."""
    from qubesadmin.events import EventsDispatcher

    # Values must be asked for when an event comes: no cache.
    dispatcher = EventsDispatcher(watcher.host.app, enable_cache=False)
    dispatcher.add_handler("*", watcher.handle)
    await dispatcher.listen_for_events()
