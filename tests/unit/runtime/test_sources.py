"""Importing: only harmless archives, only files of the profile's folder."""

import io
import os
import stat
import zipfile

import pytest

from qubes_vpn.errors import ConfigError, UnreadableError
from qubes_vpn.runtime import sources as module
from qubes_vpn.runtime.sources import sources


def titles(path):
    return [one.title for one in sources(path)]


def archive(path, members, **attributes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in attributes.items():
                setattr(info, key, value)
            out.writestr(info, content)
    return path


def refusal(path):
    with pytest.raises(ConfigError) as caught:
        list(sources(path))
    return str(caught.value)


def test_a_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("client")
    (tmp_path / "ca").write_text("x")
    (one,) = sources(path)
    assert (one.title, one.text) == ("a", "client")
    assert one.read_file("ca") == b"x"


def test_a_folder_and_those_below(tmp_path):
    deep = tmp_path / "/".join("abcdefghij")
    deep.mkdir(parents=True)
    for path in (tmp_path / "b.ovpn", tmp_path / "a.CONF", deep / "z.ovpn"):
        path.write_text("client")
    (tmp_path / "note.txt").write_text("x")
    (tmp_path / "link.ovpn").symlink_to(tmp_path / "b.ovpn")
    assert titles(tmp_path) == ["a", "b"]


def test_an_archive(tmp_path):
    path = archive(
        tmp_path / "a.zip",
        {"x/": b"", "x/a.ovpn": b"client", "x/ca.crt": b"ca", "b.txt": b""},
    )
    (one,) = sources(path)
    assert one.read_file("ca.crt") == b"ca"
    assert one.read_file("/etc/openvpn/ca.crt") == b"ca"
    for name in ("b.txt", "../b.txt", "/etc/passwd", "", "no"):
        with pytest.raises(ValueError, match=r"archive|folder|file name"):
            one.read_file(name)


def test_a_folder_that_a_profile_names(tmp_path):
    (tmp_path / "revoked").mkdir()
    (tmp_path / "revoked" / "17").touch()
    (tmp_path / "a.ovpn").write_text("client")
    members = {"x/a.ovpn": b"client", "x/revoked/17": b""}
    packed = archive(tmp_path / "a.zip", members)
    for path in (tmp_path / "a.ovpn", packed):
        (one,) = sources(path)
        assert one.read_file("revoked/").split() == [b"17"]
        with pytest.raises((OSError, ValueError)):
            one.read_file("none/")


def test_nothing_to_import(tmp_path):
    assert "holds no profile" in refusal(tmp_path)
    assert "holds no profile" in refusal(archive(tmp_path / "e.zip", {}))


def test_what_cannot_be_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name in ("none", "fifo"):
        with pytest.raises(UnreadableError):
            list(sources(tmp_path / name))
    big = tmp_path / "big.ovpn"
    with big.open("wb") as out:
        out.truncate(1 << 30)
    with pytest.raises(UnreadableError, match="larger"):
        list(sources(big))


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "a/../../x", "a\\..\\x", "C:\\x.ovpn"]
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    said = refusal(archive(tmp_path / "a.zip", {"a.ovpn": b"x", name: b""}))
    assert "leads out" in said


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(tmp_path, kind):
    path = archive(
        tmp_path / "a.zip",
        {"a.ovpn": b"/etc/passwd"},
        external_attr=(kind | 0o777) << 16,
        create_system=3,
    )
    assert "a link or a device" in refusal(path)


def test_bombs_are_refused(tmp_path):
    many = {f"{n}": b"" for n in range(module.MEMBERS_MAX + 1)}
    assert "more than" in refusal(archive(tmp_path / "many.zip", many))
    huge = {"a.ovpn": bytes(module.FILE_MAX + 1)}
    assert "reasonable" in refusal(archive(tmp_path / "huge.zip", huge))


def test_many_large_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ARCHIVE_MAX", 10_000)
    members = {f"{n}.ovpn": bytes(900) for n in range(12)}
    assert "reasonable" in refusal(archive(tmp_path / "a.zip", members))
    monkeypatch.setattr(module, "ARCHIVE_MAX", 100)
    assert "is larger than" in refusal(tmp_path / "a.zip")


def test_sizes_in_the_archive_are_not_believed(tmp_path):
    path = archive(tmp_path / "a.zip", {"a.ovpn": bytes(module.FILE_MAX + 1)})
    content = bytearray(path.read_bytes())
    size = (module.FILE_MAX + 1).to_bytes(4, "little")
    while (at := content.find(size)) >= 0:
        content[at : at + 4] = (10).to_bytes(4, "little")
    path.write_bytes(content)
    # zipfile stops at the size that is claimed; the check sum is wrong then.
    assert "damaged" in refusal(path)


def test_damaged_archives_are_refused(tmp_path):
    path = archive(tmp_path / "a.zip", {"a.ovpn": b"client" * 1000})
    content = bytearray(path.read_bytes())
    content[45] ^= 0xFF
    path.write_bytes(content)
    assert "damaged" in refusal(path)


def test_a_name_in_no_encoding_is_damage(tmp_path):
    """zipfile raises what it likes for an archive that is bent."""
    path = archive(tmp_path / "a.zip", {"a.ovpn": b"client"})
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\1\2")
    content[entry + 9] |= 8  # the name is said to be UTF-8
    content[entry + 46] = 0xFF
    path.write_bytes(content)
    assert "damaged" in refusal(path)


def test_encrypted_archives_are_refused(tmp_path):
    path = archive(tmp_path / "a.zip", {"a.ovpn": b"x"})
    content = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.find(magic) + offset] |= 1
    path.write_bytes(content)
    assert "encrypted" in refusal(path)


def test_a_profile_reads_nothing_outside_its_folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "out").write_text("secret")
    (folder / "a.ovpn").write_text("client")
    (folder / "link").symlink_to(tmp_path / "out")
    (folder / "real").write_text("x")
    (one,) = sources(folder / "a.ovpn")
    for name in ("../out", "/etc/passwd", str(tmp_path / "out"), "link", ".."):
        with pytest.raises(ValueError, match="folder"):
            one.read_file(name)
    assert one.read_file("/somewhere/real") == b"x"
    assert one.read_file("C:\\vpn\\real") == b"x"


def test_a_text_is_no_archive():
    assert not zipfile.is_zipfile(io.BytesIO(b"client\nremote h"))
