# ruff: noqa: T201  (a command: it prints)
"""Runs every fuzz target: python -m tests.fuzz [--seconds N] [TARGET ...].

A target is a module fuzz_*.py of this folder: its first line says what holds
for any input, `one_input(data)` raises when it does not, and SEEDS are inputs
to begin with. With atheris, coverage guides the inputs; without it they are
the seeds, changed at random. Each target runs in a process of its own. An
input that fails is written to tests/fuzz/found/ and named.
"""

import argparse
import importlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
FOUND = HERE / "found"
SIZE_MAX = 4096
CHANGES_MAX = 8


def targets() -> list[str]:
    """Give the names of all targets."""
    return sorted(path.stem for path in HERE.glob("fuzz_*.py"))


def mutate(data: bytes, seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """Change a few bytes, or splice two inputs."""
    out = bytearray(data)
    for _ in range(chance.randrange(1, CHANGES_MAX)):
        at = chance.randrange(len(out) + 1)
        match chance.randrange(4):
            case 0:
                out[at:at] = chance.randbytes(chance.randrange(4))
            case 1:
                del out[at : at + chance.randrange(1, 8)]
            case 2:
                other = chance.choice(seeds)
                begin = chance.randrange(len(other) + 1)
                out[at:at] = other[begin : begin + chance.randrange(64)]
            case _:
                out[at : at + 1] = bytes([chance.randrange(256)])
    return bytes(out[:SIZE_MAX])


def run_plain(name: str, seconds: float, runs: int, seed: int) -> int:
    """Run a target without atheris. Gives how often."""
    module = importlib.import_module(f"tests.fuzz.{name}")
    seeds = list(module.SEEDS)
    chance = random.Random(f"{name}{seed}")
    until = time.monotonic() + seconds
    count = 0
    while (runs and count < runs) or (not runs and time.monotonic() < until):
        whole = count < len(seeds)
        data = (
            seeds[count]
            if whole
            else mutate(chance.choice(seeds), seeds, chance)
        )
        try:
            module.one_input(data)
        except BaseException:
            FOUND.mkdir(exist_ok=True)
            path = FOUND / f"{name}-{abs(hash(data)):x}"
            path.write_bytes(data)
            print(f"{name}: {path}", file=sys.stderr)
            raise
        count += 1
    return count


def run_guided(name: str, seconds: float, runs: int, seed: int) -> None:
    """Run a target with atheris; does not return."""
    import atheris

    with atheris.instrument_imports(include=["qubes_vpn", "tests.fuzz"]):
        module = importlib.import_module(f"tests.fuzz.{name}")
    FOUND.mkdir(exist_ok=True)
    corpus = tempfile.mkdtemp(prefix=f"{name}-")
    for number, data in enumerate(module.SEEDS):
        Path(corpus, str(number)).write_bytes(data)
    options = [
        f"-max_len={SIZE_MAX}",
        f"-artifact_prefix={FOUND}/{name}-",
        "-verbosity=0",
        "-print_final_stats=1",
        "-rss_limit_mb=1024",
        "-timeout=20",
        f"-seed={seed}",
    ]
    limit = f"-runs={runs}" if runs else f"-max_total_time={int(seconds)}"
    atheris.Setup([name, *options, limit, corpus], module.one_input)
    atheris.Fuzz()


def _run_one(name: str, options: argparse.Namespace) -> None:
    limits = (options.seconds, options.runs, options.seed)
    if not options.plain:
        try:
            run_guided(name, *limits)
        except ImportError as error:
            if "atheris" not in str(error):
                raise
    print(f"{run_plain(name, *limits)} runs, without atheris")


def _apart(name: str, options: argparse.Namespace) -> bool:
    """Run a target in a process of its own; tell if its invariant held."""
    doc = (HERE / f"{name}.py").read_text().split('"""')[1].split("\n")[0]
    command = [sys.executable, "-m", "tests.fuzz", "--here", name]
    command += ["--seconds", str(options.seconds)]
    command += ["--runs", str(options.runs), "--seed", str(options.seed)]
    command += ["--plain"] * options.plain
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace"
    )
    said = (done.stdout + done.stderr).splitlines()
    counts = [one for one in said if "number_of_executed" in one]
    counts += [one for one in said if "runs, without atheris" in one]
    runs = (counts or ["?"])[-1].split(":")[-1].strip()
    print(f"{name}: {doc} [{runs}]", flush=True)
    if done.returncode:
        print("\n".join(said[-40:]), flush=True)
    return not done.returncode


def main(args: Sequence[str] | None = None) -> int:
    """Run the targets that are named, or all."""
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--runs", type=int, default=0, help="instead of time")
    parser.add_argument("--seed", type=int, default=0, help="0: any")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--plain", action="store_true", help="no atheris")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(args)
    if options.here:
        (name,) = options.target
        _run_one(name, options)
        return 0
    names = options.target or targets()
    unknown = set(names) - set(targets())
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}")
    with ThreadPoolExecutor(options.jobs) as pool:
        held = list(pool.map(lambda name: _apart(name, options), names))
    print(f"{len(names)} targets, {sum(held)} held", flush=True)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
