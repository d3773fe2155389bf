"""The kernel data plane, in a machine whose kernel has the ovpn driver.

One boot runs every check; each is a test here. Without the packages (a
kernel, OpenVPN 2.7) the tests fail: they are what shows that it works.
"""

import os
import re

import pytest

from lab import openvpn27
from tests.kernel import guest, machine

# A boot and all checks; some minutes on two idle cores.
SECONDS = 1500

pytestmark = pytest.mark.timeout(SECONDS + 600)


@pytest.fixture(scope="module")
def console(tmp_path_factory):
    """All that the machine printed."""
    openvpn27.command()
    path = tmp_path_factory.mktemp("machine") / "console"
    return machine.run(SECONDS, path, ONLY=os.environ.get("ONLY", ""))


def part(console, name):
    """What it printed in one check."""
    start = console.find(f"CHECK {name} begins")
    if start < 0:
        return f"it never began; the last lines:\n{console[-4000:]}"
    end = re.search(rf"CHECK {re.escape(name)} (ok|FAILED).*", console[start:])
    return console[start : start + end.end()] if end else console[start:]


@pytest.mark.parametrize("name", guest.names())
def test_in_the_machine(console, name):
    said = part(console, name)
    for figure in re.findall(r"FIGURE (.*)", said):
        print(figure)  # noqa: T201 shown with -rP
    assert f"CHECK {name} ok" in said, said[-12_000:]
