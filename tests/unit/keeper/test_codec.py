"""What a record may hold, beyond what JSON calls a number."""

import pytest

from qubes_vpn.keeper.codec import MessageError
from qubes_vpn.runtime.messages import CODEC


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_time_without_end_is_no_number(number):
    record = (
        '{"seq":1,"type":"Prompt","kind":"a","prompt":"b","echo":false,'
        f'"timeout":{number}}}'
    )
    with pytest.raises(MessageError, match="finite"):
        CODEC.decode(record.encode())
