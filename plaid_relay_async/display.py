"""The display of text that isn't trusted: from servers, files and the command line.

A terminal acts on control characters, a line break or a bidirectional override makes a text look like another
one, and no encoding can represent a lone surrogate.
"""

from __future__ import annotations

import json
import re
from typing import Final

_NOT_PRINTABLE_ASCII: Final = re.compile(r"[^ -~]")
_NOT_JSON_ASCII: Final = re.compile(r"\r(?!\n)|[^\t\n\r -~]")
# Characters that are printable for Python but invisible on a terminal: fillers, joiners, variation selectors,
# and the empty Braille pattern.
_INVISIBLE: Final = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def escape_unprintable(text: str) -> str:
    """Return a text as one line, with a backslash escape for each character that isn't visible."""
    return _NOT_PRINTABLE_ASCII.sub(_escape_character, text)


def _escape_character(character: re.Match[str]) -> str:
    text = character[0]
    return text if _is_visible(text) else text.encode("unicode_escape").decode()


def escape_json(text: bytes) -> bytes:
    """Return lines of JSON with a JSON escape for each character that isn't visible."""
    return _NOT_JSON_ASCII.sub(_escape_character_of_json, text.decode(errors="backslashreplace")).encode()


def _escape_character_of_json(character: re.Match[str]) -> str:
    text = character[0]
    return text if _is_visible(text) else json.dumps(text)[1:-1].replace("\x7f", "\\u007f")


def _is_visible(character: str) -> bool:
    return character.isprintable() and _INVISIBLE.match(character) is None


def escape_surrogates(text: str) -> str:
    """Return the text with a backslash escape for each lone surrogate, which no encoding can represent."""
    return text.encode(errors="backslashreplace").decode()
