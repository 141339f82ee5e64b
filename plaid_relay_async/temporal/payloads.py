"""Encryption of what a run stores at the Temporal server: inputs, results, failures and summaries.

The keys are those of the journal. Identifiers, search attributes, headers, the class names of failures, and
the reasons of cancellations are stored unencrypted, so they must contain no token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import frozen
from temporalio.api.common.v1 import Payload
from temporalio.converter import DataConverter, DefaultFailureConverterWithEncodedAttributes, PayloadCodec

from plaid_relay_async.errors import ConfigurationError
from plaid_relay_async.journal.encryption import Keyring, load_keyring
from plaid_relay_async.redaction import strip_traceback

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from temporalio.client import Client

_ENCODING: Final = b"binary/plaid-relay-v1"


def data_converter(key: str | bytes | Sequence[str | bytes] | Path | None = None) -> DataConverter:
    """Create the data converter of a Temporal client, which encrypts all payloads.

    All processes of a run need the same keys. To rotate them, first add the new key to each process as its
    last key, and then make it the first one. Payloads under an old key can be read while that key is listed.

    Args:
        key: a Fernet key, several keys, or the `Path` of a file (0600) that contains them, as for a
            `Journal`; by default PLAID_RELAY_KEY. The first key encrypts, and each decrypts.

    Raises:
        ConfigurationError: there is no key, or a key is invalid.
    """
    keyring = load_keyring(key, "run on Temporal", required=True)
    # By default, the text and the traceback of a failure are stored outside of its payloads.
    return DataConverter(
        payload_codec=_EncryptingCodec(keyring),
        failure_converter_class=DefaultFailureConverterWithEncodedAttributes,
    )


def check_encryption(temporal: Client) -> None:
    """Check that a client of Temporal has the data converter of `data_converter`.

    Raises:
        ConfigurationError: it has another one, with which report tokens could be stored unencrypted.
    """
    converter = temporal.data_converter
    encrypts_failures = issubclass(
        converter.failure_converter_class, DefaultFailureConverterWithEncodedAttributes
    )
    if not isinstance(converter.payload_codec, _EncryptingCodec) or not encrypts_failures:
        raise ConfigurationError(
            "the Temporal client doesn't encrypt what it stores at the server",
            advice="Connect it with data_converter=plaid_relay_async.temporal.data_converter().",
        )


@frozen
class _EncryptingCodec(PayloadCodec):
    """Encrypts whole payloads, with their metadata, and accepts no payload that isn't encrypted."""

    keyring: Keyring

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Return encrypted payloads."""
        # A payload has a few hundred bytes, so a thread would cost more time than the encryption.
        return [
            Payload(
                metadata={"encoding": _ENCODING},
                data=self.keyring.encrypt_bytes(payload.SerializeToString()),
            )
            for payload in payloads
        ]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Return decrypted payloads.

        Raises:
            ConfigurationError: a payload isn't encrypted, or no key decrypts it.
        """
        try:
            return self._decrypt(payloads)
        finally:
            del payloads  # a traceback with locals would show one that isn't encrypted

    @strip_traceback
    def _decrypt(self, payloads: Sequence[Payload]) -> list[Payload]:
        decrypted = []
        for payload in payloads:
            # An unencrypted payload could come from anyone who can reach the server.
            if payload.metadata.get("encoding") != _ENCODING:
                raise ConfigurationError(
                    "a payload at the Temporal server isn't encrypted in the form that this release knows",
                    advice="Connect each Temporal client of a run with temporal.data_converter(), and run "
                    "the same release everywhere.",
                )
            if (data := self.keyring.decrypt_bytes(payload.data)) is None:
                raise ConfigurationError(
                    "no key (key= or PLAID_RELAY_KEY) decrypts a payload at the Temporal server",
                    advice="Use the same keys in all processes of a run, and after a rotation also the old "
                    "key, after the new one.",
                )
            decrypted.append(Payload.FromString(data))
        return decrypted
