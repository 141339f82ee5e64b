"""Redaction: how secrets and tokens stay out of reprs, texts, tracebacks and responses.

- A value: `Hidden` shows it only on request.
- A traceback: `strip_traceback` drops the frames that have secrets as local variables.
- A text from a server or a user: `redact_secrets`, `redact_credentials` and `redact_words` replace what is
  secret in it, or may be.
- Bytes that are passed on in chunks: `Mask`.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Final, Generic, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

P = ParamSpec("P")
T = TypeVar("T")


class Hidden(Generic[T]):
    """A secret value that only `reveal()` returns: no repr, log line or traceback with locals shows it."""

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def reveal(self) -> T:
        """Return the value."""
        return self._value

    def __repr__(self) -> str:
        return "<hidden>"


# ------------------------------------------------------------------------------------------ tracebacks


class ExpectedError(Exception):
    """An error that this package raises deliberately: its text explains it, and contains no secret."""


def strip_traceback(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function to drop the traceback of its errors, whose frames hold secrets as plain arguments.

    A traceback that is rendered with locals would otherwise show them. Only an `ExpectedError` needs no
    traceback to be understood; the frames of other exceptions, such as those of the caller's own code, stay.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except ExpectedError as error:
            stripped = error.with_traceback(None)
        finally:
            del args, kwargs
        raise stripped

    return call


def strip_init_traceback(cls: type[T]) -> type[T]:
    """Decorate a record class so that creating an instance drops the traceback as `strip_traceback` does."""
    cls.__init__ = strip_traceback(cls.__init__)  # type: ignore[method-assign]  # attrs wrote it
    return cls


# ----------------------------------------------------------------------------------------------- texts

REDACTED: Final = "[hidden]"
GATEWAY_KEY_PREFIX: Final = "plaid-gateway-"  # with a fixed prefix, secret scanners can find a leaked key
# Plaid's tokens are `[type]-[environment]-[id]` (https://plaid.com/docs/quickstart/glossary/).
_TOKEN_FORMAT = re.compile(r"[a-z-]-(?:sandbox|production|development)-[\w-]")
# The exact form of Plaid's tokens and secrets, and of the gateway's keys.
_CREDENTIAL_FORMAT = re.compile(
    r"-(?:sandbox|production|development)-(?:[0-9a-f]{8}-[0-9a-f]{4}|[0-9A-Za-z]{16})"
    rf"|\A-*{GATEWAY_KEY_PREFIX}[\w-]{{16}}|\A-*[0-9a-f]{{30}}\Z"
)
# A word of these characters is redacted as a whole if a part of it has such a form.
_WORD = re.compile(r"[\w-]++")
_MAX_IDENTIFIER_LENGTH = 64  # characters; Plaid's identifiers have 24
_MIN_SECRET_LENGTH = 4  # shorter secrets, which only tests have, would match inside ordinary words


def contains_token(text: str) -> bool:
    """Return whether a text contains something with the form of Plaid's tokens."""
    return _TOKEN_FORMAT.search(text) is not None


def may_be_secret(identifier: str) -> bool:
    """Return whether an identifier that a caller or a server chose may be a token or a gateway's key."""
    return contains_token(identifier) or GATEWAY_KEY_PREFIX in identifier


def redact_identifier(identifier: str) -> str:
    """Return an identifier that a caller or a server chose, shortened; redact it if it may be a secret."""
    return REDACTED if may_be_secret(identifier) else identifier[:_MAX_IDENTIFIER_LENGTH]


def redact_secrets(text: str, secrets: Iterable[str]) -> str:
    """Redact a server's text: the secrets of the request, which it may quote, and all that may be a token."""
    for secret in secrets:
        if len(secret) >= _MIN_SECRET_LENGTH:
            text = text.replace(secret, REDACTED)
    return _redact_matching_words(_TOKEN_FORMAT, text)


def redact_credentials(text: str) -> str:
    """Redact what has the exact form of a token, of a secret or of a gateway's key, and nothing else.

    Use it for texts with names of files and runs, which may contain `-production-`.
    """
    return _redact_matching_words(_CREDENTIAL_FORMAT, text)


def redact_words(text: str, words: Iterable[str]) -> str:
    """Replace words that the user typed, one of which may be a token, by `[...]`."""
    # The longest words first, so that no part of a word is left if another one is contained in it.
    for word in sorted(words, key=len, reverse=True):
        text = re.sub(rf"(?<![\w-]){re.escape(word)}(?![\w-])", "[...]", text)
    return text


def _redact_matching_words(secret_format: re.Pattern[str], text: str) -> str:
    return _WORD.sub(lambda word: REDACTED if secret_format.search(word[0]) else word[0], text)


# ----------------------------------------------------------------------------------- streams of bytes

# Plaid's secrets have 30 characters. A shorter one, of a simulator, might occur in a token by chance.
_MIN_MASKED_LENGTH: Final = 16


class Mask:
    """Replaces each byte of a secret with an asterisk, also where chunks split the secret."""

    def __init__(self, secret: Hidden[str]) -> None:
        long = len(secret.reveal()) >= _MIN_MASKED_LENGTH
        self._secret = Hidden(secret.reveal().encode() if long else b"")
        self._pending = Hidden(b"")

    def _mask_bytes(self, content: bytes) -> Hidden[bytes]:
        secret = self._secret.reveal()
        return Hidden(content.replace(secret, b"*" * len(secret)) if secret else content)

    def mask_chunk(self, chunk: Hidden[bytes]) -> Hidden[bytes]:
        """Return what can be sent so far; hold back the last bytes if they may be the start of the secret."""
        secret = self._secret.reveal()
        content = self._mask_bytes(self._pending.reveal() + chunk.reveal()).reveal()
        held_back = next((n for n in range(len(secret) - 1, 0, -1) if content.endswith(secret[:n])), 0)
        self._pending = Hidden(content[len(content) - held_back :])
        return Hidden(content[: len(content) - held_back])

    def flush(self) -> Hidden[bytes]:
        """Return what was held back, at the end of the content."""
        pending, self._pending = self._pending, Hidden(b"")
        return pending

    def mask_text(self, text: str) -> str:
        """Return a text without the secret. The text may contain a lone surrogate."""
        return self._mask_bytes(text.encode(errors="surrogatepass")).reveal().decode(errors="surrogatepass")
