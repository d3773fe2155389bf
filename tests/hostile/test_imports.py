"""Whose code runs in which process: third-party packages, all of them."""

import ast
import subprocess
import sys

import pytest

from tests.hostile.rows import ROOT

TLS = {"OpenSSL", "cryptography"}
# Module that a process begins with, and what it has loaded when it is ready.
PROCESSES = {
    "qubes_vpn.keeper.__main__": {"pyroute2"},
    "qubes_vpn.cli.main": set(),
    "qubes_vpn.cli.rpc": set(),
    "qubes_vpn.runtime.engine": TLS,
    "qubes_vpn.runtime.foreground": TLS,
    "qubes_vpn.runtime.qube": TLS,
    "qubes_vpn.runtime.reverse": {"dns"},
    "qubes_vpn.runtime.server": TLS | {"pyroute2"},
    "qubes_vpn.cli.parse_apart": TLS,
}
# What else a package imports, at once or when it is needed.
PACKAGES = {
    "cli": set(),
    "config": set(),
    "crypto": TLS,
    "dataplane": {"numpy"},
    "engine": {"cryptography"},
    "errors.py": set(),
    "keeper": set(),
    "lockdown": set(),
    "policy": set(),
    "qubes": {"qrexec", "qubesadmin", "qubesdb"},
    "runtime": {"dns"},
    "system": {"nftables", "pyroute2"},
    "wire": set(),
    "__init__.py": set(),
    "__main__.py": set(),
}
# Of those packages' own: a loader, a C helper, backports, packaging.
OTHERS = {"_cffi_backend", "typing_extensions", "_distutils_hack", "_openssl"}
ASK = """
import importlib, sys
importlib.import_module(sys.argv[1])
for name, module in list(sys.modules.items()):
    file = getattr(module, "__file__", None) or ""
    if "site-packages" in file or "dist-packages" in file:
        print(name.partition(".")[0])
"""


@pytest.mark.parametrize("module", PROCESSES)
def test_a_process_starts_with_this_and_no_more(module):
    done = subprocess.run(
        [sys.executable, "-I", "-c", ASK, module],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {
        name
        for name in done.stdout.split()
        if not name.startswith("__editable__")
    }
    assert loaded - OTHERS - {"qubes_vpn"} <= PROCESSES[module]


WHOLE = """
import sys
from qubes_vpn.system import conntrack, generation, ovpn, rtnl
assert not {"pyroute2", "pyroute2.ndb", "sqlite3"} & set(sys.modules)
from pyroute2 import IPRoute
assert {"pyroute2", "pyroute2.ndb"} <= set(sys.modules)
"""


def test_of_pyroute2_only_parts_are_loaded():
    """Until somebody asks for all of it."""
    subprocess.run([sys.executable, "-I", "-c", WHOLE], check=True)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_a_package_imports_what_the_table_says():
    found = {}
    for top in (ROOT / "qubes_vpn").iterdir():
        files = [top] if top.suffix == ".py" else list(top.rglob("*.py"))
        names = {name for path in files for name in imports(path)}
        if files:
            third = names - sys.stdlib_module_names - {"qubes_vpn"}
            found[top.name] = third
    assert set(found) <= set(PACKAGES)
    more = {
        name: third - PACKAGES[name]
        for name, third in found.items()
        if third - PACKAGES[name]
    }
    assert not more


def test_the_table_names_nothing_that_nobody_imports():
    for name, allowed in PACKAGES.items():
        top = ROOT / "qubes_vpn" / name
        files = [top] if top.suffix == ".py" else list(top.rglob("*.py"))
        names = {each for path in files for each in imports(path)}
        assert allowed <= names, (name, allowed - names)
