"""Checks that certificates and keys of a profile can be used together."""

from collections.abc import Callable
from typing import Final

from qubes_vpn.config.document import Document
from qubes_vpn.config.model import Identity, ServerCheck
from qubes_vpn.crypto.identity import (
    is_encrypted,
    load_ca,
    load_crls,
    load_pem_identity,
    load_pkcs12,
)
from qubes_vpn.errors import ConfigError

DER_SEQUENCE: Final = 0x30


def check(doc: Document, ours: Identity, theirs: ServerCheck) -> None:
    """Load everything as a connection would; what fails is a problem."""
    if theirs.ca:
        _try(doc, lambda: load_ca(theirs.ca))
    if theirs.crl:
        _try(doc, lambda: load_crls(theirs.crl))
    if ours.pkcs12:
        _check_pkcs12(doc, ours)
    elif ours.certificate and ours.key:
        locked = ours.passphrase is None and is_encrypted(ours.key)
        if locked:  # somebody will be asked for the passphrase
            chain = ours.certificate + ours.chain
            _try(doc, lambda: load_ca(chain), "cert")
            return
        _try(
            doc,
            lambda: load_pem_identity(
                ours.certificate, ours.chain, ours.key, ours.passphrase
            ),
        )


def _check_pkcs12(doc: Document, ours: Identity) -> None:
    if ours.passphrase is not None:
        _try(doc, lambda: load_pkcs12(ours.pkcs12, ours.passphrase))
    elif ours.pkcs12[0] != DER_SEQUENCE:
        item = doc.last("pkcs12")
        assert item is not None
        message = "pkcs12: is not a PKCS#12 file"
        doc.report(item.statement, message, code="QV-107")


def _try(
    doc: Document, load: Callable[[], object], directive: str = ""
) -> None:
    try:
        load()
    except ConfigError as error:
        for problem in error.problems:
            name = directive or problem.file
            message = f"{name}: {problem.message}"
            item = doc.last(name)
            assert item is not None
            doc.report(item.statement, message, code="QV-107")
