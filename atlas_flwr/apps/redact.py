"""Secrets kept out of what is printed: addresses with a password, the hub's token."""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=://)[^/@\s]+@")


def without_secrets(text: str, *secrets: str | None) -> str:
    """Return the text with the user part of addresses, and each secret, written ``***``.

    >>> without_secrets("https://me:word@proxy:3128 refused")
    'https://***@proxy:3128 refused'
    """
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return _USER.sub("***@", text)
