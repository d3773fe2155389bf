"""tests/conftest.py: levels by folder, and skips that count."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
ROOT = CONFTEST.parents[1]
SKIPPED = "import pytest\ndef test_it(): pytest.skip('the reason')\n"
ABSENT = "import pytest\npytest.importorskip('no_such_module')\n"

pytestmark = pytest.mark.slow
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="skips fail only where root is available"
)


def run(tmp_path, folder, text, *options):
    tests = tmp_path / "tests"
    (tests / folder).mkdir(parents=True)
    shutil.copy(CONFTEST, tests)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tests / folder / "test_it.py").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )


def test_a_skip_is_printed_with_its_reason(tmp_path):
    done = run(tmp_path, "unit", SKIPPED)
    assert done.returncode == 0
    assert "1 skipped, and why" in done.stdout
    assert "tests/unit/test_it.py::test_it: the reason" in done.stdout


@needs_root
@pytest.mark.parametrize("folder", ["netns", "interop"])
def test_a_skip_where_root_is_fails(tmp_path, folder):
    done = run(tmp_path, folder, SKIPPED)
    assert done.returncode == 1
    assert "root is available, yet it was skipped: the reason" in done.stdout


@needs_root
def test_a_missing_module_where_root_is_fails(tmp_path):
    done = run(tmp_path, "netns", ABSENT)
    assert done.returncode not in (0, 5)


@pytest.mark.parametrize("folder", ["netns", "interop", "kernel"])
def test_a_folder_gives_its_mark(tmp_path, folder):
    done = run(tmp_path, folder, "def test_it(): pass\n", "-m", f"not {folder}")
    assert "1 deselected" in done.stdout
