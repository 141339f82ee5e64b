"""Checks the partner identifiers that the command reads from a file or from its options.

`RelayCreateRequest` rejects characters that no identifier contains. A list of partners has often been edited
in a spreadsheet, and a wrong row could share a report with the wrong partner, so the command also rejects
values that are probably not identifiers. The console's list follows the same rules.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING

from plaid_relay_async.redaction import contains_token

if TYPE_CHECKING:
    from collections.abc import Mapping

# The first five start a formula of a spreadsheet, or a cell that is escaped with an apostrophe; the others
# start a comment, a tag, an item of a list, or a path.
_ODD_PREFIXES = ("=", "@", "'", "+", "-", "#", "<", "*", "/")
_ODD_SUBSTRINGS = {"|": "contains the delimiter |", "://": "is a URL"}
_NUMBER = re.compile(
    r"[0-9]+([.,][0-9]*)?[eE][+-][0-9]+"  # 5.00E+23; without a sign it may be hexadecimal, such as 5e23
    r"|[0-9]+[.,][0-9]+"  # 12.0
    r"|[0-9]{1,3}([.,][0-9]{3})+([.,][0-9]+)?"  # 1.234.567,00
)
# The plural `s?` follows the group of words, so that a text matches in one way only. If the words had their
# own plurals, a long text would take exponential time.
_HEADING = re.compile(
    r"((secondary|plaid|external|relay|partner|client|customer|lender|borrower|recipient|company|companie"
    r"|organi[sz]ation|bank|institution|user|account|report|kunde|kunden|kreditgeber|empfänger|empfaenger|firma"
    r"|firmen|id|identifier|key|code|name|no|nr|number|nummer|token|value|webhook)s?)+"
    r"|(sub|grand)?totals?|sum|summe|gesamt|gesamtsumme|count|anzahl"
    r"|null|nil|none|nan|undefined|true|false|n/?a|#n/a|#null!|#ref!|#name\?|#value!|#div/0!|#num!"
)


class Shape(enum.IntEnum):
    """The smallest alphabet that contains all characters of an identifier; each includes the previous one."""

    DIGITS = 0
    HEXADECIMAL = 1
    ALPHANUMERIC = 2
    PUNCTUATED = 3  # also `-`, `_` and `.`
    OTHER = 4


_ALPHABETS = {
    Shape.DIGITS: re.compile(r"[0-9]*"),
    Shape.HEXADECIMAL: re.compile(r"[0-9A-Fa-f]*"),
    Shape.ALPHANUMERIC: re.compile(r"[0-9A-Za-z]*"),
    Shape.PUNCTUATED: re.compile(r"[0-9A-Za-z._-]*"),
}


def shape_of(identifier: str) -> Shape:
    """Return the shape of an identifier, which doesn't depend on its length."""
    matching = (shape for shape, pattern in _ALPHABETS.items() if pattern.fullmatch(identifier))
    return next(matching, Shape.OTHER)


def common_shape(counts: Mapping[Shape, int]) -> Shape:
    """Return the smallest shape that covers at least nine in ten identifiers of a list.

    The other identifiers are odd. `Shape.OTHER` covers every identifier.

    Args:
        counts: the number of identifiers of each shape.
    """
    threshold = sum(counts.values()) * 9
    return next(
        shape
        for shape in Shape
        if 10 * sum(counts.get(other, 0) for other in Shape if other <= shape) >= threshold
    )


def normalize_name(name: str) -> str:
    """Return a column name in lower case, without spaces, `-` and `_`."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def is_heading(text: str) -> bool:
    """Return whether a cell reads as a column's name, a total, or a placeholder for a missing value."""
    return _HEADING.fullmatch(normalize_name(text)) is not None


def oddity_of(identifier: str) -> str | None:
    """Return why a value is probably not an identifier, or `None`."""
    if contains_token(identifier):
        return "is one of Plaid's tokens"
    if is_heading(identifier):
        return "is a heading, a total, or a placeholder for a missing value"
    if identifier.startswith(_ODD_PREFIXES):
        return f"begins with {identifier[0]}"
    if _NUMBER.fullmatch(identifier):
        return "is a number as a spreadsheet formats it"
    return next((oddity for part, oddity in _ODD_SUBSTRINGS.items() if part in identifier), None)
