"""No row is missing, and no row names a test that is not there."""

import pytest

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
