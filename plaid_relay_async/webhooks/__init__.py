"""Webhooks: those that Plaid sends are verified, and become events.

It requires the extra `webhooks`. `RelayClient.webhooks` looks up the keys as well.

See https://plaid.com/docs/api/webhooks/webhook-verification/.
"""

try:
    from plaid_relay_async.models.webhooks import (
        AssetsErrorWebhook,
        AssetsProductReadyWebhook,
        ItemErrorWebhook,
        ItemLoginRepairedWebhook,
        NewAccountsAvailableWebhook,
        PendingDisconnectWebhook,
        PendingExpirationWebhook,
        UnknownWebhook,
        UserAccountRevokedWebhook,
        UserPermissionRevokedWebhook,
        WebhookEvent,
        WebhookUpdateAcknowledgedWebhook,
    )
    from plaid_relay_async.webhooks.errors import (
        InvalidHeadersError,
        RawBodyRequiredError,
        RefusalReason,
        ReportMismatchError,
        StaleWebhookError,
        WebhookDecodeError,
        WebhookError,
        WebhookKeyLookupError,
        WebhookRefusedError,
    )
    from plaid_relay_async.webhooks.inbox import Inbox, IncomingWebhook, Lease, StoredWebhook, WebhookState
    from plaid_relay_async.webhooks.keys import VerificationKey
    from plaid_relay_async.webhooks.memory import MemoryInbox
    from plaid_relay_async.webhooks.parsing import parse
    from plaid_relay_async.webhooks.verification import verify
    from plaid_relay_async.webhooks.verified import VerifiedWebhook
except ModuleNotFoundError as error:
    message = f"webhooks need {error.name}: pip install 'plaid_relay_async[webhooks]'"
    raise ModuleNotFoundError(message, name=error.name) from None

__all__ = [
    "AssetsErrorWebhook",
    "AssetsProductReadyWebhook",
    "Inbox",
    "IncomingWebhook",
    "InvalidHeadersError",
    "ItemErrorWebhook",
    "ItemLoginRepairedWebhook",
    "Lease",
    "MemoryInbox",
    "NewAccountsAvailableWebhook",
    "PendingDisconnectWebhook",
    "PendingExpirationWebhook",
    "RawBodyRequiredError",
    "RefusalReason",
    "ReportMismatchError",
    "StaleWebhookError",
    "StoredWebhook",
    "UnknownWebhook",
    "UserAccountRevokedWebhook",
    "UserPermissionRevokedWebhook",
    "VerificationKey",
    "VerifiedWebhook",
    "WebhookDecodeError",
    "WebhookError",
    "WebhookEvent",
    "WebhookKeyLookupError",
    "WebhookRefusedError",
    "WebhookState",
    "WebhookUpdateAcknowledgedWebhook",
    "parse",
    "verify",
]
