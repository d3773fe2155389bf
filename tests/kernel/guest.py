"""Runs the checks in the machine; says how each went, on the console.

ONLY: names of checks, separated by commas; all of them without it.
"""

import os
import sys
import time
import traceback

from tests.kernel.checks import CHECKS


def main():
    only = os.environ.get("ONLY", "").split(",")
    failed = 0
    for check in CHECKS:
        name = check.__name__
        if only != [""] and name not in only:
            continue
        print(f"CHECK {name} begins", flush=True)
        began = time.monotonic()
        try:
            check()
        except Exception:
            failed += 1
            traceback.print_exc(file=sys.stdout)
            how = "FAILED"
        else:
            how = "ok"
        print(
            f"CHECK {name} {how} {time.monotonic() - began:.1f} s", flush=True
        )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
