"""`python -m tests.soak --minutes 60`: an hour, or as long as wanted."""

import argparse
import sys

from tests.soak.soak import soak


def say(what):
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    try:
        say(soak(args.minutes * 60, seed=args.seed, say=say))
    except AssertionError as error:
        say(f"FAILED: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
