"""Any archive or file that is imported gives profiles, or is refused.

Nothing outside is read, what is unpacked is bounded, and a refusal is a
sentence for a terminal.
"""

import io
import stat
import tempfile
import zipfile
from pathlib import Path

from qubes_vpn.errors import ConfigError, UnreadableError
from qubes_vpn.runtime.sources import ARCHIVE_MAX, sources

FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-archive-")
PATH = Path(FOLDER.name) / "import.zip"
SECRET = Path(FOLDER.name) / "secret"
SECRET.write_bytes(b"SECRET")
NAMES = ("ca.crt", "../secret", str(SECRET), "secret", "a\\ca.crt", "", ".")


def archive(members, method=zipfile.ZIP_DEFLATED):
    """Pack."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as packed:
        for name, content in members:
            packed.writestr(name, content)
    return out.getvalue()


LINK = zipfile.ZipInfo("x" * 2000)
LINK.external_attr = stat.S_IFLNK << 16
SEEDS = (
    archive([("a.ovpn", b"client\nremote h\n"), ("ca.crt", b"x")]),
    archive([("../a.ovpn", b"client\n")]),
    archive([("b/a.conf", b"remote h\n")], zipfile.ZIP_STORED),
    archive([("a.ovpn", bytes(4000))], zipfile.ZIP_BZIP2),
    archive([("a.ovpn", bytes(400))], zipfile.ZIP_LZMA),
    # found: names that are long, and that a terminal obeys
    archive([("\x1b[2J/../a", b"")]),
    archive([(LINK, b"")]),
    b"client\nremote h\n",
    b"\xff\xfec\0l\0",
)


def one_input(data: bytes) -> None:
    """Import, and read all that a profile could name."""
    PATH.write_bytes(data)
    try:
        found = list(sources(PATH))
    except (ConfigError, UnreadableError) as error:
        assert len(str(error)) < 1000
        assert str(error).isprintable()
        return
    assert sum(len(one.text) for one in found) <= ARCHIVE_MAX
    packed = zipfile.is_zipfile(PATH)
    for one in found:
        for name in NAMES:
            try:
                content = one.read_file(name)
            except (OSError, ValueError):
                continue
            assert name == "secret" or "/" in name or content != b"SECRET"
            assert not packed or b"SECRET" not in content
