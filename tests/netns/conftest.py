"""The lab, fresh for each test."""

import pytest

from lab import Lab


@pytest.fixture
def lab():
    with Lab() as made:
        yield made


@pytest.fixture
def lab6():
    with Lab(ipv6=True) as made:
        yield made
