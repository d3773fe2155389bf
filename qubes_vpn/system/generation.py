"""Generations of the ruleset: every nftables transaction makes a new one.

Source: linux/netfilter/nf_tables.h (NFT_MSG_NEWGEN), nfnetlink.h.
"""

from dataclasses import dataclass
from typing import Final

from qubes_vpn.system.netlink import Notices, Requests
from qubes_vpn.system.pyroute import netlink, nfnetlink, nftsocket

_NEWGEN: Final = nfnetlink.NFNL_SUBSYS_NFTABLES << 8 | nftsocket.NFT_MSG_NEWGEN
_GETGEN: Final = nfnetlink.NFNL_SUBSYS_NFTABLES << 8 | nftsocket.NFT_MSG_GETGEN
_CLASSES: Final = {_NEWGEN: nftsocket.nft_gen_msg}


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation and who made it; pid 0: not told."""

    number: int
    pid: int = 0
    name: str = ""


class Generations:
    """Asks for the current generation."""

    def __init__(self) -> None:
        self._sock = Requests(netlink.NETLINK_NETFILTER, _CLASSES)

    def close(self) -> None:
        """Let go of the socket."""
        self._sock.close()

    def current(self) -> int:
        """Give the number of the current generation."""
        asked = nftsocket.nft_gen_msg()
        return _read(self._sock.get("nftables", _GETGEN, asked)).number


class Notifications:
    """Hears of every transaction, our own among them."""

    def __init__(self) -> None:
        groups = [nfnetlink.NFNLGRP_NFTABLES]
        self._sock = Notices(netlink.NETLINK_NETFILTER, groups, _CLASSES)

    def fileno(self) -> int:
        """Give the descriptor to watch."""
        return self._sock.fileno()

    def close(self) -> None:
        """Hear no more."""
        self._sock.close()

    def receive(self) -> list[Generation]:
        """Give the generations that were made. OsRefusedError: lost some."""
        return [
            _read(message)
            for message in self._sock.receive()
            if message["header"]["type"] == _NEWGEN
        ]


def _read(message: netlink.nlmsg) -> Generation:
    return Generation(
        message.get_attr("NFTA_GEN_ID", 0),
        message.get_attr("NFTA_GEN_PROC_PID", 0),
        message.get_attr("NFTA_GEN_PROC_NAME", ""),
    )
