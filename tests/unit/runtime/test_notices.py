"""Which codes are shown on the user's screen, and under which title."""

import pytest

from qubes_vpn.runtime.screen import notice_kind


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("QV-320", "authentication needed"),
        ("QV-404", "leak attempt undone"),
        ("QV-405", "forwarding"),
        ("QV-403", "closed"),
        ("QV-333", "closed"),
        ("QV-501", "the server"),
        ("QV-541", "the server's certificate"),
        ("QV-102", ""),
        ("", ""),
    ],
)
def test_a_code_has_a_kind(code, kind):
    assert notice_kind(code) == kind
