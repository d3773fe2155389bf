"""A second environment with the oldest versions that are supported."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PLACE = ROOT / "build/venv-floor"
# The floors of pyproject.toml.
FLOORS = ("cryptography==43.0.*", "pyOpenSSL==25.0.*", "pyroute2==0.7.7")
OTHERS = ("dnspython>=2.3", "numpy>=1.24")


def python() -> str:
    """Its interpreter; made by pip when it is missing."""
    found, made = PLACE / "bin/python", PLACE / ".made"
    if not made.exists() or made.read_text() != str(FLOORS):
        print(f"making {PLACE.name}: {' '.join(FLOORS)}", file=sys.stderr)
        # system packages, for libnftables' binding: as in tools/venv.sh
        command = [sys.executable, "-m", "venv", "--system-site-packages"]
        subprocess.run([*command, str(PLACE)], check=True)
        pip = [str(found), "-m", "pip", "install", "-qq"]
        pip.append("--disable-pip-version-check")
        subprocess.run([*pip, *FLOORS, *OTHERS], check=True)
        made.write_text(str(FLOORS))
    # our children are started without the environment's PYTHONPATH
    (packages,) = PLACE.glob("lib/python3*/site-packages")
    (packages / "qubes-vpn.pth").write_text(f"{ROOT}\n")
    return str(found)


def versions(interpreter: str) -> str:
    """What is installed there."""
    code = (
        "from importlib.metadata import version as v; print(', '.join("
        "f'{n} {v(n)}' for n in ('cryptography', 'pyOpenSSL', 'pyroute2')))"
    )
    done = subprocess.run(
        [interpreter, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
