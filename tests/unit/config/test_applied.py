"""What the table calls applied is asked for, and what is kept is read."""

import ast
import dataclasses
import functools
import re
from pathlib import Path

import pytest

import qubes_vpn
from qubes_vpn.config import (
    client,
    client_config,
    model,
    server,
    server_model,
)
from qubes_vpn.config.directives import DIRECTIVES, Scope, Support
from qubes_vpn.config.document import Document

SOURCE = Path(qubes_vpn.__file__).parent
# Applied by the document itself, while it is read.
READING = {"config", "cd", "connection", "ignore-unknown-option", "setenv"}
# So it is anyway, with the directive and without.
ALWAYS = {
    "float",
    "nobind",
    "tls-server",
    "allow-deprecated-insecure-static-crypto",
}
# Modules of config that make a tunnel's settings out of a profile.
SETTLING = {"pulled.py", "push.py", "routing.py"}
# Kept to be written again: a device's kind was looked at and its name is
# ours; of link-mtu the profile's notes say that it does not count.
WRITTEN = {model.ClientProfile: {"dev", "link_mtu"}}
# Asked for only beside these.
CLIENT = (
    "client\nremote 192.0.2.1\nproto tcp\ntls-auth ta.key\nhttp-proxy h 1\n",
    "client\nremote 192.0.2.1\nsocks-proxy h 1\n",
)
SERVER = ("auth-gen-token\ntls-auth ta.key\n",)


class Asked(Document):
    """A document that knows what it was asked for."""

    def __init__(self, read_file, scope):
        super().__init__("x", read_file, scope)
        self.names = set()

    def all(self, name):
        self.names.add(name)
        return super().all(name)


@pytest.mark.parametrize(
    ("scope", "texts", "build"),
    [
        (Scope.CLIENT, CLIENT, client.build),
        (Scope.SERVER, SERVER, server.build),
        (Scope.CCD, ("",), client_config.build_client_config),
    ],
    ids=["client", "server", "ccd"],
)
def test_every_directive_that_is_applied_is_asked_for(
    read_file, scope, texts, build
):
    asked = set()
    for text in texts:
        doc = Asked(read_file, scope)
        doc.load(text, "x")
        build(doc)
        asked |= doc.names
    applied = {
        row.name
        for row in DIRECTIVES.values()
        if scope in row.scope
        and not row.alias
        and row.support_for(scope) is Support.APPLY
    }
    assert applied - asked - READING - ALWAYS == set()


@pytest.mark.parametrize(
    "values",
    [
        model.ClientProfile,
        model.Remote,
        model.Proxy,
        model.Identity,
        model.ServerCheck,
        model.TlsOptions,
        server_model.ServerProfile,
        server_model.ClientConfig,
        server_model.TokenOptions,
        server_model.Listen,
    ],
)
def test_every_value_of_a_profile_is_read_by_somebody(values):
    read = set()
    for path in SOURCE.rglob("*.py"):
        elsewhere = path.parent.name != "config" and uses(path, values)
        if elsewhere or path.name in SETTLING:
            read |= attributes(path)
    fields = {field.name for field in dataclasses.fields(values)}
    assert fields - read == WRITTEN.get(values, set())


def uses(path, values):
    """Whether a module has profiles of this kind, and not only the other."""
    if not issubclass(values, model.Profile):
        return True
    words = rf"\b({values.__name__}|{model.Profile.__name__})\b"
    return re.search(words, path.read_text()) is not None


@functools.cache
def attributes(path):
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
