"""Random faults under traffic; `make chaos` has as many as wanted."""

import os

import pytest

from tests.chaos.run import run


def told(capsys, events):
    seed = int(os.environ.get("CHAOS_SEED", "20261123"))
    result = run(events, seed)
    with capsys.disabled():
        print(f"\n{result}")  # noqa: T201 what a run of the level shows


@pytest.mark.timeout(900)
def test_two_hundred_events(capsys):
    told(capsys, 200)


@pytest.mark.long
@pytest.mark.timeout(2700)
def test_a_thousand_events(capsys):
    """About ten minutes, most of it clients that start again."""
    told(capsys, 1000)
