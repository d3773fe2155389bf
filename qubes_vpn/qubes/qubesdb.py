"""QubesDB, as far as a VPN qube reads it: typed, bounded, and watched.

dom0 writes it, so it is trusted; it is still parsed strictly, since what is
in it may have been typed by a person. Source: core-qubesdb, include/qubesdb.h
(limits) and python/qubesdb.c (calls).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address, ip_address
from typing import Final, Protocol

from qubes_vpn.errors import OsRefusedError, UsageError, printable

PATH_MAX: Final = 64
VALUE_MAX: Final = 3072

IP: Final = "/qubes-ip"
GATEWAY: Final = "/qubes-gateway"
IP6: Final = "/qubes-ip6"
GATEWAY6: Final = "/qubes-gateway6"
PRIMARY_DNS: Final = "/qubes-primary-dns"
CLIENTS: Final = "/connected-ips"
CLIENTS6: Final = "/connected-ips6"
PROFILE: Final = "/vm-config/vpn-profile"
DNS: Final = "/vm-config/vpn-dns"
SERVICE: Final = "/qubes-service/qubes-vpn"
NAME: Final = "/name"
TYPE: Final = "/qubes-vm-type"
USER: Final = "/default-user"
BLOCK_DOT: Final = "block-dot"

PROFILE_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,47}")


class Change(StrEnum):
    """What a changed key means for us."""

    PROFILE = "profile"
    DNS = "dns"
    UPLINK = "uplink"
    CLIENTS = "clients"
    SERVICE = "service"


WATCHED: Final = {
    PROFILE: Change.PROFILE,
    DNS: Change.DNS,
    IP: Change.UPLINK,
    GATEWAY: Change.UPLINK,
    IP6: Change.UPLINK,
    GATEWAY6: Change.UPLINK,
    PRIMARY_DNS: Change.UPLINK,
    CLIENTS: Change.CLIENTS,
    CLIENTS6: Change.CLIENTS,
    SERVICE: Change.SERVICE,
}


class Connection(Protocol):
    """What qubesdb.QubesDB offers, as far as we use it."""

    def read(self, path: str) -> bytes | None:
        """Give a value, or None."""

    def watch(self, path: str) -> None:
        """Have changes of a path, or below it, reported."""

    def watch_fd(self) -> int:
        """Give the descriptor that is readable when there is a report."""

    def read_watch(self) -> str | None:
        """Give the path of one report."""

    def close(self) -> None:
        """Let go."""


@dataclass(frozen=True, slots=True)
class DnsChoice:
    """The feature vm-config.vpn-dns.

    address: ask this resolver, in the tunnel. passthrough: leave queries as
    the qubes send them, still in the tunnel. Neither: as the server pushes.
    block_dot: refuse DNS over TLS (port 853), so that programs ask port 53.
    """

    address: str = ""
    passthrough: bool = False
    block_dot: bool = False

    @classmethod
    def parse(cls, text: str) -> "DnsChoice":
        """Read `pushed`, `passthrough` or an address, and `block-dot`.

        Raises UsageError for what is none of these: another resolver than
        the one that was meant is no answer.
        """
        words = text.split()
        rest = [word for word in words if word != BLOCK_DOT]
        block_dot = len(rest) < len(words)
        word = " ".join(rest) or "pushed"
        if word in ("pushed", "passthrough"):
            return cls("", word == "passthrough", block_dot)
        try:
            return cls(str(ip_address(word)), block_dot=block_dot)
        except ValueError:
            raise UsageError(
                "vm-config.vpn-dns takes pushed, passthrough or an address,"
                f" and {BLOCK_DOT}; not {printable(text[:64])}"
            ) from None


class Database:
    """Reads one qube's own QubesDB."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def text(self, path: str) -> str:
        """Give a value as text; "" when there is none, or none of ASCII."""
        if len(path) > PATH_MAX:
            raise ValueError(f"{path}: longer than QubesDB allows")
        value = self._connection.read(path)
        if value is None or len(value) > VALUE_MAX or not value.isascii():
            return ""
        return value.decode("ascii")

    def profiles(self) -> tuple[str, ...]:
        """Give the wanted profiles, in order; what is no name is left out."""
        words = (word.strip() for word in self.text(PROFILE).split(","))
        return tuple(word for word in words if PROFILE_NAME.fullmatch(word))

    def dns(self) -> DnsChoice:
        """Give the choice of resolver. Raises UsageError if it is none."""
        return DnsChoice.parse(self.text(DNS))

    def resolver(self) -> str:
        """Give the uplink's resolver, for the names of servers; or ""."""
        try:
            return str(ip_address(self.text(PRIMARY_DNS)))
        except ValueError:
            return ""

    def uplink6(self) -> tuple[IPv6Address, IPv6Address] | None:
        """Give our IPv6 address outside and the gateway's, if IPv6 is on."""
        try:
            return IPv6Address(self.text(IP6)), IPv6Address(self.text(GATEWAY6))
        except ValueError:
            return None

    def service_on(self) -> bool:
        """Tell if the service is on now; at boot it was."""
        return self.text(SERVICE) != "0" and bool(self.text(SERVICE))

    def is_net_vm(self) -> bool:
        """Tell if Qubes takes this for a qube without a net qube.

        It then runs NetworkManager and an updates proxy in it.
        """
        return self.text(TYPE) == "NetVM"

    def clients(self) -> int:
        """Count the qubes that are assigned to this one, running or not."""
        return len(self.text(CLIENTS).split())

    def watch(self) -> int:
        """Watch all that matters; give the descriptor to wait on."""
        for path in WATCHED:
            self._connection.watch(path)
        return self._connection.watch_fd()

    def changed(self) -> Change | None:
        """Take one report, when the descriptor is readable."""
        path = self._connection.read_watch()
        return WATCHED.get(path) if path else None

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()


def open_database(connect: Callable[[], Connection] | None = None) -> Database:
    """Connect to this qube's QubesDB. Raises OsRefusedError.

    connect: another way to make a connection than Qubes' own binding.
    """
    if connect is not None:
        return Database(connect())
    try:
        import qubesdb
    except ImportError as error:
        raise OsRefusedError(
            "the Python binding of QubesDB is missing: this is no qube"
        ) from error
    try:
        return Database(qubesdb.QubesDB())
    except qubesdb.Error as error:
        raise OsRefusedError(f"QubesDB does not answer: {error}") from error
