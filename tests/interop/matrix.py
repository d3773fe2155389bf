"""The table of tests/interop/test_protocol_matrix.py, from a run's reports."""

import re
from collections.abc import Iterable, Iterator

CELL = re.compile(
    r"test_protocol_matrix\.py::\w+"
    r"\[(?P<wrap>.+)-(?P<transport>(?:udp|tcp)[46])-(?P<cipher>.+)\]"
)
PASS, FAIL, UNTRIED = "pass", "FAIL", "-"


def table(results: Iterable[tuple[str, bool]]) -> Iterator[str]:
    """Lines for what a run tried: (node id, whether it passed) of each test.

    A cell that was tried twice counts as its last. Nothing without a cell.
    """
    cells: dict[tuple[str, str], dict[str, bool]] = {}
    ciphers: dict[str, None] = {}
    for node, passed in results:
        if found := CELL.search(node):
            wrap, transport, cipher = found.groups()
            cells.setdefault((wrap, transport), {})[cipher] = passed
            ciphers[cipher] = None
    if not cells:
        return
    columns = sorted(ciphers)
    heads = [cipher.removesuffix("-POLY1305") for cipher in columns]
    yield _line("", "", heads)
    for (wrap, transport), row in sorted(cells.items()):
        words = [
            UNTRIED if cipher not in row else PASS if row[cipher] else FAIL
            for cipher in columns
        ]
        yield _line(wrap, transport, words)
    tried = [passed for row in cells.values() for passed in row.values()]
    yield f"{len(tried)} cells tried, {sum(tried)} passed"


def _line(wrap: str, transport: str, words: Iterable[str]) -> str:
    cells = "".join(f"{word:>12}" for word in words)
    return f"{wrap:<13}{transport:<5}{cells}"
