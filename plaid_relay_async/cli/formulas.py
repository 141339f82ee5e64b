"""Cells of CSV that a spreadsheet would execute as a formula, and how they are written as text.

An apostrophe in front makes a spreadsheet take a cell for text. A text that has apostrophes in front of such
a beginning gets one more, so that each text can be restored from its cell. Relay tokens are never changed.
"""

from __future__ import annotations

import re

# Those of https://owasp.org/www-community/attacks/CSV_Injection, full-width forms included.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def neutralize(text: str) -> str:
    """Return the cell for a text, which no spreadsheet executes."""
    return f"'{text}" if _FORMULA.match(text) else text


def restore(cell: str) -> str:
    """Return the text that a cell was written for."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
