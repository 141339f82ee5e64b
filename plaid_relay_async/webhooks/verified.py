"""A webhook that has been verified."""

from attrs import field, frozen


@frozen
class VerifiedWebhook:
    """A webhook that Plaid has signed.

    Attributes:
        body: the body, as received.
        body_sha256: its SHA-256, in hexadecimal digits. Webhooks have no ID, so it identifies the content:
            Plaid may deliver a webhook repeatedly.
        issued_at: when Plaid signed it, in seconds of Unix time.
    """

    body: bytes = field(repr=False)
    body_sha256: str
    issued_at: int
