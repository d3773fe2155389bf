"""What an agent is given: a task, a way to its processes, and people."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import Protocol

from qubes_vpn.config.profile import ClientProfile
from qubes_vpn.keeper.client import KeeperClient
from qubes_vpn.policy.phase import Address
from qubes_vpn.runtime import messages
from qubes_vpn.runtime.job import Job
from qubes_vpn.runtime.resolve import AddressCache


class Wiring(Protocol):
    """Brings keeper and engine to life, and ends them."""

    def start_keeper(self) -> socket.socket:
        """Start a keeper; give the agent's end of its socket."""

    def start_engine(self, keeper: KeeperClient) -> socket.socket:
        """Start an engine that `keeper` serves; give our end of its socket."""

    def end_keeper(self) -> int | None:
        """Make sure that no keeper of ours runs; give its exit status."""

    def end_engine(self) -> None:
        """Make sure that no engine of ours runs."""


@dataclass(slots=True)
class Task:
    """What to connect with.

    resolver: who is asked for the names of servers; None: nobody.
    uplink6: our IPv6 address on the uplink and its gateway's, if there are
    any: without them only IPv4 endpoints are tried, unless any_family: then
    IPv6 is somebody else's matter. plane: auto, userspace or kernel. read:
    reads the profile's files again; raises OSError.
    """

    name: str
    profile: ClientProfile
    job: Job
    resolver: Address | None = None
    cache: AddressCache = field(default_factory=AddressCache)
    uplink: str = "eth0"
    uplink6: tuple[IPv6Address, IPv6Address] | None = None
    plane: str = "auto"
    any_family: bool = False
    read: Callable[[str], bytes] | None = None

    def followed(self) -> Iterator[Path]:
        """Give the files whose changes count; of a folder, a file in it."""
        path = self.profile.server_check.crl_path
        if path:
            folder = Path(self.job.name).resolve().parent
            yield folder / (path + "*" if path.endswith("/") else path)

    def reread(self) -> "Task":
        """Give the task with crl-verify's list as it is now; may be itself."""
        path = self.profile.server_check.crl_path
        if not path or self.read is None:
            return self
        job = self.job.reread(path, self.read)
        return self if job == self.job else replace(self, job=job)


class People(Protocol):
    """Where lines for a person go, and where prompts are asked."""

    def line(self, text: str) -> None:
        """Show one line."""

    def ask(
        self, prompt: messages.Prompt, done: Callable[[str, str], None]
    ) -> None:
        """Ask, if somebody is there; `done` may be called from a thread."""
