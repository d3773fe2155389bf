"""`python -m tests.hostile`: the table of rows over all runs, once.

What unit and namespace runs found is put together, printed and forgotten. It
ends with 1 when a row was lost, or, as root, when one was not tried.
"""

import os
import sys

from tests.hostile import rows


def main():
    outcomes = rows.recall()
    rows.RESULTS.unlink(missing_ok=True)
    lines = rows.summary(outcomes.items()) or ["no row was tried"]
    sys.stdout.write("\n".join(lines) + "\n")
    table = "\n".join(lines)
    missing = f"{len(rows.ROWS)} tried" not in lines[-1] and not os.geteuid()
    return int("LOST" in table or missing)


if __name__ == "__main__":
    sys.exit(main())
