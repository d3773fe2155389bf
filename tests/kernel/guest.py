# ruff: noqa: T201 -- the console is where it reports
"""Runs the checks in the machine; says how each went, on the console.

ONLY: the first letters of their names (`names`), separated by commas; all of
them without it.
"""

import contextlib
import functools
import os
import sys
import time
import traceback

from tests.kernel.checks import GROUPS, the_lab_leaks_without_the_lock
from tests.kernel.place import connected

ALONE = (the_lab_leaks_without_the_lock,)


def names():
    """Every check: its group's number and its own name."""
    return [check.__name__ for check in ALONE] + [
        f"{number}.{check.__name__}"
        for number, group in enumerate(GROUPS)
        for check in group.checks
    ]


class Runner:
    """Runs a group's checks in one place, or in a fresh one after a failure."""

    def __init__(self, group):
        self._group = group
        self._place = None
        self._closing = contextlib.ExitStack()

    def run(self, check):
        if self._place is None:
            self._place = self._closing.enter_context(
                connected(**self._group.fields)
            )
        place = self._place
        silent = (
            place.silent if self._group.captured else contextlib.nullcontext
        )
        try:
            with silent():
                check(place)
        except BaseException:
            self.close()
            raise

    def close(self):
        self._place = None
        self._closing.close()


def show(name, run):
    """Run one check, and say how it went."""
    print(f"CHECK {name} begins", flush=True)
    began = time.monotonic()
    how = "ok"
    try:
        run()
    except Exception:  # noqa: BLE001 it is shown, and fails its test
        traceback.print_exc(file=sys.stdout)
        how = "FAILED"
    seconds = time.monotonic() - began
    print(f"CHECK {name} {how} {seconds:.1f} s", flush=True)


def main():
    only = tuple(os.environ.get("ONLY", "").split(","))
    for check in ALONE:
        if check.__name__.startswith(only):
            show(check.__name__, check)
    for number, group in enumerate(GROUPS):
        runner = Runner(group)
        for check in group.checks:
            name = f"{number}.{check.__name__}"
            if name.startswith(only):
                show(name, functools.partial(runner.run, check))
        runner.close()


if __name__ == "__main__":
    main()
