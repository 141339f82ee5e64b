"""Encryption of the journal's tokens, and keyed digests that name pairs and tokens.

Tokens are encrypted with the caller's keys. Digests use the pair key: a random key that the journal stores,
encrypted in the same way. So rotating the caller's keys doesn't change the names of pairs.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from base64 import b64decode, b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography.fernet import Fernet, InvalidToken

from plaid_relay_async import private_files
from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.redaction import Hidden, strip_traceback

if TYPE_CHECKING:
    from collections.abc import Sequence

_KEY_VARIABLE = "PLAID_RELAY_KEY"
_PLAIN_PREFIX: Final = "clear:"
_BASE64_PREFIX: Final = "clear-base64:"
_UTF8: Final = ("utf-8", "surrogatepass")  # a token is any JSON string, so it may have lone surrogates
_logger = logging.getLogger("plaid_relay_async.journal")


class Keyring:
    """Encrypts with the first of its keys, and decrypts with any of them.

    Without a key, secrets are stored unencrypted, with a prefix that says so.

    Args:
        keys: the keys.
        store: the word for what is encrypted.
    """

    def __init__(self, keys: Sequence[str | bytes], store: str = "journal") -> None:
        self._store = store
        self._fernets = [_parse_key(key) for key in keys]

    def __bool__(self) -> bool:
        """Whether there is a key."""
        return bool(self._fernets)

    def encrypt(self, secret: str) -> str:
        """Return the secret as it is stored."""
        if self:
            return self.encrypt_bytes(secret.encode(*_UTF8)).decode()
        if secret.isprintable():
            # The prefixes can't begin a Fernet token, so a stored secret shows how it is stored.
            return _PLAIN_PREFIX + secret
        # A database may reject characters such as NUL.
        return _BASE64_PREFIX + b64encode(secret.encode(*_UTF8)).decode()

    @strip_traceback
    def decrypt(self, stored: str) -> str:
        """Return the secret from its stored form.

        Raises:
            ConfigurationError: no key decrypts it.
        """
        if stored.startswith(_PLAIN_PREFIX):
            return stored.removeprefix(_PLAIN_PREFIX)
        if stored.startswith(_BASE64_PREFIX):
            return b64decode(stored.removeprefix(_BASE64_PREFIX)).decode(*_UTF8)
        if not self:
            raise ConfigurationError(
                f"the {self._store} is encrypted: pass its key as key= or {_KEY_VARIABLE}"
            )
        if (secret := self.decrypt_bytes(stored.encode(*_UTF8))) is None:
            raise ConfigurationError(f"the key (key= or {_KEY_VARIABLE}) doesn't match this {self._store}")
        return secret.decode(*_UTF8)

    def encrypt_bytes(self, secret: bytes) -> bytes:
        """Return a secret encrypted with the first key; there must be one."""
        return self._fernets[0].encrypt(secret)

    def decrypt_bytes(self, encrypted: bytes) -> bytes | None:
        """Return a secret from its encrypted form, or `None` if no key decrypts it."""
        for fernet in self._fernets:
            with contextlib.suppress(InvalidToken):
                return fernet.decrypt(encrypted)
        return None

    @staticmethod
    def is_unencrypted(stored: str) -> bool:
        """Return whether a secret is stored unencrypted."""
        return stored.startswith((_PLAIN_PREFIX, _BASE64_PREFIX))

    def is_up_to_date(self, stored: str) -> bool:
        """Return whether a secret is encrypted with the first key; always true without a key."""
        if not self._fernets:
            return True
        try:
            self._fernets[0].decrypt(stored)
        except InvalidToken:
            return False
        return True


@strip_traceback
def load_keyring(
    keys: str | bytes | Sequence[str | bytes] | Path | None, store: str = "journal", *, required: bool = False
) -> Keyring:
    """Return a keyring from an argument, a file, or PLAID_RELAY_KEY.

    Args:
        keys: one or several Fernet keys, separated by commas or whitespace in a string, or the path of a file
            that contains them; `None` for PLAID_RELAY_KEY.
        store: the word for what is encrypted.
        required: whether to raise an error, instead of logging a warning, if there is no key.

    Raises:
        ConfigurationError: a key is invalid, the argument contains no key, a required key is missing, or the
            file can't be read, or other users may read it.
    """
    if keys is None:
        keyring = Keyring(_split_keys(os.environ.get(_KEY_VARIABLE, "")), store)
    elif isinstance(keys, Path):
        keyring = Keyring(_read_key_file(keys), store)
    elif not (key_list := _split_keys(keys) if isinstance(keys, str | bytes) else keys):
        raise ConfigurationError(f"key= contains no key: omit it to use {_KEY_VARIABLE}")
    else:
        keyring = Keyring(key_list, store)
    if required and not keyring:
        raise ConfigurationError(
            f"the {store} needs a key (key= or {_KEY_VARIABLE}): without one, its tokens would be unencrypted"
        )
    if not keyring:
        _logger.warning("the %s has no key (key= or %s): it is stored unencrypted", store, _KEY_VARIABLE)
    return keyring


def _split_keys(text: str | bytes) -> list[str]:
    decoded = text.decode(errors="replace") if isinstance(text, bytes) else text
    return decoded.replace(",", " ").split()


def _read_key_file(path: Path) -> list[str]:
    try:
        status, text = path.stat(), path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it isn't text"
        raise ConfigurationError(f"{path}: the key can't be read: {reason}") from None
    if private_files.is_open_to_others(status):
        raise ConfigurationError(
            f"{path}: file permissions are too open, and it contains the key; chmod 600 first"
        )
    if not (keys := _split_keys(text)):
        raise ConfigurationError(f"{path}: contains no key")
    return keys


def _parse_key(key: object) -> Fernet:
    try:
        return Fernet(key.strip() if isinstance(key, str | bytes) else b"")
    except ValueError:
        pass
    # It is raised outside of the handler, so that no traceback leads to the key.
    raise ConfigurationError(
        f"a key (key= or {_KEY_VARIABLE}) must be 32 random bytes in URL-safe base64, "
        "as returned by cryptography's Fernet.generate_key()"
    )


class Digests:
    """Keyed digests that name pairs and tokens without revealing them.

    Args:
        pair_key: the key, in hexadecimal digits.
    """

    def __init__(self, pair_key: str) -> None:
        self._key = Hidden(bytes.fromhex(pair_key))

    def pair_digest(self, namespace: str, report_tokens: Sequence[str], partner: str) -> str:
        """Return the digest of a pair in a namespace; the order of the report's tokens doesn't matter."""
        return self.keyed_hash(b"pair", namespace, partner, *sorted(report_tokens))

    def token_digest(self, relay_token: str) -> str:
        """Return the digest of a relay token."""
        return self.keyed_hash(b"token", relay_token)

    def keyed_hash(self, kind: bytes, *parts: str) -> str:
        """Return a digest of texts; different kinds of texts have different digests."""
        # The length prefixes keep different parts from having the same concatenation.
        data = "".join(f"{len(part)}:{part}" for part in parts).encode(*_UTF8)
        return hashlib.blake2b(data, digest_size=16, key=self._key.reveal(), person=kind).hexdigest()
