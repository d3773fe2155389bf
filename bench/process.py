"""What a tree of processes has used."""

import contextlib
import os
from pathlib import Path


def tree(pid: int) -> list[int]:
    """The process and everything below it."""
    found, todo = [], [pid]
    while todo:
        each = todo.pop()
        found.append(each)
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{each}/task"):
                text = Path(f"/proc/{each}/task/{task}/children").read_text()
                todo += map(int, text.split())
    return found


def cpu_seconds(pid: int) -> float:
    """Time on a processor (sum_exec_runtime), of all threads."""
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{each}/task"):
                text = Path(f"/proc/{each}/task/{task}/schedstat").read_text()
                total += int(text.split()[0])
    return total / 1e9


def pss_mib(pid: int) -> float:
    """Proportional set size of the tree, in MiB."""
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{each}/smaps_rollup").read_text()
            for line in rollup.splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1024
