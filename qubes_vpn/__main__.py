"""`python -m qubes_vpn` is the command `qubes-vpn`."""

import sys

from qubes_vpn.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
