"""QubesDB by its stand-in, in a folder of the test's own."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "dom0/standin"))
import qubesdb


@pytest.fixture
def qdb(tmp_path):
    connection = qubesdb.QubesDB(tmp_path / "qubesdb")
    yield connection
    connection.close()
