"""nftables, through libnftables in this process.

In process, because a child `nft` of a process that holds only ambient-free
CAP_NET_ADMIN has no capability. One context for the life of the process.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

from qubes_vpn.errors import OsRefusedError

Json = dict[str, Any]

# What changes without anybody changing a rule.
_VOLATILE: Final = frozenset({"handle", "packets", "bytes", "index"})


class Nft:
    """Loads transactions and lists tables."""

    def __init__(self) -> None:
        try:
            from nftables import Nftables
        except ImportError as error:
            raise OsRefusedError(
                "python3-nftables is missing: install the distribution's"
            ) from error
        self._nft = Nftables()
        self._nft.set_handle_output(True)
        self._nft.set_numeric_prio_output(True)
        self._nft.set_numeric_symbol_output(True)

    def load(self, text: str) -> None:
        """Run one transaction: all of it, or nothing. OsRefusedError."""
        self._nft.set_json_output(False)
        status, _, error = self._nft.cmd(text)
        if status:
            raise OsRefusedError(f"nftables: {_first_line(error)}")

    def list_table(self, table: str) -> list[Json] | None:
        """Give what is in a table, in libnftables' JSON; None: no table."""
        self._nft.set_json_output(True)
        status, output, error = self._nft.cmd(f"list table {table}")
        if status:
            if "No such file" in error:
                return None
            raise OsRefusedError(f"nftables: {_first_line(error)}")
        found: list[Json] = json.loads(output)["nftables"]
        return [item for item in found if "metainfo" not in item]

    def flags(self, table: str) -> str:
        """Give a table's flags, such as "dormant"; "" for none.

        From the text: libnftables 1.0.6 writes something else in JSON.
        """
        self._nft.set_json_output(False)
        _, output, _ = self._nft.cmd(f"list table {table}")
        for line in output.splitlines():
            if line.startswith("\tflags "):
                return str(line).removeprefix("\tflags ").strip()
        return ""

    def commented(self, table: str, chain: str, comment: str) -> list[int]:
        """Give the handles of rules with this comment; none: no table."""
        return [
            rule["handle"]
            for rule in rules_of(self.list_table(table) or [], chain)
            if rule.get("comment") == comment
        ]


def rules_of(items: list[Json], chain: str) -> Iterator[Json]:
    """Give the rules of one chain of a listed table, in order."""
    for item in items:
        rule = item.get("rule")
        if rule and rule["chain"] == chain:
            yield rule


def canonical(value: Any) -> Any:  # noqa: ANN401 what JSON can hold
    """Give a listing without handles and counters, for comparison.

    The elements of a set come in no order of their own: they are sorted.
    """
    if isinstance(value, dict):
        return {
            key: _sorted(canonical(inner))
            if key == "elem"
            else canonical(inner)
            for key, inner in value.items()
            if key not in _VOLATILE
        }
    if isinstance(value, list):
        return [canonical(inner) for inner in value]
    return value


def _sorted(elements: Any) -> Any:  # noqa: ANN401 what JSON can hold
    if isinstance(elements, list):
        return sorted(
            elements, key=lambda item: json.dumps(item, sort_keys=True)
        )
    return elements


def _first_line(error: str) -> str:
    line = error.strip().splitlines()[:1]
    return line[0][:200] if line else "refused"
