"""Messages as JSON records: typed and bounded, or refused whole.

A record is one JSON object, `{"seq": n, "type": "OpenLink", ...fields}`,
whose fields are those of the dataclass of that name, all present, no other.
The decoder is made from the annotations of a closed set of dataclasses, so
there is no second description that could drift from the first.
"""

import array
import dataclasses
import functools
import json
import math
import operator
import socket
import typing
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
    ip_address,
    ip_interface,
)
from types import UnionType
from typing import Any, Final

from qubes_vpn.errors import VpnError
from qubes_vpn.keeper.messages import DESCRIPTORS_MAX, MESSAGE_MAX

TEXT_MAX: Final = 8192
ITEMS_MAX: Final = 1024
SEQ_MAX: Final = 2**63 - 1

Decoder = Callable[[object], object]


class MessageError(VpnError):
    """A record departs from its type: drop the connection it came by."""


def _integer(value: object) -> int:
    if type(value) is not int or not -1 <= value <= SEQ_MAX:
        raise MessageError("not a bounded integer")
    return value


def _boolean(value: object) -> bool:
    if type(value) is not bool:
        raise MessageError("not a boolean")
    return value


def _number(value: object) -> float:
    if type(value) not in (int, float):
        raise MessageError("not a number")
    number = float(typing.cast(float, value))
    if not math.isfinite(number):
        raise MessageError("not a finite number")
    return number


def _text(value: object) -> str:
    if type(value) is not str or len(value) > TEXT_MAX:
        raise MessageError("not a bounded text")
    return value


def _address(value: object) -> object:
    return ip_address(_text(value))


def _interface(value: object) -> object:
    return ip_interface(_text(value))


_SCALARS: Final[Mapping[object, Decoder]] = {
    int: _integer,
    bool: _boolean,
    float: _number,
    str: _text,
    IPv4Address | IPv6Address: _address,
    IPv4Interface | IPv6Interface: _interface,
}


def _items(inner: Decoder) -> Decoder:
    def decode(value: object) -> object:
        if type(value) is not list or len(value) > ITEMS_MAX:
            raise MessageError("not a bounded list")
        return tuple(map(inner, value))

    return decode


def _fixed(inner: tuple[Decoder, ...]) -> Decoder:
    def decode(value: object) -> object:
        if type(value) is not list or len(value) != len(inner):
            raise MessageError("not a list of the right length")
        return tuple(f(x) for f, x in zip(inner, value, strict=True))

    return decode


def _optional(inner: Decoder) -> Decoder:
    return lambda value: None if value is None else inner(value)


def _decoder(annotation: Any) -> Decoder:  # noqa: ANN401 a type expression
    """Make the decoder of one annotation; TypeError for one we do not use."""
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple and args[1:] == (...,):
        return _items(_decoder(args[0]))
    if origin is tuple:
        return _fixed(tuple(map(_decoder, args)))
    if origin in (UnionType, typing.Union) and type(None) in args:
        rest = [arg for arg in args if arg is not type(None)]
        return _optional(_decoder(functools.reduce(operator.or_, rest)))
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return lambda value: annotation(_text(value))
    if dataclasses.is_dataclass(annotation):
        return _record(typing.cast(type, annotation))
    raise TypeError(f"no decoder for {annotation}")


def _record(cls: type) -> Decoder:
    hints = typing.get_type_hints(cls)
    fields = {f.name: _decoder(hints[f.name]) for f in dataclasses.fields(cls)}

    def decode(value: object) -> object:
        if type(value) is not dict or value.keys() != fields.keys():
            raise MessageError(f"not the fields of {cls.__name__}")
        return cls(**{name: fields[name](value[name]) for name in fields})

    return decode


def _plain(value: object) -> object:
    """Turn a value into what json can write."""
    if dataclasses.is_dataclass(value):
        return {
            f.name: _plain(getattr(value, f.name))
            for f in dataclasses.fields(value)
        }
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


class Codec:
    """Encodes and decodes the dataclasses that it was made with."""

    def __init__(self, types: Iterable[type]) -> None:
        self._records = {cls.__name__: _record(cls) for cls in types}

    def encode(self, seq: int, message: object) -> bytes:
        """Give the record. Raises MessageError when it is too long."""
        fields = typing.cast(dict[str, object], _plain(message))
        name = type(message).__name__
        assert name in self._records, name
        record = {"seq": seq, "type": name, **fields}
        data = json.dumps(record, separators=(",", ":")).encode()
        if len(data) > MESSAGE_MAX:
            raise MessageError("record too long")
        return data

    def decode(self, untrusted: bytes) -> tuple[int, Any]:
        """Give the sequence number and the message, or MessageError."""
        try:
            value = json.loads(untrusted)
            if type(value) is not dict:
                raise MessageError("not an object")
            seq, name = _integer(value.pop("seq")), _text(value.pop("type"))
            return seq, self._records[name](value)
        except MessageError:
            raise
        except (ValueError, KeyError, OverflowError, RecursionError) as error:
            # the text of the error may quote what was sent: not repeated
            raise MessageError(type(error).__name__) from None


def send_record(
    sock: socket.socket, data: bytes, descriptors: Iterable[int] = ()
) -> None:
    """Send one record with descriptors. Raises OSError as sendmsg does."""
    rights = array.array("i", descriptors)
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
    sock.sendmsg([data], control)


def receive_record(
    sock: socket.socket, flags: int = 0
) -> tuple[bytes, list[int]]:
    """Receive one record and its descriptors; b"" when the peer is gone.

    Raises MessageError for a record or descriptors past the limits, and
    OSError as recvmsg does. The caller owns the descriptors.
    """
    size = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
    data, control, received, _ = sock.recvmsg(
        MESSAGE_MAX, size, flags | socket.MSG_CMSG_CLOEXEC
    )
    descriptors: list[int] = []
    for level, kind, payload in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers = array.array("i")
            whole = len(payload) - len(payload) % numbers.itemsize
            numbers.frombytes(payload[:whole])
            descriptors.extend(numbers)
    if received & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for number in descriptors:
            socket.close(number)
        raise MessageError("record or descriptors cut short")
    return data, descriptors
