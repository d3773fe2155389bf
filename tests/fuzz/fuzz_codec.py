"""Any record is a message of the closed set, bounded, or MessageError.

Of the engine to the keeper, of the agent to the keeper, and of engine and
agent to each other: what a compromised engine can say.
"""

import typing
from ipaddress import ip_address, ip_interface

from qubes_vpn.keeper import messages
from qubes_vpn.keeper.bounds import (
    RequestRefusedError,
    check_configure,
    check_endpoints,
    check_forwarding,
    check_link,
)
from qubes_vpn.keeper.codec import Codec, MessageError
from qubes_vpn.runtime.messages import CODEC, Report, Start

KEEPER = Codec(
    (
        *typing.get_args(messages.EngineRequest),
        *typing.get_args(messages.AgentRequest),
    )
)
CONFIGURE = messages.Configure(
    (ip_interface("10.8.0.2/24"),),
    1400,
    (messages.Route("10.0.0.0/8"),),
    (ip_address("10.8.0.1"),),
    ("vpn.example",),
)
SEEDS = (
    KEEPER.encode(1, CONFIGURE),
    KEEPER.encode(2, messages.OpenLink(0)),
    KEEPER.encode(3, messages.OpenForwarding(1360, 1340)),
    KEEPER.encode(4, messages.Heartbeat()),
    CODEC.encode(0, Report("connected", addresses=("10.8.0.2",), mtu=1400)),
    CODEC.encode(5, Start(())),
    b'{"seq":1,"type":"Prompt","kind":"a","prompt":"b","echo":false,"timeout":'
    + b"9" * 400
    + b"}",
    b'{"seq":1,"type":"Prompt","kind":"a","prompt":"b","echo":false,"timeout":NaN}',
    b"[" * 4000,
)
CHECKS = {
    messages.Configure: lambda one: check_configure(one, "t"),
    messages.OpenForwarding: check_forwarding,
    messages.OpenLink: lambda one: check_link(one, 1),
    messages.SetEndpoints: lambda one: check_endpoints(one.endpoints),
}


def one_input(data: bytes) -> None:
    """Decode as each side does; check what decodes; encode it again."""
    for codec in (KEEPER, CODEC):
        try:
            seq, message = codec.decode(data)
        except MessageError as error:
            assert len(str(error)) < 100
            continue
        assert -1 <= seq < 2**63
        try:
            CHECKS.get(type(message), lambda _: None)(message)
        except RequestRefusedError as error:
            assert error.reason.isascii()
        try:
            encoded = codec.encode(seq, message)
        except MessageError as error:
            assert str(error) == "record too long"
            continue
        again = codec.decode(encoded)
        assert again == (seq, message)
