"""The files that a server keeps: who had which address, and its status."""

import contextlib
import logging
import os
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from qubes_vpn.engine.address_pool import Leases

_LOG: Final = logging.getLogger(__name__)
_FILE_MODE: Final = 0o600


class LeaseMemory:
    """ifconfig-pool-persist: lines of `name,address,address6`.

    Read once; what is wrong in it is left out.
    """

    def __init__(self, path: str, leases: Leases) -> None:
        self._path = path
        self._leases = leases
        self._saved = ""
        with contextlib.suppress(FileNotFoundError):
            for line in Path(path).read_text(encoding="utf-8").splitlines():
                name, *addresses = line.split(",")
                self._remember(name, addresses)

    def _remember(self, name: str, addresses: list[str]) -> None:
        for text in filter(None, addresses):
            with contextlib.suppress(ValueError):
                address = ip_address(text)
                if address.version == 4 and self._leases.pool4:
                    self._leases.pool4.remember({name: address})
                elif address.version == 6 and self._leases.pool6:
                    self._leases.pool6.remember({name: address})

    def save(self) -> None:
        """Write it, if it changed."""
        pool4, pool6 = self._leases.pool4, self._leases.pool6
        four = pool4.remembered() if pool4 else {}
        six = pool6.remembered() if pool6 else {}
        text = "".join(
            f"{name},{four.get(name, '')},{six.get(name, '')}\n"
            for name in {**four, **six}
            if "," not in name
        )
        if text != self._saved:
            replace_file(self._path, text)
            self._saved = text


def modified(path: str) -> float:
    """Give a file's time of modification, 0.0 where it cannot be had."""
    try:
        return Path(path).stat().st_mtime
    except OSError:
        return 0.0


def replace_file(path: str, text: str) -> None:
    """Replace a file whole; a failure is reported and not fatal."""
    temporary = Path(f"{path}.new")
    try:
        descriptor = os.open(
            temporary,
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW,
            _FILE_MODE,
        )
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        temporary.replace(path)
    except OSError as error:
        _LOG.error("%s: %s", path, error.strerror)
