"""The server's loop: the engine's effects, performed in their order.

After EVERY input to the engine everything that it wants done is done
(`_drain`), and the timer is armed again from its deadline.
"""

import logging
import secrets
import selectors
import signal
import socket
import time
from dataclasses import replace
from typing import Final, assert_never

from qubes_vpn.config.server_profile import ServerProfile
from qubes_vpn.config.trust import serials
from qubes_vpn.engine.data_channel import DataChannel
from qubes_vpn.engine.effects import (
    InstallKeys,
    RemoveKeys,
    SendData,
    SwapKeys,
)
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.hello import RateLimit, Source
from qubes_vpn.engine.server import ServerEngine
from qubes_vpn.engine.server_effects import (
    Admitted,
    Authenticate,
    ClientEffect,
    Decision,
    Removed,
    SendTo,
)
from qubes_vpn.errors import ConfigError, OsRefusedError
from qubes_vpn.runtime.files import read_named, why
from qubes_vpn.runtime.server_auth import Authenticator
from qubes_vpn.runtime.server_choose import make_plane
from qubes_vpn.runtime.server_clients import Client, Sources
from qubes_vpn.runtime.server_device import Device
from qubes_vpn.runtime.server_events import OnEvents
from qubes_vpn.runtime.server_files import (
    LeaseMemory,
    modified,
)
from qubes_vpn.runtime.server_tell import Teller
from qubes_vpn.system.listen import open_listener

_LOG: Final = logging.getLogger(__name__)
# How long goodbyes may take when the server stops, in seconds.
STOP_S: Final = 1.5
CHORES_S: Final = 5.0


class ServerProcess:
    """One server, from its first packet to its last.

    device: of server_device.open_device. control_path, metrics_path: unix
    sockets; "" for none. Raises ConfigError and OsRefusedError.
    """

    def __init__(
        self,
        profile: ServerProfile,
        device: Device,
        *,
        denied: frozenset[bytes] = frozenset(),
        control_path: str = "",
        metrics_path: str = "",
    ) -> None:
        self.profile = profile
        self._crl_seen = 0.0
        if profile.crl_file:
            crl, revoked = self._read_crl()
            check = replace(profile.client_check, crl=crl, revoked=revoked)
            profile = replace(profile, client_check=check)
        self.engine = ServerEngine(
            profile,
            entropy=secrets.token_bytes,
            denied=denied,
            epochs=device.descriptor is not None,
        )
        self._selector = selectors.DefaultSelector()
        self._plane = make_plane(self._selector, device, self, profile)
        for listen in profile.listens:
            sock = open_listener(
                listen.address,
                listen.port,
                stream=listen.proto == "tcp",
                family=listen.family,
                sndbuf=profile.sndbuf,
                rcvbuf=profile.rcvbuf,
            )
            self._plane.listen(sock)
        self._authenticator: Authenticator | None = None
        if profile.wants_password or profile.client_config_dir:
            self._authenticator = Authenticator(profile)
            self._selector.register(
                self._authenticator,
                selectors.EVENT_READ,
                OnEvents(lambda _events: self._on_answers()),
            )
        self._teller = Teller(
            self._selector,
            self.engine,
            self._plane,
            profile,
            device.name,
            self._disconnect,
            control_path=control_path,
            metrics_path=metrics_path,
        )
        self._stop_by: float | None = None
        self._log_limit = RateLimit(20, 10)
        self._chores_at = 0.0
        self._memory: LeaseMemory | None = None
        if profile.persist_file:
            self._memory = LeaseMemory(profile.persist_file, self.engine.leases)
        self._persist_at = time.monotonic() + profile.persist_seconds

    # --- the loop

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; SIGHUP reads the CRL again."""
        waker = self._watch_signals()
        try:
            while not self._finished():
                wait = max(self._next_timer() - time.monotonic(), 0.0)
                for key, events in self._selector.select(wait):
                    if isinstance(key.data, OnEvents):
                        key.data.call(events)
                    else:
                        key.data()  # the control socket's
                self._on_time()
        finally:
            signal.set_wakeup_fd(-1)
            for end in waker:
                end.close()
            self.close()

    def _watch_signals(self) -> tuple[socket.socket, socket.socket]:
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: None)
        self._selector.register(
            reader,
            selectors.EVENT_READ,
            OnEvents(lambda _events: self._on_signals(reader.recv(64))),
        )
        return reader, writer

    def _on_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGHUP:
                self._reload_crl()
            else:
                self.stop()

    def stop(self) -> None:
        """Send everybody away, and end soon."""
        if self._stop_by is None:
            now = _now()
            self._stop_by = now.mono + STOP_S
            self.engine.stop(now)
            self._drain(now)

    def _finished(self) -> bool:
        if self._stop_by is None:
            return False
        return not len(self.engine) or time.monotonic() >= self._stop_by

    def _next_timer(self) -> float:
        return min(
            self.engine.deadline(),
            self._chores_at,
            self._teller.tell_at,
            self._stop_by or float("inf"),
        )

    def _on_time(self) -> None:
        now = _now()
        if now.mono >= self.engine.deadline():
            self.engine.expire(now)
            self._drain(now)
        self._teller.on_time(now)
        if now.mono >= self._chores_at:
            self._chores_at = now.mono + CHORES_S
            self._chores(now)

    def _chores(self, now: Now) -> None:
        profile = self.profile
        self._plane.refresh(now)
        self._plane.hang_up_strangers(now.mono - profile.hand_window)
        if profile.crl_file and modified(profile.crl_file) != self._crl_seen:
            self._reload_crl()
        self._teller.write_status(now)
        if self._memory and now.mono >= self._persist_at:
            self._persist_at = now.mono + profile.persist_seconds
            self._memory.save()

    def close(self) -> None:
        """Let go of everything but the device."""
        if self._memory:
            self._memory.save()
        if self._authenticator is not None:
            self._authenticator.close()
        self._teller.close()
        self._plane.close()
        self._selector.close()

    # --- what the plane meets

    def control(self, datagram: bytes, source: Source) -> None:
        """Give the engine a control packet."""
        now = _now()
        self.engine.receive(datagram, source, now)
        self._drain(now)

    def moved(self, client: Client, source: Source) -> bool:
        """Ask the engine whether a client may have a new address."""
        allowed = self.engine.float_to(client.number, source)
        self._drain(_now())
        if allowed:
            _LOG.info("client %d is at %s now", client.number, source.address)
        return allowed

    def gone(self, client: Client, reason: str) -> None:
        """Have the engine forget a client that the plane has lost."""
        self.engine.remove(client.number, reason)
        self._drain(_now())

    def closed(self, source: Source) -> None:
        """Tell the engine that a TCP connection has ended."""
        self.engine.lost(source)
        self._drain(_now())

    # --- effects

    def _drain(self, now: Now) -> None:
        while (effect := self.engine.poll()) is not None:
            if isinstance(effect, SendTo):
                self._plane.send_to(effect.source, effect.datagram)
            else:
                self._perform(effect.client, effect.effect, now)

    def _perform(self, number: int, effect: ClientEffect, now: Now) -> None:
        match effect:
            case Authenticate():
                self._authenticate(number, effect, now)
            case Removed():
                self._removed(number, effect)
            case InstallKeys() if number not in self._plane.clients:
                self._on_client(self._attach(number), effect, now)
            case _:
                client = self._plane.clients.get(number)
                if client is not None:
                    self._on_client(client, effect, now)

    def _on_client(
        self,
        client: Client,
        effect: InstallKeys | SwapKeys | RemoveKeys | SendData | Admitted,
        now: Now,
    ) -> None:
        match effect:
            case InstallKeys(slot, keys):
                self._plane.install(client, slot, keys)
                _LOG.info(
                    "client %d: key %d, %s",
                    client.number,
                    keys.key_id,
                    keys.cipher,
                )
            case SwapKeys():
                self._plane.swap(client)
            case RemoveKeys(slot):
                for each in (0, 1) if slot is None else (slot,):
                    self._plane.forget(client, each)
            case SendData(payload):
                self._plane.send_data(client, payload, now.mono)
            case Admitted():
                self._admitted(client, effect, now)
            case _:
                assert_never(effect)

    def _attach(self, number: int) -> Client:
        session = self.engine.session(number)
        channel = DataChannel(session.traffic, frozenset[bytes]())
        client = Client(number, channel, session.source)
        self._plane.attach(client)
        return client

    def _admitted(self, client: Client, effect: Admitted, now: Now) -> None:
        lease, config = effect.lease, effect.config
        addresses = [
            address.packed
            for address in (lease.address4, lease.address6)
            if address
        ]
        networks = config.iroutes[: self.profile.max_routes_per_client]
        client.admitted = effect
        client.since = now.unix
        client.sources = Sources(addresses, networks)
        self._plane.admit(client)
        self._teller.changed(now.mono)
        _LOG.info(
            "client %s is in as number %d from %s, address %s %s, %s",
            effect.common_name,
            client.number,
            client.source.address,
            lease.address4 or "",
            lease.address6 or "",
            effect.cipher,
        )

    def _removed(self, number: int, effect: Removed) -> None:
        client = self._plane.clients.get(number)
        if client is not None:
            name = client.admitted.common_name if client.admitted else "?"
            _LOG.info("client %s (%d) is gone: %s", name, number, effect.reason)
            self._plane.detach(client)
            self._teller.changed(time.monotonic())
        elif self._log_limit.allow(time.monotonic()):
            # anybody can make us write this: not more than so often
            _LOG.info("not let in: %s", effect.detail or effect.reason)
        if effect.source is not None:
            self._plane.hang_up(effect.source)

    # --- who may come in

    def _authenticate(
        self, number: int, question: Authenticate, now: Now
    ) -> None:
        if self._authenticator is not None:
            self._authenticator.ask(number, question)
            return
        decision = Decision(allowed=question.trusted)
        self.engine.decide(number, question.number, decision, now)

    def _on_answers(self) -> None:
        assert self._authenticator is not None
        now = _now()
        for client, number, decision in self._authenticator.answers():
            self.engine.decide(client, number, decision, now)
        self._drain(now)

    def _disconnect(self, number: int) -> None:
        now = _now()
        self.engine.disconnect(number, "HALT", now)
        self._drain(now)

    # --- files

    def _read_crl(self) -> tuple[bytes, frozenset[str]]:
        """Read the list; or, of a folder, the revoked serial numbers."""
        path = self.profile.crl_file
        self._crl_seen = modified(path)
        try:
            data = read_named(path, path)
        except OSError as error:
            raise OsRefusedError(f"{path}: {why(error)}") from error
        if path.endswith("/"):
            return b"", serials(data.split(b"\n"))
        if not data:
            # to TLS this would mean that nothing is asked for
            raise OsRefusedError(f"{path}: is empty")
        return data, frozenset()

    def _reload_crl(self) -> None:
        if not self.profile.crl_file:
            return
        try:
            self.engine.reload_crl(*self._read_crl())
            _LOG.info("read %s", self.profile.crl_file)
        except (OsRefusedError, ConfigError) as error:
            _LOG.error("the revocation list stays as it was: %s", error)


def _now() -> Now:
    return Now(mono=time.monotonic(), unix=time.time())
