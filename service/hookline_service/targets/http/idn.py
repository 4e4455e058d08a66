"""Internationalized names: which `xn--` labels of a host are names at all.

What is no valid A-label (RFC 5890 section 2.3.2.1) cannot be registered, and readers disagree about
it: some decode it, some refuse it. So a URL with one is refused when it is written; sent to, it
does not resolve. `-` in the third and fourth place without `xn` is left alone: such names exist.

Source: IDNA 2008 (RFC 5891 section 5.4). UTS 46 and browsers take more, such as emoji.
"""

from __future__ import annotations

import idna

_A_LABEL_PREFIX = "xn--"


def check_international(host: str) -> str | None:
    """Why a host, in lower case, is no valid international name; None where it is, or is none."""
    for label in host.split("."):
        if not label.startswith(_A_LABEL_PREFIX):
            continue
        try:
            idna.ulabel(label)
        except idna.IDNAError as error:
            return f"has a host whose label {label} is no valid name of IDNA 2008: {error}"
    return None
