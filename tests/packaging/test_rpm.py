"""The packages: what is in them, and that it runs from where they put it."""

import ast
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
UNITS = "/usr/lib/systemd/system"
QUBE_FILES = {
    "/etc/qubes-vpn": 0o40700,
    "/etc/qubes/post-install.d/20-qubes-vpn.sh": 0o100755,
    "/etc/qubes/suspend-post.d/90-qubes-vpn.sh": 0o100755,
    "/usr/bin/qubes-vpn": 0o100755,
    "/usr/lib/qubes-bind-dirs.d/50-qubes-vpn.conf": 0o100644,
    "/usr/lib/qubes-vpn/lockdown.sh": 0o100755,
    "/usr/lib/qubes-vpn/inet.nft": 0o100644,
    "/usr/lib/qubes-vpn/netdev.nft": 0o100644,
    "/usr/lib/qubes-vpn/rules.batch": 0o100644,
    "/usr/lib/qubes-vpn/sysctls": 0o100644,
    "/usr/lib/systemd/system-preset/74-qubes-vpn.preset": 0o100644,
    "/usr/lib/sysusers.d/qubes-vpn.conf": 0o100644,
    "/usr/lib/tmpfiles.d/qubes-vpn.conf": 0o100644,
    f"{UNITS}/qubes-network.service.d/50-qubes-vpn.conf": 0o100644,
    f"{UNITS}/qubes-network-uplink@.service.d/50-qubes-vpn.conf": 0o100644,
    **{
        f"{UNITS}/qubes-vpn-{name}.service": 0o100644
        for name in (
            "lockdown",
            "lockdown-uplink@",
            "keeper",
            "engine",
            "agent",
            "reverse",
        )
    },
    **{
        f"/usr/share/applications/qubes-vpn-{name}.desktop": 0o100644
        for name in ("status", "switch", "import")
    },
}
SERVICES = (
    "Status",
    "Endpoints",
    "Connect",
    "Disconnect",
    "Switch",
    "Import",
    "Answer",
)


def query(package, form):
    done = subprocess.run(
        ["rpm", "-qp", "--qf", form, package],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def package(packages, name):
    (found,) = packages.glob(f"{name}-[0-9]*.noarch.rpm")
    return found


def test_what_a_template_gets(packages):
    listed = query(
        package(packages, "qubes-vpn"),
        "[%{FILENAMES} %{FILEMODES} %{FILEUSERNAME}:%{FILEGROUPNAME}\n]",
    )
    files = {
        line.split(" ")[0]: line.split(" ")[1:] for line in listed.splitlines()
    }
    for name, mode in QUBE_FILES.items():
        assert int(files[name][0]) == mode, name
    assert {owner for _, owner in files.values()} == {"root:root"}
    for service in SERVICES:
        assert int(files[f"/etc/qubes-rpc/qubesvpn.{service}"][0]) == 0o100755
        assert f"/etc/qubes/rpc-config/qubesvpn.{service}" in files
    # nothing that a user of the qube could write, nothing set-uid
    for name, (mode, _) in files.items():
        if not stat.S_ISLNK(int(mode)):
            assert not int(mode) & 0o6022, name


def test_dom0_gets_no_parser(dom0_root):
    files = sorted(
        str(path.relative_to(dom0_root.site))
        for path in dom0_root.site.rglob("*.py")
    )
    assert {name for name in files if "qubes/admin/" not in name} == {
        "qubes_vpn/__init__.py",
        "qubes_vpn/errors.py",
        "qubes_vpn/qubes/__init__.py",
        "qubes_vpn/cli/__init__.py",
        "qubes_vpn/cli/admin.py",
    }


def test_every_module_is_in_exactly_one_package(packages):
    found = [
        match[1]
        for name in ("qubes-vpn-common", "qubes-vpn", "qubes-vpn-dom0")
        for match in re.finditer(
            r"site-packages/(qubes_vpn/.*\.py)\n",
            query(package(packages, name), "[%{FILENAMES}\n]"),
        )
    ]
    tracked = subprocess.run(
        ["git", "ls-files", "qubes_vpn/*.py"],
        cwd=TOP,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert len(found) == len(set(found))
    assert set(tracked) <= set(found)


def run_installed(root, program, *args):
    """Run an installed program with the installed modules and no others."""
    code = (
        f"import sys; sys.path.insert(0, {str(root.site)!r});"
        f"sys.argv[0] = {program!r}; import runpy;"
        f"runpy.run_path({str(root.path)!r} + '/usr/bin/{program}',"
        " run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-I", "-c", code, *args],
        capture_output=True,
        text=True,
        cwd=root.path,
    )


@pytest.mark.parametrize("program", ["qubes-vpn", "qvm-vpn"])
def test_runs_from_where_it_is_installed(
    program, qube_root, dom0_root, packages
):
    root = qube_root if program == "qubes-vpn" else dom0_root
    done = run_installed(root, program, "--version")
    version = query(package(packages, "qubes-vpn"), "%{VERSION}")
    assert (done.stdout, done.stderr) == (f"{program} {version}\n", "")


def test_the_package_finds_the_lock_by_its_links(qube_root):
    folder = qube_root.site / "qubes_vpn/lockdown"
    for name in ("lockdown.sh", "inet.nft", "netdev.nft", "rules.batch"):
        assert (folder / name).is_symlink()
        source = TOP / "qubes_vpn/lockdown" / name
        assert (folder / name).read_bytes() == source.read_bytes()


def test_it_conflicts_with_what_it_replaces(packages):
    conflicts = query(package(packages, "qubes-vpn"), "[%{CONFLICTS}\n]")
    assert conflicts.split() == [
        "3isec-qubes-sys-vpn",
        "qubes-tunnel",
        "qubes-vpn-support",
    ]


def test_presets_name_every_unit_that_can_be_enabled(qube_root):
    units = qube_root.path / UNITS[1:]
    can = {
        p.name
        for p in units.glob("qubes-vpn-*.*")
        if "[Install]" in p.read_text()
    }
    preset = (
        qube_root.path / "usr/lib/systemd/system-preset/74-qubes-vpn.preset"
    )
    named = {
        line.split()[1]
        for line in preset.read_text().splitlines()
        if line.startswith("enable ")
    }
    assert named == can


def test_desktop_entries_and_services_name_commands_that_are_there(qube_root):
    from qubes_vpn.cli.main import COMMANDS

    entries = (qube_root.path / "usr/share/applications").glob("*.desktop")
    services = (qube_root.path / "etc/qubes-rpc").glob("qubesvpn.*")
    for path in (*entries, *services):
        (command,) = re.findall(
            r"/usr/bin/qubes-vpn ([a-z]+)", path.read_text()
        )
        assert command in COMMANDS, path.name


def test_after_suspend_the_clock_comes_first(qube_root):
    path = qube_root.path / "etc/qubes/suspend-post.d/90-qubes-vpn.sh"
    text = path.read_text()
    assert 0 < text.index("qvm-sync-clock") < text.index("qubes-vpn connect")
    assert "/run/qubes-service/qubes-vpn ] || exit 0" in text


def test_what_is_a_script_is_one(qube_root):
    folder = qube_root.path / "etc"
    scripts = [
        *(folder / "qubes-rpc").iterdir(),
        *folder.glob("qubes/*.d/*.sh"),
        *(qube_root.path / "usr/lib/qubes-vpn").glob("*.sh"),
        *(qube_root.path / "usr/lib/qubes-bind-dirs.d").iterdir(),
    ]
    assert len(scripts) > 9
    for path in scripts:
        shell = "bash" if path.suffix == ".conf" else "sh"
        subprocess.run([shell, "-n", path], check=True)


def test_no_installed_module_imports_what_the_spec_does_not_require(packages):
    """Each third-party import is a Requires, a Recommends, or Qubes' own."""
    known = {
        "cryptography": "python3-cryptography",
        "OpenSSL": "python3-pyOpenSSL",
        "pyroute2": "python3-pyroute2",
        "nftables": "python3-nftables",
        "qubesdb": "python3-qubesdb",
        "numpy": "python3-numpy",
        "dns": "python3-dns",
        "pam": "python3-pam",
    }
    form = "[%{REQUIRES}\n][%{RECOMMENDS}\n]"
    named = set(query(package(packages, "qubes-vpn"), form).split())
    imported = set()
    for path in (TOP / "qubes_vpn").rglob("*.py"):
        if "admin" in str(path):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {a.name.split(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((node.module or "").split(".")[0])
    for module in imported - set(sys.stdlib_module_names) - {"qubes_vpn"}:
        assert known[module] in named, module


# --- scriptlets -------------------------------------------------------------

SCRIPTLETS = ("PREIN", "POSTIN", "PREUN", "POSTUN", "PRETRANS", "POSTTRANS")
BUSYBOX = Path("/bin/busybox")


def scriptlets(packages, name):
    form = "".join(f"@{tag}\n%{{{tag}}}\n" for tag in SCRIPTLETS)
    text = query(package(packages, name), form)
    return {
        part.split("\n")[0]: part.partition("\n")[2].strip()
        for part in text.split("@")[1:]
    }


@pytest.mark.parametrize(
    "name", ["qubes-vpn", "qubes-vpn-common", "qubes-vpn-dom0"]
)
def test_no_scriptlet_can_open_the_network(packages, name):
    for text in scriptlets(packages, name).values():
        words = set(re.findall(r"[\w.-]+", text))
        assert not words & {
            *("stop", "restart", "try-restart", "reload", "kill", "--now"),
            *(
                "nft",
                "ip",
                "iptables",
                "sysctl",
                "lockdown.sh",
                "rm",
                "qubesctl",
            ),
        }
        assert "systemctl" not in words or "--no-reload" in words


def test_scriptlets_run_in_a_root_and_stop_nothing(packages, tmp_path):
    """Installed, upgraded and removed for real, with busybox and recorders."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it changes the root")
    root = tmp_path / "root"
    for folder in ("bin", "usr/bin", "var/tmp"):
        (root / folder).mkdir(parents=True)
    (root / "bin/sh").write_bytes(BUSYBOX.read_bytes())
    (root / "bin/sh").chmod(0o755)
    log = root / "log"
    for name in ("systemctl", "systemd-sysusers"):
        tool = root / "usr/bin" / name
        tool.write_text(f'#!/bin/sh\necho {name} "$@" >>/log\n')
        tool.chmod(0o755)
    rpm = ["rpm", "--root", str(root)]
    one, common = (
        package(packages, n) for n in ("qubes-vpn", "qubes-vpn-common")
    )
    steps = {
        "install": ["-i", "--nodeps", str(common), str(one)],
        "upgrade": ["-U", "--nodeps", "--replacepkgs", str(one)],
        "remove": ["-e", "--nodeps", "qubes-vpn"],
    }
    said = {}
    for step, args in steps.items():
        log.write_text("")
        subprocess.run([*rpm, *args], check=True, capture_output=True)
        said[step] = log.read_text().splitlines()
    units = " ".join(
        f"qubes-vpn-{n}.service"
        for n in ("lockdown", "keeper", "engine", "agent")
    )
    units += " qubes-vpn-reverse.socket"
    sysusers = "systemd-sysusers /usr/lib/sysusers.d/qubes-vpn.conf"
    assert said["install"] == [
        sysusers,
        f"systemctl --no-reload preset {units}",
    ]
    assert said["upgrade"] == [sysusers]
    assert said["remove"] == [f"systemctl --no-reload disable {units}"]


def test_rpmlint_finds_no_error(packages):
    files = sorted(map(str, packages.glob("*.rpm")))
    done = subprocess.run(
        ["rpmlint", "-c", str(TOP / "rpm/rpmlint.toml"), *files],
        capture_output=True,
        text=True,
    )
    assert "0 errors, 0 warnings" in done.stdout, done.stdout + done.stderr
