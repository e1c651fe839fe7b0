"""Words and numbers as the page shows them."""

from __future__ import annotations


def literal(text: str) -> str:
    """Text as it is: what a user, a URL or a file wrote must not be read as markup."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]()<>#+-.!$:|~" else c for c in text)


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
