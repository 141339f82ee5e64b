"""Writes CSV cells so that no spreadsheet executes them as formulas, and restores their text.

A leading apostrophe makes a spreadsheet read a cell as text. A text that already has apostrophes before such
a character gets one more, so that every text can be restored from its cell. Relay tokens are never changed.
"""

from __future__ import annotations

import re

# The characters listed at https://owasp.org/www-community/attacks/CSV_Injection, full-width forms included.
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def neutralize(text: str) -> str:
    """Return the CSV cell for a text; no spreadsheet executes the cell as a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def restore(cell: str) -> str:
    """Return the original text of a cell."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
