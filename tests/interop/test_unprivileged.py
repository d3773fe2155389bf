"""`--unlocked` as an ordinary user: a device that exists, commands for root."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from lab import addresses as at
from lab.appliance import COMMAND, Appliance
from lab.traffic import fetch

USER = 7654
AS_USER = (
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"),
    *("--bounding-set=-all", "--inh-caps=-all", "--pdeathsig=KILL", "--"),
)
DEVICE = "tun5"
# where only root may open the node, as in many containers
OPEN_NODE = """
mknod /run/tun c 10 200 && chmod 666 /run/tun
mount --bind /run/tun /dev/net/tun
"""


class User(Appliance):
    """The client as an ordinary user of the lab's VPN qube."""

    def __init__(self, lab):
        super().__init__(lab, DEVICE)
        self.home = Path(tempfile.mkdtemp(prefix="qv-user-"))
        os.chown(self.home, USER, USER)
        lab.vpn.run(["sh", "-ec", OPEN_NODE])

    def argv(self, profile, *words):
        path = self.home / "profile.ovpn"
        path.write_text(profile)
        os.chown(path, USER, USER)
        path.chmod(0o600)
        control = f"{self.home}/control"
        options = ["--unlocked", "--control", control, *words]
        return [*AS_USER, *COMMAND, "client", str(path), *options]

    def connect(self, profile, *words):
        with self.log_file.open("wb") as log:
            self._client = self.lab.vpn.popen(
                self.argv(profile, *words),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self

    def blocks(self):
        """What was printed for root, one list of lines a block."""
        found = []
        for line in self.log().splitlines():
            if line.startswith("# nothing is configured"):
                found.append([])
            if found and line.startswith(("#", "ip ")):
                found[-1].append(line)
        return found

    def run_block(self, number):
        """Do what root is asked to, as it is printed."""
        ready = self.blocks()[number]
        assert ready[-1].startswith("# take it back afterwards: ")
        self.lab.vpn.run(["sh", "-e"], text="\n".join(ready) + "\n")
        return ready

    def capabilities(self):
        """The sets of all three processes, by their names in status."""
        pids = [self.client.pid, self.pid("keeper"), self.pid("engine")]
        found = set()
        for pid in pids:
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                name, value = line.split(":", 1)
                if name in {"CapPrm", "CapEff", "CapInh", "CapAmb"}:
                    found.add(int(value, 16))
                if name == "Uid":
                    assert value.split() == [str(USER)] * 4
        return found


@pytest.fixture
def user(request):
    name = "lab6" if "lab6" in request.fixturenames else "lab"
    with User(request.getfixturevalue(name)) as made:
        yield made
    shutil.rmtree(made.home)


def make_device(lab, owner=USER, mode="tun"):
    lab.vpn.ip(f"tuntap add dev {DEVICE} mode {mode} user {owner}")


def named(profile):
    return profile.replace("dev tun\n", f"dev {DEVICE}\n")


def routes(lab):
    return lab.vpn.run(["ip", "-4", "route"]).stdout


def test_root_runs_what_is_printed_and_traffic_flows(lab, start_server, user):
    server = start_server()
    make_device(lab)
    before = routes(lab)
    user.connect(named(server.client_profile())).wait_connected()
    assert user.capabilities() == {0}
    log = user.log()
    assert "nothing is protected" in log
    assert "keeper and engine share this user: not root" in log
    # as it was: the traffic of the machine goes where it went
    assert routes(lab) == before
    assert fetch(lab.vpn).seen == at.NET_OUTSIDE4
    first = user.run_block(0)
    assert f"ip route replace 0.0.0.0/1 dev {DEVICE}" in first
    assert any(str(at.TUNNEL_DNS) in line for line in first)
    assert fetch(lab.vpn).seen == server.settings.network4 + 2
    # the way to the server is lost; its settings are the same: no commands
    host = f"ip route replace {at.SERVER4}/32 "
    lab.vpn.ip(f"route del {at.SERVER4}/32")
    server.stop()
    server.start()
    user.wait_log(host, count=2)
    assert first[1].startswith(host)
    lab.vpn.run(["sh", "-e"], text=first[1] + "\n")
    user.wait_connected(count=2)
    assert len(user.blocks()) == 1
    assert fetch(lab.vpn).seen == server.settings.network4 + 2
    # one more client, for the server: another address
    user.signal("engine")
    user.wait_connected(count=3)
    second = user.run_block(1)
    assert fetch(lab.vpn).seen == server.settings.network4 + 3
    shown = lab.vpn.run(["ip", "-4", "addr", "show", DEVICE]).stdout
    assert shown.count("inet ") == 1
    assert user.stop() == 0
    # what was left leads the link into itself
    lab.vpn.ip(f"route del {at.SERVER4}/32")
    user.connect(named(server.client_profile()))
    user.wait_log(f"{at.SERVER4} is routed into {DEVICE} itself")
    assert user.stop() == 0
    lab.vpn.run(["sh", "-e"], text=first[1] + "\n")
    lab.vpn.run(["sh", "-e"], text=second[-1].partition(": ")[2])
    assert routes(lab) == before
    assert fetch(lab.vpn).seen == at.NET_OUTSIDE4


def test_the_server_and_the_tunnel_have_ipv6(lab6, start_server, user):
    server = start_server(address=at.SERVER6, ipv6=True)
    make_device(lab6)
    user.connect(server.client_profile(), "--dev", DEVICE).wait_connected()
    user.run_block(0)
    assert fetch(lab6.vpn).seen == server.settings.network4 + 2
    shown = lab6.vpn.run(["ip", "-6", "route"]).stdout
    assert f"8000::/1 dev {DEVICE}" in shown


@pytest.mark.parametrize(
    ("owner", "mode", "words", "status", "said"),
    [
        (None, "tun", (), 71, f"ip tuntap add dev {DEVICE} mode tun user"),
        (USER + 1, "tun", (), 71, "belongs to another user"),
        (USER, "tap", (), 71, "is no tun device"),
        (USER, "tun", ("--dev", "tun"), 64, "name it"),
        (USER, "tun", ("--plane", "kernel"), 64, "needs CAP_NET_ADMIN"),
        (USER, "tun", ("--control", "/run/x/y"), 71, "--control names another"),
    ],
)
def test_what_cannot_be_is_said_at_once(
    lab, start_server, user, owner, mode, words, status, said
):
    if owner is not None:
        make_device(lab, owner, mode)
    profile = named(start_server().client_profile())
    done = lab.vpn.run(user.argv(profile, *words), check=False)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
