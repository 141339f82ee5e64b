"""Webhooks: those that Plaid sends are verified, stored, and delivered to handlers as events.

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
        NotStoredReason,
        RawBodyRequiredError,
        RefusalReason,
        ReportMismatchError,
        StaleWebhookError,
        WebhookDecodeError,
        WebhookError,
        WebhookKeyLookupError,
        WebhookNotStoredError,
        WebhookRefusedError,
    )
    from plaid_relay_async.webhooks.inbox import Inbox, IncomingWebhook, Lease, StoredWebhook, WebhookState
    from plaid_relay_async.webhooks.keys import VerificationKey
    from plaid_relay_async.webhooks.memory import MemoryInbox
    from plaid_relay_async.webhooks.parsing import parse
    from plaid_relay_async.webhooks.receiver import ReceiverResponse, WebhookReceiver
    from plaid_relay_async.webhooks.recovery import Recovery
    from plaid_relay_async.webhooks.router import Delivery, RetrievedPair, WebhookRouter
    from plaid_relay_async.webhooks.verification import verify
    from plaid_relay_async.webhooks.verified import VerifiedWebhook
except ModuleNotFoundError as error:
    message = f"webhooks need {error.name}: pip install 'plaid_relay_async[webhooks]'"
    raise ModuleNotFoundError(message, name=error.name) from None

__all__ = [
    "AssetsErrorWebhook",
    "AssetsProductReadyWebhook",
    "Delivery",
    "Inbox",
    "IncomingWebhook",
    "InvalidHeadersError",
    "ItemErrorWebhook",
    "ItemLoginRepairedWebhook",
    "Lease",
    "MemoryInbox",
    "NewAccountsAvailableWebhook",
    "NotStoredReason",
    "PendingDisconnectWebhook",
    "PendingExpirationWebhook",
    "RawBodyRequiredError",
    "ReceiverResponse",
    "Recovery",
    "RefusalReason",
    "ReportMismatchError",
    "RetrievedPair",
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
    "WebhookNotStoredError",
    "WebhookReceiver",
    "WebhookRefusedError",
    "WebhookRouter",
    "WebhookState",
    "WebhookUpdateAcknowledgedWebhook",
    "parse",
    "verify",
]
