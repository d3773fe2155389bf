"""A server that is revoked while the tunnel is up, or on its way there."""

from dataclasses import replace

import pytest
from cryptography import x509

from qubes_vpn.config.model import ServerCheck
from qubes_vpn.engine import effects as do
from qubes_vpn.engine.events import Now
from qubes_vpn.errors import ConfigError
from tests.unit.engine.pair import connected, pair, pki


def check(*revoked, crl=b""):
    ca = pki()[0].certificate
    return ServerCheck(ca=ca, revoked=frozenset(revoked), crl=crl)


def serial(issued):
    parsed = x509.load_pem_x509_certificate(issued.certificate)
    return str(parsed.serial_number)


def ends(world):
    """Go on until the client's session is over; give how it ended."""
    done = []

    def over(one):
        done.extend(one.of(do.Ended))
        return done

    world.until(over, limit=5)
    assert world.law.forwarding is False
    return done[0]


def trust(world, new):
    world.client.trust(new, world.now)
    world.drain()


def test_a_server_that_is_revoked_gets_no_new_key():
    world = pair().until(connected)
    trust(world, check(serial(pki()[1])))
    world._restart = lambda: None
    ended = ends(world)
    assert (ended.reason, ended.code) == ("certificate-revoked", "QV-542")
    assert ended.retry
    assert "crl-verify" in ended.detail


def test_another_list_gets_a_new_key_at_once():
    world = pair().until(connected)
    trust(world, check("1"))
    world.until(lambda one: one.client.status.key_id == 1, limit=5)
    assert not world.of(do.Ended)


def test_what_is_on_its_way_begins_anew():
    world = pair()
    trust(world, check("1"))
    assert world.effects[-1].reason == "crl-changed"
    assert world.effects[-1].code == "QV-549"
    world.until(connected)
    world.client.trust(check("1"), world.now)
    # the first of the two negotiations is not over
    trust(world, check("2"))
    assert world.effects[-1].reason == "crl-changed"


def test_a_list_that_is_none_is_refused():
    world = pair().until(connected)
    with pytest.raises(ConfigError, match="crl-verify: it holds no PEM"):
        world.client.trust(check(crl=b"junk"), world.now)


def test_a_session_that_is_over_is_not_disturbed():
    world = pair()
    world.client.stop(Now(1.0, 1.0))
    world.drain()
    before = list(world.effects)
    trust(world, check("1"))
    assert world.effects == before


def test_an_unopened_key_waits_for_its_passphrase():
    world = pair()
    profile = world.profile
    locked = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
    world.profile = replace(
        profile, identity=replace(profile.identity, key=locked)
    )
    world.connect()
    trust(world, check(crl=b"junk"))
    assert world.effects[-1].kind == "passphrase"
