class QubesException(Exception):  # noqa: N818  Qubes' name
    def __init__(self, text, *args, **kwargs):
        super().__init__(text % tuple(str(arg) for arg in args) % kwargs)


class QubesVMNotFoundError(QubesException, KeyError):
    def __str__(self):
        return Exception.__str__(self)


class QubesVMError(QubesException):
    pass


class QubesVMInUseError(QubesVMError):
    pass


class QubesVMNotStartedError(QubesVMError):
    pass


class QubesVMNotHaltedError(QubesVMError):
    pass


class QubesValueError(QubesException, ValueError):
    pass


class QubesPropertyValueError(QubesValueError):
    pass


class QubesNoSuchPropertyError(QubesException, AttributeError):
    pass


class QubesFeatureNotFoundError(QubesException, KeyError):
    def __str__(self):
        return Exception.__str__(self)


class QubesTagNotFoundError(QubesException, KeyError):
    pass


class QubesDaemonCommunicationError(QubesException):
    pass


class QubesDaemonAccessError(QubesDaemonCommunicationError):
    pass


QubesDaemonNoResponseError = QubesDaemonAccessError


class QubesPropertyAccessError(QubesDaemonAccessError, AttributeError):
    def __init__(self, prop):
        super().__init__(f"Failed to access '{prop}' property")
