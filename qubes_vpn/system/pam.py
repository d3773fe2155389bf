"""Asking PAM about a password, through libpam itself.

Source: pam_start(3), pam_conv(3); security/_pam_types.h.
"""

import ctypes
import ctypes.util
from typing import Any, Final

from qubes_vpn.errors import OsRefusedError

_SUCCESS: Final = 0
_CONV_ERR: Final = 19
_PROMPT_ECHO_OFF: Final = 1
_PROMPT_ECHO_ON: Final = 2
_MESSAGES_MAX: Final = 32
# what a prompt may be answered with (PAM_MAX_RESP_SIZE)
_ANSWER_MAX: Final = 512


class _Message(ctypes.Structure):
    _fields_ = (("style", ctypes.c_int), ("text", ctypes.c_char_p))


class _Response(ctypes.Structure):
    # void: libpam frees it, so it must be malloc's and stay it
    _fields_ = (("answer", ctypes.c_void_p), ("code", ctypes.c_int))


_CONVERSE: Final = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_int,
    ctypes.POINTER(ctypes.POINTER(_Message)),
    ctypes.POINTER(ctypes.POINTER(_Response)),
    ctypes.c_void_p,
)


class _Conversation(ctypes.Structure):
    _fields_ = (("converse", _CONVERSE), ("data", ctypes.c_void_p))


def available() -> bool:
    """Tell whether this machine has libpam."""
    return ctypes.util.find_library("pam") is not None


def authenticate(service: str, user: str, password: str) -> bool:
    """Ask the PAM service (a file of /etc/pam.d); blocks while it thinks.

    The account must be in order too. Raises OsRefusedError without libpam.
    """
    given = (service.encode(), user.encode(), password.encode())
    if any(b"\0" in part or len(part) >= _ANSWER_MAX for part in given):
        return False
    library = ctypes.util.find_library("pam")
    if library is None:
        raise OsRefusedError("there is no libpam here")
    pam, libc = ctypes.CDLL(library), ctypes.CDLL(None)
    libc.calloc.restype = libc.strdup.restype = ctypes.c_void_p
    libc.calloc.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
    libc.strdup.argtypes = (ctypes.c_char_p,)
    answers = {_PROMPT_ECHO_OFF: given[2], _PROMPT_ECHO_ON: given[1]}
    conversation = _Conversation(_CONVERSE(_converser(libc, answers)), None)
    handle = ctypes.c_void_p()
    if pam.pam_start(
        given[0], given[1], ctypes.byref(conversation), ctypes.byref(handle)
    ):
        raise OsRefusedError(f"PAM does not start for {service}")
    status = pam.pam_authenticate(handle, 0)
    if status == _SUCCESS:
        status = pam.pam_acct_mgmt(handle, 0)
    pam.pam_end(handle, status)
    return bool(status == _SUCCESS)


def _converser(libc: Any, answers: dict[int, bytes]) -> Any:  # noqa: ANN401 ctypes' own
    def converse(count: int, messages: Any, responses: Any, _: Any) -> int:  # noqa: ANN401
        if not 0 < count <= _MESSAGES_MAX:
            return _CONV_ERR
        memory = libc.calloc(count, ctypes.sizeof(_Response))
        if not memory:
            return _CONV_ERR
        made = ctypes.cast(memory, ctypes.POINTER(_Response))
        for index in range(count):
            answer = answers.get(messages[index].contents.style)
            if answer is not None:
                made[index].answer = libc.strdup(answer)
        responses[0] = made
        return _SUCCESS

    return converse
