"""No row is missing, and no row names a test that is not there."""

import os

import pytest

from tests.hostile import __main__ as table
from tests.hostile import rows
from tests.hostile.rows import NAMED, ROOT, ROWS, functions, summary, tried_by


def test_every_row_is_there_and_has_a_test():
    assert list(ROWS) == [f"P{number:02}" for number in range(1, 76)]
    assert not [row for row in ROWS if not tried_by(row)]


@pytest.mark.parametrize("row", ROWS)
def test_the_tests_of_a_row_exist(row):
    for test in tried_by(row):
        file, _, name = test.partition("::")
        assert name in functions(file), test


def test_every_hostile_test_with_a_number_has_its_row():
    for path in (ROOT / "tests/hostile").glob("test_*.py"):
        for name in functions(str(path.relative_to(ROOT))):
            match = NAMED.match(name)
            assert match is None or f"P{match[1]}" in ROWS


def test_the_table_says_what_was_tried_and_what_held():
    (first, *_) = tried_by("P01")
    (other, *_) = tried_by("P02")
    lines = summary([(f"{first}[a]", True), (first, True), (other, False)])
    assert lines[0].startswith("P01 held 2/2")
    assert "P02 LOST 0/1" in lines[0]
    assert lines[-1] == "75 rows, 2 tried in this run, 1 held"
    assert summary([("tests/x.py::test_y", True)]) == []


@pytest.mark.parametrize(
    ("stages", "last", "status"),
    [
        (({"P01": True}, {"P02": True}), "75 rows, 2 tried", 0),
        (({"P01": False}, {"P01": True}), "75 rows, 1 tried", 0),
        (({"P01": True}, {"P01": False}), "75 rows, 1 tried", 1),
        ((dict.fromkeys(ROWS, True),), "75 rows, 75 tried", 0),
        ((), "no row", 0),
    ],
)
def test_the_runs_share_a_table(
    stages, last, status, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "build/rows.json")
    whole = len({row for stage in stages for row in stage}) == len(ROWS)
    for root in (False, True):
        for stage in stages:
            rows.remember(
                (min(tried_by(row)), passed) for row, passed in stage.items()
            )
        rows.remember([("tests/x.py::test_y", True)])
        monkeypatch.setattr(os, "geteuid", lambda root=root: 1000 * (not root))
        assert table.main() == (status or (root and not whole))
        assert capsys.readouterr().out.splitlines()[-1].startswith(last)
    assert rows.recall() == {}
