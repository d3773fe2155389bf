"""Leak rows that need a whole machine; one boot runs them all."""

import pytest

from tests.kernel import machine
from tests.kernel.leaks_in_guest import CHECKS

SECONDS = 900

pytestmark = pytest.mark.timeout(SECONDS + 600)


@pytest.fixture(scope="module")
def console(tmp_path_factory):
    path = tmp_path_factory.mktemp("machine") / "console"
    module = "tests.kernel.leaks_in_guest"
    return machine.run(SECONDS, path, GUEST_MODULE=module)


@pytest.mark.parametrize("name", [check.__name__ for check in CHECKS])
def test_leak(console, name):
    assert f"LEAK {name} ok" in console, console[-12_000:]
