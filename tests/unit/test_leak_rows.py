"""docs/security.md: every leak row has tests, and every test that it names."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/security.md").read_text()
ROWS = {f"L{number:02}" for number in range(1, 70)}
OUT_OF_SCOPE = {"L64"}
NAME = re.compile(r"`(tests/[\w/]+\.py)::(\w+)(?:\[[\w.]+\])?`")


def rows():
    found = re.findall(r"^\| (L\d\d) \|[^|]*\|(.*)\|$", TEXT, re.MULTILINE)
    return {row: NAME.findall(names) for row, names in found}


def functions(path):
    tree = ast.parse((ROOT / path).read_text())
    return {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef)
    }


def test_no_row_is_missing():
    assert set(rows()) == ROWS


def test_every_row_in_scope_has_a_test():
    bare = {row for row, names in rows().items() if not names}
    assert bare == OUT_OF_SCOPE


def lines(heading):
    """The cells of the table whose first line is given."""
    _, _, table = TEXT.partition(f"\n{heading}\n")
    found = []
    for line in table.split("\n")[1:]:
        if not line.startswith("| "):
            return found
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


@pytest.mark.parametrize(
    "heading",
    [
        "| traffic | no tunnel (blocked, connecting) | connected | test |",
        "| moment | tests |",
        "| who | cannot | tried by |",
        "| fault | test |",
    ],
)
def test_every_line_of_a_table_has_a_test(heading):
    found = lines(heading)
    assert len(found) > 8
    for *said, tests in found:
        listed = set(re.findall(r"\bL\d\d\b", tests))
        assert listed <= ROWS - OUT_OF_SCOPE
        assert listed or NAME.search(tests), said


def test_whoever_can_something_cannot_something():
    can = {who for who, _ in lines("| who | can |")}
    cannot = {who for who, *_ in lines("| who | cannot | tried by |") if who}
    assert can == cannot


def test_every_check_of_the_box_that_is_named_exists():
    checks = functions("tests/hostile/units_in_box.py")
    named = set(re.findall(r"test_in_a_box\[(\w+)\]", TEXT))
    assert named
    assert named <= checks


def test_every_name_of_a_test_is_understood():
    """None is passed over by the others because it is written otherwise."""
    written = re.findall(r"`(tests/[^`]*)`", TEXT)
    for name in written:
        assert NAME.fullmatch(f"`{name}`") or (ROOT / name).exists(), name


def test_every_test_that_is_named_exists():
    named = NAME.findall(TEXT)
    assert len(named) > len(ROWS)
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / path).exists() or name not in functions(path)
    ]
    assert missing == []


def test_every_test_of_a_row_is_in_it():
    table = rows()
    for path in (ROOT / "tests/netns").glob("test_leaks_*.py"):
        where = str(path.relative_to(ROOT))
        for name in functions(where):
            for number in re.findall(r"(?<=_)l(\d\d)(?=_)", name):
                assert (where, name) in table[f"L{number}"], name


def test_every_row_of_the_machine_is_run_there():
    """Its tests are made from a list: the names of the rows are in it."""
    checks = functions("tests/kernel/leaks_in_guest.py")
    machine = ("tests/kernel/test_leaks_machine.py", "test_leak")
    wanted = {row for row, names in rows().items() if machine in names}
    assert {
        name[:3].upper()
        for name in checks
        if name[0] == "l" and name[1:3].isdigit()
    } == wanted
