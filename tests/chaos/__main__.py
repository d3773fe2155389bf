"""`python -m tests.chaos`: run, print what happened, fail on a leak."""

import argparse
import sys

from tests.chaos.run import run


def say(what):
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    try:
        result = run(args.events, args.seed, say=say)
    except AssertionError as error:
        say(f"FAILED (seed {args.seed}): {error}")
        return 1
    say(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
