"""The Debian packages: built with debhelper, the same files as the RPMs."""

import shutil
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

FORBIDDEN = (
    "systemctl stop",
    "systemctl restart",
    "deb-systemd-invoke",
    "nft ",
)


def run(*command, **options):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the packages."""
    if shutil.which("dh") is None:
        pytest.skip("debhelper is not installed: tools/setup.sh installs it")
    folder = tmp_path_factory.mktemp("deb")
    tree = folder / "tree"
    tree.mkdir()
    listed = run("git", "ls-files", "-z", cwd=TOP).split("\0")
    for name in filter(None, listed):
        if (TOP / name).is_file() and not name.startswith("tests/"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TOP / name, tree / name)
    run("dpkg-buildpackage", "-us", "-uc", "-b", "-d", cwd=tree)
    return folder


def unpacked(built, name, to):
    (package,) = built.glob(f"{name}_*_all.deb")
    run("dpkg-deb", "-R", package, to)
    return to


def files_below(root):
    return {
        f"/{path.relative_to(root)}"
        for path in root.rglob("*")
        if path.is_file() or path.is_symlink()
    }


def test_it_has_what_the_rpm_has(built, qube_root, tmp_path):
    ours = files_below(unpacked(built, "qubes-vpn", tmp_path / "deb"))
    theirs = {
        name
        for name in run(
            "rpm", "--root", qube_root.path, "-ql", "qubes-vpn"
        ).split()
        if not (qube_root.path / name[1:]).is_dir()
        or (qube_root.path / name[1:]).is_symlink()
    }
    placed = {
        name.replace(
            str(qube_root.site.relative_to(qube_root.path)),
            "usr/lib/python3/dist-packages",
        )
        for name in theirs
        if "/share/doc/" not in name and "/licenses/" not in name
    }
    missing = {
        name for name in placed if name not in ours and f"{name}.gz" not in ours
    }
    assert not missing


def test_the_folder_for_keys_is_private(built, tmp_path):
    root = unpacked(built, "qubes-vpn", tmp_path / "deb")
    assert (root / "etc/qubes-vpn").stat().st_mode & 0o777 == 0o700


def test_no_scriptlet_stops_a_unit(built, tmp_path):
    for name in ("qubes-vpn", "qubes-vpn-common"):
        control = unpacked(built, name, tmp_path / name) / "DEBIAN"
        for script in ("preinst", "postinst", "prerm", "postrm"):
            path = control / script
            text = path.read_text() if path.exists() else ""
            for words in FORBIDDEN:
                assert words not in text, (name, script)


def test_it_conflicts_with_what_it_replaces():
    control = (TOP / "debian/control").read_text()
    assert "Conflicts: qubes-tunnel, qubes-vpn-support" in control
