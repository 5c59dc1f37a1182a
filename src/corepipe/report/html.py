"""HTML by small functions: every string is escaped on its way in, so that no name can become markup."""

from __future__ import annotations

import html
import unicodedata

VOID = frozenset({"meta", "br", "hr", "input", "wbr", "link", "img"})
"""Elements without content and end tag."""


class Html(str):
    """Text that is markup already; only `tag`, `raw` and `join` make it."""

    __slots__ = ()


Content = str | int | None
"""What an element may hold: markup, or text and numbers that are escaped; None is left out."""


def tag(name: str, /, *content: Content, **attributes: str | int | bool | None) -> Html:
    """An element.

    Args:
        name: of the element.
        content: in order.
        attributes: `class_` and `for_` stand for class and for, `_` for `-`; True gives a bare attribute; None and
            False leave it out.

    Example:
        >>> tag("td", "<b>", class_="num", data_row=3)
        '<td class="num" data-row="3">&lt;b&gt;</td>'
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(f" {key}" if value is True else f' {key}="{html.escape(visible(str(value)))}"')
    parts.append(">")
    if name not in VOID:
        parts += [escape(part) for part in content if part is not None]
        parts.append(f"</{name}>")
    return Html("".join(parts))


def join(*content: Content) -> Html:
    """Several pieces one after the other."""
    return Html("".join(escape(part) for part in content if part is not None))


def raw(markup: str) -> Html:
    """Markup from a file of this package, as it is."""
    return Html(markup)


def escape(content: str | int) -> Html:
    """Markup as it is, anything else escaped."""
    return content if isinstance(content, Html) else Html(html.escape(visible(str(content))))


def visible(text: str, kept: str = "\n\t") -> str:
    """Control, direction-changing and unpaired characters as `\\u202e`, so that a name shows what it is.

    Args:
        text: of any origin.
        kept: the control characters that stay as they are.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in kept or unicodedata.category(c) not in _HIDDEN else _code(c) for c in text)


_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def _code(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
