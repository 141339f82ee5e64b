"""What keeps the journal's secrets: keys of the caller's, and a key for pairs that the journal has itself."""

from __future__ import annotations

import hashlib
import logging
import os
from base64 import b64decode, b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from plaid_relay_async.errors import ConfigurationError, Hidden, sealed

if TYPE_CHECKING:
    from collections.abc import Sequence

_VARIABLE = "PLAID_RELAY_KEY"
_CLEAR: Final = "clear:"
_CLEAR_BYTES: Final = "clear-base64:"
_ANY: Final = ("utf-8", "surrogatepass")  # a token is whatever Plaid says
_logger = logging.getLogger("plaid_relay_async.journal")


class Keyring:
    """Encrypts with the first of its keys, and decrypts with any.

    Without a key it leaves things as they are, but for a mark that says so.
    """

    def __init__(self, keys: Sequence[str | bytes]) -> None:
        self._fernets = [_fernet(key) for key in keys]
        self._all = MultiFernet(self._fernets) if self._fernets else None

    def __bool__(self) -> bool:
        """Whether there is a key."""
        return self._all is not None

    def lock(self, secret: str) -> str:
        """Give what may be stored."""
        if self._all is not None:
            return self._all.encrypt(secret.encode(*_ANY)).decode()
        if secret.isprintable():
            return _CLEAR + secret
        return (
            _CLEAR_BYTES + b64encode(secret.encode(*_ANY)).decode()
        )  # what a database may not take as it is

    @sealed
    def open(self, stored: str) -> str:
        """Give the secret.

        Raises:
            ConfigurationError: there is no key that opens it.
        """
        if stored.startswith(_CLEAR):
            return stored.removeprefix(_CLEAR)
        if stored.startswith(_CLEAR_BYTES):
            return b64decode(stored.removeprefix(_CLEAR_BYTES)).decode(*_ANY)
        if self._all is None:
            raise ConfigurationError(f"the journal is encrypted: give its key, as key= or {_VARIABLE}")
        try:
            return self._all.decrypt(stored).decode(*_ANY)
        except InvalidToken:
            pass
        raise ConfigurationError(f"the key (key= or {_VARIABLE}) doesn't open this journal: it has another")

    @staticmethod
    def is_clear(stored: str) -> bool:
        """Tell whether that lies in clear."""
        return stored.startswith((_CLEAR, _CLEAR_BYTES))

    def is_up_to_date(self, stored: str) -> bool:
        """Tell whether that is how it would be stored today."""
        if not self._fernets:
            return True
        try:
            self._fernets[0].decrypt(stored)
        except InvalidToken:
            return False
        return True


@sealed
def keyring(keys: str | bytes | Sequence[str | bytes] | Path | None) -> Keyring:
    """Make a keyring of an argument, of a file, or of PLAID_RELAY_KEY; commas or blanks separate several.

    Raises:
        ConfigurationError: one of them isn't a key, the argument holds none, or the file can't be read, or
            others may read it.
    """
    if keys is None:
        ring = Keyring(_split(os.environ.get(_VARIABLE, "")))
    elif isinstance(keys, Path):
        ring = Keyring(_in_file(keys))
    elif not (given := _split(keys) if isinstance(keys, str | bytes) else keys):
        raise ConfigurationError(f"key= holds no key: leave it away, and {_VARIABLE} is asked for")
    else:
        ring = Keyring(given)
    if not ring:
        _logger.warning(
            "the journal has no key (key= or %s): tokens lie in it as they are, readable by its owner alone",
            _VARIABLE,
        )
    return ring


def _split(text: str | bytes) -> list[str]:
    written = text.decode(errors="replace") if isinstance(text, bytes) else text
    return written.replace(",", " ").split()


def _in_file(path: Path) -> list[str]:
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "isn't text"
        raise ConfigurationError(f"{path}: the key can't be read: {reason}") from None
    if os.name == "posix" and mode & 0o077:
        raise ConfigurationError(f"{path}: others may read it, and the key lies in it; chmod 600 first")
    if not (keys := _split(text)):
        raise ConfigurationError(f"{path}: holds no key")
    return keys


def _fernet(key: object) -> Fernet:
    try:
        return Fernet(key.strip() if isinstance(key, str | bytes) else b"")
    except ValueError:
        pass
    raise ConfigurationError(
        f"a key of the journal (key= or {_VARIABLE}) must be 32 random bytes in URL-safe base64, "
        "such as cryptography's Fernet.generate_key() gives"
    )


class Digests:
    """Names for pairs and tokens that tell nothing to whoever doesn't have the journal's key for them."""

    def __init__(self, pair_key: str) -> None:
        self._key = Hidden(bytes.fromhex(pair_key))

    def pair(self, namespace: str, report_tokens: Sequence[str], partner: str) -> str:
        """Give the name of a pair of report and partner; the order of the report's tokens is no matter."""
        return self._digest(b"pair", namespace, partner, *sorted(report_tokens))

    def token(self, relay_token: str) -> str:
        """Give the name of a relay token."""
        return self._digest(b"token", relay_token)

    def _digest(self, kind: bytes, *words: str) -> str:
        data = "".join(f"{len(word)}:{word}" for word in words).encode(*_ANY)
        return hashlib.blake2b(data, digest_size=16, key=self._key.reveal(), person=kind).hexdigest()
