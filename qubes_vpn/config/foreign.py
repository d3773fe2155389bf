"""Recognises what people take for an OpenVPN profile, and is not one."""

import re
from typing import Final

HEAD: Final = 8192  # characters that are looked at

# Each: a pattern in the text's first HEAD characters, and the sentence.
_FOREIGN: Final = (
    (r"\A\s*\Z", "is empty; download or copy the profile again"),
    (
        r"\APK\x03\x04",
        "is a zip archive; give it to: qubes-vpn profile import",
    ),
    (
        r"\A(\x1f[\x8b\udc8b]|BZh[1-9]|7z[\xbc\udcbc]|Rar!|[\xfd\udcfd]7zXZ)",
        "is a compressed archive; unpack it first",
    ),
    (
        r"(?i)\A\s*<(!doctype|html|\?xml|head|body)",
        "is a web page; log in to the provider's site and download the"
        " profile itself",
    ),
    (
        r"(?im)^[ \t]*\[(interface|peer)\][ \t\r]*$",
        "is a WireGuard configuration; ask the provider for an OpenVPN one",
    ),
    (
        r"(?m)^[ \t]*(conn[ \t]+[%\w.-]+|config[ \t]+setup)[ \t\r]*$",
        "is an IPsec configuration; ask the provider for an OpenVPN one",
    ),
    (
        r"\A\s*([{]|\[\s*[\"{\[])",
        "is JSON, not a profile; export a profile (.ovpn) instead",
    ),
    (
        r"(?m)^[ \t]*connect[ \t]*=[ \t]*[\w.:-]+[ \t\r]*$",
        "is a stunnel configuration; ask the provider for a profile that"
        " needs no obfuscation",
    ),
    (
        r"\A\s*-----BEGIN ",
        "is a certificate or a key, not a profile; import the .ovpn file"
        " beside it",
    ),
)
_OBFUSCATED: Final = (
    "belongs to an OpenVPN patched for obfuscation; ask the provider for a"
    " profile without it"
)
# Directives of patched programs.
OBFUSCATION: Final = dict.fromkeys(
    (
        "scramble",
        "obfs",
        "obfs4",
        "obfsproxy",
        "obfuscate",
        "stunnel",
        "xormask",
        "xorptrpos",
    ),
    _OBFUSCATED,
)
_PATTERNS: Final = tuple((re.compile(p), s) for p, s in _FOREIGN)


def recognise(text: str) -> str:
    """Say what the text is when it is not a profile; else return nothing."""
    head = text[:HEAD].removeprefix("\ufeff")
    for pattern, sentence in _PATTERNS:
        if pattern.search(head):
            return sentence
    return ""
