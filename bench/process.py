"""What a tree of processes has used."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

# What is in the command line of our processes; the first one is the agent.
ROLES = {"qubes_vpn.keeper": "keeper", "qubes_vpn.runtime.engine": "engine"}


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


def _tasks(pid: int, name: str) -> Iterator[str]:
    """A file of /proc of every thread of the process."""
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            yield Path(f"/proc/{pid}/task/{task}/{name}").read_text()


def cpu_seconds(pid: int) -> float:
    """Time on a processor (sum_exec_runtime), of the tree."""
    texts = (text for each in tree(pid) for text in _tasks(each, "schedstat"))
    return sum(int(text.split()[0]) for text in texts) / 1e9


def wakeups(pid: int) -> dict[str, int]:
    """How often a thread of each process of the tree slept and was woken."""
    sleeps = re.compile(r"^voluntary_ctxt_switches:\s+(\d+)", re.MULTILINE)
    return {
        role(each): sum(
            int(sleeps.findall(text)[0]) for text in _tasks(each, "status")
        )
        for each in tree(pid)
    }


def role(pid: int) -> str:
    """Which of our processes it is, or the program's name."""
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    for word in words:
        if word in ROLES:
            return ROLES[word]
    return "agent" if "qubes_vpn" in words else Path(words[0]).name


def pss_mib(pid: int) -> dict[str, float]:
    """Proportional set size of each process of the tree, in MiB."""
    found: dict[str, float] = {}
    for each in tree(pid):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
            (size,) = re.findall(r"^Pss:\s+(\d+)", text, re.MULTILINE)
            found[role(each)] = found.get(role(each), 0.0) + int(size) / 1024
    return found
