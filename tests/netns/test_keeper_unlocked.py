"""`--unlocked`: an ordinary client, which closes nothing."""

from lab import addresses as at
from lab.traffic import fetch
from qubes_vpn.keeper import messages
from tests.netns.toy import TUNNEL_ADDRESS, Rig


def test_the_machine_itself_takes_the_tunnel_while_it_is_up(lab):
    before = lab.vpn.run(["ip", "route"]).stdout
    ruleset = lab.vpn.run(["nft", "-s", "list", "ruleset"]).stdout
    assert fetch(lab.vpn).seen == at.NET_OUTSIDE4
    with Rig(lab, "--unlocked") as rig:
        rig.connect()
        assert rig.status.lock == ()
        assert fetch(lab.vpn).seen == TUNNEL_ADDRESS
        assert lab.vpn.run(["nft", "-s", "list", "ruleset"]).stdout == ruleset
        rig.engine.request(messages.Close())
        rig.kill_engine()
        assert rig.wait_notice(messages.EngineLost)
        assert fetch(lab.vpn).seen == at.NET_OUTSIDE4
        rig.connect()
        assert fetch(lab.vpn).seen == TUNNEL_ADDRESS
    assert lab.vpn.run(["ip", "route"]).stdout == before
    assert fetch(lab.vpn).seen == at.NET_OUTSIDE4
