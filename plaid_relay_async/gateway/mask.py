"""Plaid's secret stays out of what comes down, also where a server on the way quotes what it was sent."""

from __future__ import annotations

from typing import Final

from plaid_relay_async.errors import Hidden

# Plaid's have 30. A shorter one, of somebody's simulator, may be a word that stands in a token.
_SHORTEST_SECRET: Final = 16


class Mask:
    """Blots the secret out of what a server quotes, in whichever pieces it comes; the length stays."""

    def __init__(self, secret: Hidden[str]) -> None:
        long = len(secret.reveal()) >= _SHORTEST_SECRET
        self._secret = Hidden(secret.reveal().encode() if long else b"")
        self._held = Hidden(b"")

    def _blotted(self, said: bytes) -> Hidden[bytes]:
        secret = self._secret.reveal()
        return Hidden(said.replace(secret, b"*" * len(secret)) if secret else said)

    def over(self, piece: Hidden[bytes]) -> Hidden[bytes]:
        """Give what may go on of what came so far, and hold back what may be the secret's beginning."""
        secret = self._secret.reveal()
        said = self._blotted(self._held.reveal() + piece.reveal()).reveal()
        begun = next((n for n in range(len(secret) - 1, 0, -1) if said.endswith(secret[:n])), 0)
        self._held = Hidden(said[len(said) - begun :])
        return Hidden(said[: len(said) - begun])

    def rest(self) -> Hidden[bytes]:
        """Give what was held back, for it ends there."""
        held, self._held = self._held, Hidden(b"")
        return held

    def over_all(self, text: str) -> str:
        """Return a text without the secret; half of a surrogate pair may be in it."""
        return self._blotted(text.encode(errors="surrogatepass")).reveal().decode(errors="surrogatepass")
