"""A Debian kernel with the `ovpn` driver, of the series that Qubes runs.

It comes from trixie's backports, and is only unpacked, below build/.
"""

import re
import shutil
import subprocess
from pathlib import Path

from lab import backports
from lab.namespace import LabError

KERNEL = r"linux-image-(6\.18\.(\d+)\+deb13-cloud-amd64)"


def kernel() -> tuple[Path, str]:
    """Give a folder with lib/modules/VERSION, and VERSION. LabError.

    The kernel itself is lib/modules/VERSION/vmlinuz there.
    """
    folder = backports.once("kernel", _make)
    return folder, next((folder / "lib/modules").iterdir()).name


def _make(folder: Path) -> None:
    image = folder / "image"
    with backports.archive() as source:
        names = source.names("linux-image-6.18.")
        found = filter(None, (re.fullmatch(KERNEL, name) for name in names))
        best = max(found, key=lambda match: int(match[2]), default=None)
        if best is None:
            raise LabError("no kernel 6.18 in trixie-backports")
        package, version = best[0], best[1]
        source.unpack([package], image)
    modules = folder / "lib" / "modules"
    modules.mkdir(parents=True)
    (image / "usr/lib/modules" / version).rename(modules / version)
    (image / f"boot/vmlinuz-{version}").rename(modules / version / "vmlinuz")
    subprocess.run(["depmod", "-b", folder, version], check=True)
    shutil.rmtree(image)
