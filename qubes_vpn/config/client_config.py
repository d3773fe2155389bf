"""What one client gets: options that are pushed, and a file of its own."""

from ipaddress import IPv4Address, IPv4Network
from typing import Final

from qubes_vpn.config.directives import DIRECTIVES, Support
from qubes_vpn.config.document import Document
from qubes_vpn.config.server_model import NAME_MAX, ClientConfig
from qubes_vpn.config.tunnel import Network

PUSH_MAX: Final = 1024  # characters of one option


def pushed(doc: Document) -> tuple[str, ...]:
    """Read what is pushed, but for what our packets cannot be."""
    found = []
    for item in doc.all("push"):
        option = item.values[0]
        if not option.isprintable() or "," in option or len(option) > PUSH_MAX:
            message = "push needs one printable option, without commas"
            doc.report(item.statement, message, 1)
        name, *words = option.split() or [""]
        row = DIRECTIVES.get(name)
        # what we do not speak; stub-v2 is no framing at all
        if row and row.server is Support.REFUSE and words != ["stub-v2"]:
            doc.report(item.statement, f"push: {name}: {row.why}", 1)
        found.append(option)
    return tuple(found)


def build_client_config(doc: Document) -> ClientConfig:
    """Turn the document of one client-config-dir file into its value."""
    four = doc.last("ifconfig-push")
    six = doc.last("ifconfig-ipv6-push")
    iroutes: list[Network] = [
        IPv4Network((item.values[0], item.value(1, 32)), strict=False)
        for item in doc.all("iroute")
    ]
    iroutes += [item.values[0] for item in doc.all("iroute-ipv6")]
    ifconfig4 = None
    if four:
        try:
            ifconfig4 = (IPv4Address(four.values[0]), four.values[1])
            IPv4Address(four.values[1])
        except ValueError:
            message = "ifconfig-push needs two IPv4 addresses"
            doc.report(four.statement, message, 1)
    return ClientConfig(
        disable=doc.has("disable"),
        ifconfig4=ifconfig4,
        ifconfig6=(
            (six.values[0].ip, six.values[0].network.prefixlen) if six else None
        ),
        iroutes=tuple(iroutes),
        push=pushed(doc),
        push_remove=tuple(item.values[0] for item in doc.all("push-remove")),
        push_reset=doc.has("push-reset"),
        username=_override(doc),
    )


def _override(doc: Document) -> str:
    item = doc.last("override-username")
    name: str = item.values[0] if item else ""
    if item and not (name.isprintable() and len(name) <= NAME_MAX):
        message = f"override-username needs up to {NAME_MAX} printable letters"
        doc.report(item.statement, message, 1)
    return name
