"""What keeps the journal's secrets: keys of the caller's, and a key for pairs that the journal has itself."""

from __future__ import annotations

import hashlib
import logging
import os
from base64 import b64decode, b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from plaid_relay_async.errors import ConfigurationError, Hidden, strip_traceback

if TYPE_CHECKING:
    from collections.abc import Sequence

_KEY_VARIABLE = "PLAID_RELAY_KEY"
_PLAIN_PREFIX: Final = "clear:"
_BASE64_PREFIX: Final = "clear-base64:"
_UTF8: Final = ("utf-8", "surrogatepass")  # a token is whatever Plaid says
_logger = logging.getLogger("plaid_relay_async.journal")


class Keyring:
    """Encrypts with the first of its keys, and decrypts with any.

    Without a key it leaves things as they are, but for a mark that says so.
    """

    def __init__(self, keys: Sequence[str | bytes]) -> None:
        self._fernets = [_parse_key(key) for key in keys]
        self._multi_fernet = MultiFernet(self._fernets) if self._fernets else None

    def __bool__(self) -> bool:
        """Whether there is a key."""
        return self._multi_fernet is not None

    def encrypt(self, secret: str) -> str:
        """Give what may be stored."""
        if self._multi_fernet is not None:
            return self._multi_fernet.encrypt(secret.encode(*_UTF8)).decode()
        if secret.isprintable():
            return _PLAIN_PREFIX + secret
        return (
            _BASE64_PREFIX + b64encode(secret.encode(*_UTF8)).decode()
        )  # what a database may not take as it is

    @strip_traceback
    def decrypt(self, stored: str) -> str:
        """Give the secret.

        Raises:
            ConfigurationError: there is no key that opens it.
        """
        if stored.startswith(_PLAIN_PREFIX):
            return stored.removeprefix(_PLAIN_PREFIX)
        if stored.startswith(_BASE64_PREFIX):
            return b64decode(stored.removeprefix(_BASE64_PREFIX)).decode(*_UTF8)
        if self._multi_fernet is None:
            raise ConfigurationError(f"the journal is encrypted: give its key, as key= or {_KEY_VARIABLE}")
        try:
            return self._multi_fernet.decrypt(stored).decode(*_UTF8)
        except InvalidToken:
            pass
        raise ConfigurationError(
            f"the key (key= or {_KEY_VARIABLE}) doesn't open this journal: it has another"
        )

    @staticmethod
    def is_unencrypted(stored: str) -> bool:
        """Tell whether that lies in clear."""
        return stored.startswith((_PLAIN_PREFIX, _BASE64_PREFIX))

    def is_up_to_date(self, stored: str) -> bool:
        """Tell whether that is how it would be stored today."""
        if not self._fernets:
            return True
        try:
            self._fernets[0].decrypt(stored)
        except InvalidToken:
            return False
        return True


@strip_traceback
def load_keyring(keys: str | bytes | Sequence[str | bytes] | Path | None) -> Keyring:
    """Make a keyring of an argument, of a file, or of PLAID_RELAY_KEY; commas or blanks separate several.

    Raises:
        ConfigurationError: one of them isn't a key, the argument holds none, or the file can't be read, or
            others may read it.
    """
    if keys is None:
        ring = Keyring(_split_keys(os.environ.get(_KEY_VARIABLE, "")))
    elif isinstance(keys, Path):
        ring = Keyring(_read_key_file(keys))
    elif not (given := _split_keys(keys) if isinstance(keys, str | bytes) else keys):
        raise ConfigurationError(f"key= holds no key: leave it away, and {_KEY_VARIABLE} is asked for")
    else:
        ring = Keyring(given)
    if not ring:
        _logger.warning(
            "the journal has no key (key= or %s): tokens lie in it as they are, readable by its owner alone",
            _KEY_VARIABLE,
        )
    return ring


def _split_keys(text: str | bytes) -> list[str]:
    written = text.decode(errors="replace") if isinstance(text, bytes) else text
    return written.replace(",", " ").split()


def _read_key_file(path: Path) -> list[str]:
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "isn't text"
        raise ConfigurationError(f"{path}: the key can't be read: {reason}") from None
    if os.name == "posix" and mode & 0o077:
        raise ConfigurationError(f"{path}: others may read it, and the key lies in it; chmod 600 first")
    if not (keys := _split_keys(text)):
        raise ConfigurationError(f"{path}: holds no key")
    return keys


def _parse_key(key: object) -> Fernet:
    try:
        return Fernet(key.strip() if isinstance(key, str | bytes) else b"")
    except ValueError:
        pass
    raise ConfigurationError(
        f"a key of the journal (key= or {_KEY_VARIABLE}) must be 32 random bytes in URL-safe base64, "
        "such as cryptography's Fernet.generate_key() gives"
    )


class Digests:
    """Names for pairs and tokens that tell nothing to whoever doesn't have the journal's key for them."""

    def __init__(self, pair_key: str) -> None:
        self._key = Hidden(bytes.fromhex(pair_key))

    def pair_digest(self, namespace: str, report_tokens: Sequence[str], partner: str) -> str:
        """Give the name of a pair of report and partner; the order of the report's tokens is no matter."""
        return self._keyed_hash(b"pair", namespace, partner, *sorted(report_tokens))

    def token_digest(self, relay_token: str) -> str:
        """Give the name of a relay token."""
        return self._keyed_hash(b"token", relay_token)

    def _keyed_hash(self, kind: bytes, *parts: str) -> str:
        data = "".join(f"{len(word)}:{word}" for word in parts).encode(*_UTF8)
        return hashlib.blake2b(data, digest_size=16, key=self._key.reveal(), person=kind).hexdigest()
