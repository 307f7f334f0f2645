"""Names for C: identifiers of module paths, and text that may stand in a comment."""

from __future__ import annotations

import re

__all__ = ["Names", "comment", "identifier"]

_KEYWORDS = """
auto break case char const continue default do double else enum extern float for goto if inline int long register
restrict return short signed sizeof static struct switch typedef union unsigned void volatile while asm typeof main
alignas alignof bool constexpr false nullptr static_assert thread_local true typeof_unqual
class delete new private protected public this throw try catch template operator namespace using virtual friend
memcpy memset memmove memcmp memchr NULL errno offsetof size_t strcpy strncpy strcat strncat strcmp strcoll strncmp
strxfrm strchr strcspn strpbrk strrchr strspn strstr strtok strerror strlen
"""
_RESERVED = frozenset(_KEYWORDS.split())


def identifier(text: str) -> str:
    """A C99 identifier that resembles a text; reserved words, and what may be one, get an underscore at the end.

    >>> identifier("layer1.0.conv1"), identifier("int"), identifier("2nd größe"), identifier("")
    ('layer1_0_conv1', 'int_', 'n2nd_gr_e', 'net')
    """
    name = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_") or "net"
    if name[0].isdigit():
        name = f"n{name}"
    # <stdint.h> may define int8_t, INT8_MAX and the like
    taken = name in _RESERVED or re.fullmatch(r"u?int\w*_t|U?INT\w*_(MIN|MAX|C)|\w*_(MIN|MAX)", name)
    return f"{name}_" if taken else name


def comment(text: str) -> str:
    """A text without what would end a comment, continue a line or be a trigraph, in ASCII.

    >>> comment("a*/b ??/ naïve")
    'a* /b ? ?/ na?ve'
    """
    plain = "".join(c if " " <= c <= "~" and c != "\\" else "?" for c in text)
    for pair in ("*/", "/*", "??"):
        while pair in plain:
            plain = plain.replace(pair, f"{pair[0]} {pair[1]}")
    return plain


class Names:
    """Identifiers that are all different, without regard to case.

    >>> names = Names(["copy"])
    >>> names.new("a.b"), names.new("a_b"), names.new("copy"), names.new("A-b")
    ('a_b', 'a_b_2', 'copy_2', 'A_b_3')
    """

    def __init__(self, taken: list[str] | None = None) -> None:
        self._taken = {t.lower() for t in taken or ()}

    def new(self, text: str) -> str:
        """A free identifier for a text."""
        base = name = identifier(text)
        count = 1
        while name.lower() in self._taken:
            count += 1
            name = f"{base}_{count}"
        self._taken.add(name.lower())
        return name
