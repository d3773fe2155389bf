"""One run: control, events, judgement."""

import time
from collections import defaultdict
from dataclasses import dataclass, field

from tests.chaos.events import Chooser
from tests.chaos.world import World

JUDGE_EVERY = 10


@dataclass
class Result:
    """What a run did, in numbers."""

    events: int
    seed: int
    seconds: float = 0.0
    goodput: float = 0.0
    tunnel_packets: int = 0
    probes: int = 0
    queries: int = 0
    spent: dict = field(default_factory=lambda: defaultdict(float))
    took: dict = field(default_factory=lambda: defaultdict(list))

    def __str__(self):
        lines = [f"{'event':20} count  slowest recovery   in all"]
        lines += [
            f"{name:20} {len(times):5}  {max(times):15.2f} s"
            f" {sum(times) + self.spent[name]:6.1f} s"
            for name, times in sorted(self.took.items())
        ]
        lines.append(
            f"{self.events} events (seed {self.seed}) in {self.seconds:.0f} s;"
            f" {self.probes} probes and {self.queries} queries of two qubes,"
            f" {self.tunnel_packets} tunnel packets,"
            f" 0 inner packets and 0 queries in clear;"
            f" {self.goodput:.1%} answered between events"
        )
        return "\n".join(lines)


def run(events, seed, say=None):
    """Run; AssertionError names the event that it failed after."""
    begin = time.monotonic()
    result = Result(events, seed)
    chooser = Chooser(seed)
    history = []
    with World() as world:
        world.control()
        world.begin()
        try:
            for number in range(1, events + 1):
                event = chooser.next()
                history.append(event.__name__)
                started = time.monotonic()
                event(world, chooser.draw)
                result.spent[event.__name__] += time.monotonic() - started
                result.took[event.__name__].append(world.recovered())
                world.window()
                if number % JUDGE_EVERY == 0:
                    world.judge()
                if say and number % 100 == 0:
                    say(f"{number} events, {time.monotonic() - begin:.0f} s")
            result.goodput = world.finish()
        except AssertionError as error:
            raise AssertionError(
                f"event {len(history)}, the last {history[-JUDGE_EVERY:]}:"
                f" {error}"
            ) from error
        result.tunnel_packets = world.tunnel_packets
        result.probes = sum(flood.sent for flood in world.floods)
        result.queries = world.asker.asked
    result.seconds = time.monotonic() - begin
    return result
