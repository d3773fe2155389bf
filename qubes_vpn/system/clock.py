"""The two clocks that the engine is given."""

import time


def monotonic() -> float:
    """Give seconds for timers: they stand still in suspend."""
    return time.monotonic()


def unix() -> float:
    """Give seconds since 1970, for replay packet ids; it may jump."""
    return time.time()
