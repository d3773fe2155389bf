"""Five minutes of a soak; and that growth is noticed."""

import pytest

from tests.soak import soak as run


@pytest.mark.netns
@pytest.mark.long
@pytest.mark.timeout(900)
def test_five_minutes():
    result = run.soak(300)
    assert result.faults >= 4
    assert len(result.samples) > 30


def samples(step):
    names = ("memory", "threads", "descriptors", "pid")
    return [
        run.Sample(
            number,
            {
                **{
                    f"{role} {name}": 5000 + number * step * (name != "pid")
                    for role in run.ROLES
                    for name in names
                },
                "conntrack": 5,
            },
        )
        for number in range(60)
    ]


@pytest.mark.parametrize(("step", "good"), [(0, True), (1, False)])
def test_growth_is_noticed(step, good):
    result = run.Result(300, 5, 5, 1.0, samples=samples(step))
    result.growth = run.grown(result.samples)
    if good:
        run.judge(result)
        return
    with pytest.raises(AssertionError):
        run.judge(result)


def test_another_process_is_noticed():
    result = run.Result(300, 5, 5, 1.0, samples=samples(0))
    result.samples[-1].numbers["engine pid"] += 1
    result.growth = run.grown(result.samples)
    with pytest.raises(AssertionError):
        run.judge(result)
