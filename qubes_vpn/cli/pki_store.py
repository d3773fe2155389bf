"""The files of a small certificate authority, in one directory.

    ca.crt  ca.key  crl.pem  index.json
    issued/NAME.crt  private/NAME.key

`index.json` knows what was issued and revoked, and how a client reaches the
server (`remote`), so that a client profile can be written.
"""

import json
import re
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from qubes_vpn.cli.world import write_public, write_secret
from qubes_vpn.crypto import pki
from qubes_vpn.errors import ConfigError, Problem, UnreadableError

NAME = re.compile(r"[A-Za-z0-9_.@:-]{1,64}")
CRL_DAYS = 3650


@dataclass(frozen=True, slots=True)
class Entry:
    """One certificate. not_after and revoked: ISO 8601; "" when not."""

    name: str
    usage: str
    serial: int
    not_after: str
    revoked: str = ""


@dataclass(frozen=True, slots=True)
class Index:
    """What index.json holds. remote: host, port and protocol; or empty."""

    algorithm: str
    crl_number: int = 0
    remote: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = field(default=())


class Store:
    """One authority's directory. Everything is written whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def create(
        cls, directory: Path, name: str, algorithm: str, days: int
    ) -> "Store":
        """Make a new authority. Raises ConfigError when one is there."""
        store = cls(directory)
        if (directory / "ca.key").exists():
            raise wrong(directory, "there is an authority already")
        for part in (directory, directory / "issued", directory / "private"):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        ca = pki.make_authority(
            name, pki.Algorithm(algorithm), datetime.now(UTC), days
        )
        write_secret(directory / "ca.key", ca.key)
        write_public(directory / "ca.crt", ca.certificate)
        store.save(Index(algorithm))
        store.write_crl()
        return store

    def index(self) -> Index:
        """Read the index. Raises UnreadableError or ConfigError."""
        path = self.directory / "index.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return Index(
                algorithm=str(content["algorithm"]),
                crl_number=int(content["crl_number"]),
                remote=tuple(map(str, content["remote"])),
                entries=tuple(Entry(**entry) for entry in content["entries"]),
            )
        except OSError as error:
            raise UnreadableError(f"{path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise wrong(path, "this index is damaged") from error

    def save(self, index: Index) -> None:
        """Replace the index."""
        text = json.dumps(asdict(index), indent=1) + "\n"
        write_secret(self.directory / "index.json", text.encode(), replace=True)

    def authority(self) -> pki.Issued:
        """Load the authority with its key."""
        return self._load("ca.crt", "ca.key")

    def pair(self, name: str) -> pki.Issued:
        """Load what was issued to `name`."""
        return self._load(f"issued/{name}.crt", f"private/{name}.key")

    def issue(self, name: str, usage: pki.Usage, days: int) -> pki.Issued:
        """Issue a certificate to a new name, or to one that was revoked."""
        if not NAME.fullmatch(name) or name.startswith("."):
            raise wrong(self.directory, f"{name!r} cannot be a name here")
        index = self.index()
        if any(e.name == name and not e.revoked for e in index.entries):
            raise wrong(
                self.directory, f"{name} has a certificate; revoke it first"
            )
        pair = pki.issue(
            self.authority(),
            name,
            usage,
            pki.Algorithm(index.algorithm),
            datetime.now(UTC),
            days,
        )
        write_secret(
            self.directory / f"private/{name}.key", pair.key, replace=True
        )
        write_public(
            self.directory / f"issued/{name}.crt",
            pair.certificate,
            replace=True,
        )
        entry = Entry(
            name, usage.value, pair.serial, pair.not_after.isoformat()
        )
        self.save(replace(index, entries=(*index.entries, entry)))
        return pair

    def revoke(self, name: str) -> None:
        """Revoke what `name` has now, and sign a new list."""
        index = self.index()
        when = datetime.now(UTC).isoformat(timespec="seconds")
        entries = tuple(
            replace(e, revoked=when) if e.name == name and not e.revoked else e
            for e in index.entries
        )
        if entries == index.entries:
            raise wrong(self.directory, f"{name} has no valid certificate")
        self.save(replace(index, entries=entries))
        self.write_crl()

    def write_crl(self) -> Path:
        """Sign the list of what is revoked, with the next number."""
        index = self.index()
        number = index.crl_number + 1
        revoked = [
            pki.Revoked(e.serial, datetime.fromisoformat(e.revoked))
            for e in index.entries
            if e.revoked
        ]
        crl = pki.make_crl(
            self.authority(), revoked, number, datetime.now(UTC), CRL_DAYS
        )
        path = self.directory / "crl.pem"
        write_public(path, crl, replace=True)
        self.save(replace(index, crl_number=number))
        return path

    def _load(self, certificate: str, key: str) -> pki.Issued:
        try:
            return pki.load_issued(
                (self.directory / certificate).read_bytes(),
                (self.directory / key).read_bytes(),
            )
        except OSError as error:
            raise UnreadableError(
                f"{error.filename}: {error.strerror}"
            ) from error
        except ValueError as error:
            raise wrong(self.directory / certificate, str(error)) from error


def wrong(where: Path, message: str) -> ConfigError:
    """Make the error for a directory or file that is not as needed."""
    return ConfigError([Problem(str(where), 0, 0, message)])
