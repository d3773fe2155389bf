"""Initialisation vectors for CBC without a random source at hand."""

import hmac

from qubes_vpn.crypto.keys import DirectionKeys

IV_SIZE = 16


def cbc_iv(keys: DirectionKeys, packet_id: int, context: bytes = b"") -> bytes:
    """Return 16 bytes that nobody without the keys can foresee.

    HMAC-SHA256 over the packet id, cut: a PRF of a counter that never
    repeats under one key, which is what CBC needs of an IV (NIST SP 800-38A,
    appendix C). The key material also serves cipher and MAC; the label keeps
    the inputs apart from the MAC's, which are never this short. context:
    8 bytes at most, where packet ids begin anew under one key.
    """
    label = b"cbc-iv" + packet_id.to_bytes(8) + context
    key = keys.hmac_key + keys.cipher_key
    return hmac.digest(key, label, "sha256")[:IV_SIZE]
