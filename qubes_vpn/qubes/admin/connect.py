"""Reaching qubesd, and what it means when it refuses."""

import contextlib
import subprocess
from collections.abc import Iterator

from qubes_vpn.qubes.admin.plan import EX_NOPERM, EX_OSERR, AdminError, App


def connect() -> App:
    """Give the Admin API, of dom0 or of a management qube. AdminError."""
    try:
        import qubesadmin
    except ImportError as error:
        raise AdminError(
            "",
            "qubesadmin is not installed: this is neither dom0 nor a "
            "management qube",
            "in a management qube's template: install qubes-core-admin-client",
        ) from error
    return qubesadmin.Qubes()


@contextlib.contextmanager
def admin_errors() -> Iterator[None]:
    """Turn what qubesadmin raises into AdminError."""
    from qubesadmin import exc

    try:
        yield
    except exc.QubesDaemonAccessError as error:
        raise AdminError(
            "",
            f"qubesd refused: {_told(error)}",
            "from a management qube, its policy must allow this call: see "
            "/etc/qubes/policy.d/30-qubes-vpn.policy and "
            "`journalctl -u qubesd` in dom0",
            EX_NOPERM,
        ) from error
    except exc.QubesDaemonCommunicationError as error:
        raise AdminError(
            "",
            f"qubesd cannot be reached: {error}",
            "`systemctl status qubesd` in dom0",
        ) from error
    except exc.QubesException as error:
        raise AdminError(
            "", _told(error), "`journalctl -u qubesd` in dom0", EX_OSERR
        ) from error
    except subprocess.CalledProcessError as error:
        raise AdminError(
            "", f"a qube's service failed: {error}", code=EX_OSERR
        ) from error


def _told(error: BaseException) -> str:
    """Give an error's words, and the command that it belongs to."""
    return "\n  ".join([str(error), *getattr(error, "__notes__", ())])
