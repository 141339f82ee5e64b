"""Masks Plaid's secret in responses, in case a server quotes the headers of the request."""

from __future__ import annotations

from typing import Final

from plaid_relay_async.errors import Hidden

# Plaid's secrets have 30 characters. A shorter one, of a simulator, might occur in a token by chance.
_MIN_MASKED_LENGTH: Final = 16


class Mask:
    """Replaces each byte of the secret with an asterisk, also where chunks split the secret."""

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
