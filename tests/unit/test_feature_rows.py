"""docs/protocol.md: every feature of MirageVPN has tests, which exist."""

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs/protocol.md").read_text()
ROWS = range(1, 127)
ROW = re.compile(r"^\| ([0-9, -]+) \|[^|]*\|([^|]*)\|$", re.MULTILINE)
NAME = re.compile(r"`([\w/]+\.py)::(test_\w+)`")


def numbers(text):
    for part in text.split(", "):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


@cache
def functions(path):
    if not (TESTS / path).exists():
        return set()
    tree = ast.parse((TESTS / path).read_text())
    return {node.name for node in tree.body if hasattr(node, "name")}


def test_every_feature_is_there_once():
    found = [n for rows, _ in ROW.findall(TEXT) for n in numbers(rows)]
    assert sorted(found) == list(ROWS)


def test_every_feature_has_a_test():
    bare = [rows for rows, names in ROW.findall(TEXT) if not NAME.search(names)]
    assert bare == []


def test_every_test_that_is_named_exists():
    named = {
        name for _, names in ROW.findall(TEXT) for name in NAME.findall(names)
    }
    assert len(named) > 80
    missing = [f"{p}::{n}" for p, n in named if n not in functions(p)]
    assert missing == []
