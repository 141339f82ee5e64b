"""Plaid's secret stays out of what comes down, also where a server on the way quotes what it was sent."""

from __future__ import annotations

from typing import Final

from plaid_relay_async.errors import Hidden

# Plaid's have 30. A shorter one, of somebody's simulator, may be a word that stands in a token.
_MIN_MASKED_LENGTH: Final = 16


class Mask:
    """Blots the secret out of what a server quotes, in whichever pieces it comes; the length stays."""

    def __init__(self, secret: Hidden[str]) -> None:
        long = len(secret.reveal()) >= _MIN_MASKED_LENGTH
        self._secret = Hidden(secret.reveal().encode() if long else b"")
        self._pending = Hidden(b"")

    def _mask_bytes(self, content: bytes) -> Hidden[bytes]:
        secret = self._secret.reveal()
        return Hidden(content.replace(secret, b"*" * len(secret)) if secret else content)

    def mask_piece(self, piece: Hidden[bytes]) -> Hidden[bytes]:
        """Give what may go on of what came so far, and hold back what may be the secret's beginning."""
        secret = self._secret.reveal()
        said = self._mask_bytes(self._pending.reveal() + piece.reveal()).reveal()
        begun = next((n for n in range(len(secret) - 1, 0, -1) if said.endswith(secret[:n])), 0)
        self._pending = Hidden(said[len(said) - begun :])
        return Hidden(said[: len(said) - begun])

    def flush(self) -> Hidden[bytes]:
        """Give what was held back, for it ends there."""
        held, self._pending = self._pending, Hidden(b"")
        return held

    def mask_text(self, text: str) -> str:
        """Return a text without the secret; half of a surrogate pair may be in it."""
        return self._mask_bytes(text.encode(errors="surrogatepass")).reveal().decode(errors="surrogatepass")
