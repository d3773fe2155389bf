"""Which data plane a server gets: the one that its device is for."""

import selectors

from qubes_vpn.config.server_profile import ServerProfile
from qubes_vpn.errors import OsRefusedError
from qubes_vpn.runtime.server_device import Device
from qubes_vpn.runtime.server_events import Control
from qubes_vpn.runtime.server_kernel import KernelPlane
from qubes_vpn.runtime.server_plane import ServerPlane


def make_plane(
    selector: selectors.BaseSelector,
    device: Device,
    control: Control,
    profile: ServerProfile,
) -> ServerPlane:
    """Make the plane. Raises OsRefusedError when numpy cannot be used."""
    if device.descriptor is None:
        return KernelPlane(selector, device.index, control, profile)
    between, most = profile.client_to_client, 2 * profile.max_clients
    if device.offloads is None:
        return ServerPlane(
            selector,
            device.descriptor,
            control,
            client_to_client=between,
            connections_max=most,
        )
    try:
        # late: numpy costs 0.1 s and 16 MB
        from qubes_vpn.runtime.server_batch import BatchPlane
    except ImportError as error:
        raise OsRefusedError(f"offloads: {error}") from error
    return BatchPlane(
        selector,
        device.descriptor,
        control,
        client_to_client=between,
        connections_max=most,
        offloads=device.offloads,
    )
