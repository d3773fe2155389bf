"""Which userspace plane: with offloads where numpy is, else packet by packet.

numpy costs 0.1 s and 16 MB, so it is only looked for before the tun is opened
(a tun with virtio-net headers needs the plane with offloads), and imported
once the first packet to the server is on its way.
"""

import contextlib
import importlib.util
import socket

from qubes_vpn.dataplane.userspace import UserspacePlane
from qubes_vpn.engine.data_channel import DataChannel
from qubes_vpn.errors import OsRefusedError


def can_offload() -> bool:
    """Say whether the tun should be opened with virtio-net headers."""
    return importlib.util.find_spec("numpy") is not None


def prepare() -> None:
    """Import what offloads need, while something else is waited for."""
    with contextlib.suppress(ImportError):
        import qubes_vpn.dataplane.offload  # noqa: F401


def with_offloads(
    begun: UserspacePlane | None,
    link: socket.socket,
    tun: int,
    channel: DataChannel,
    *,
    stream: bool,
    offloads: int,
) -> UserspacePlane:
    """Give the plane for a tun with virtio-net headers.

    begun: the plane that led the handshake on this link, before any key was
    installed; it must not be used any more. offloads: TUN_F_* bits of the
    tun. Raises OsRefusedError when numpy cannot be used after all.
    """
    try:
        from qubes_vpn.dataplane.offload import OffloadPlane
    except ImportError as error:
        raise OsRefusedError(f"offloads: {error}") from error
    plane = OffloadPlane(link, tun, channel, stream=stream, offloads=offloads)
    if begun is not None:
        plane.resume(begun.link)
        begun.let_go()
    return plane
