"""Records of the webhooks that Plaid sends about Asset Reports and Items.

See https://plaid.com/docs/api/products/assets/#webhooks and https://plaid.com/docs/api/items/#webhooks. Any
other webhook is an `UnknownWebhook`, which keeps its fields. That includes those of the relay, which Plaid
doesn't publish.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

from attrs import field, frozen

from plaid_relay_async.models import values
from plaid_relay_async.models.fields import unknown_fields
from plaid_relay_async.models.report import Cause

if TYPE_CHECKING:
    from collections.abc import Mapping


@frozen(kw_only=True)
class _Webhook:
    webhook_type: str
    webhook_code: str
    # Plaid's document requires it, and an example on Plaid's page omits it.
    environment: str | None = None
    additional_properties: dict[str, Any] = unknown_fields()


@frozen(kw_only=True)
class AssetsProductReadyWebhook(_Webhook):
    """`ASSETS`, `PRODUCT_READY`: an Asset Report is ready to be read.

    A webhook contains no token. Read the report with the token that was returned with this ID.

    Attributes:
        asset_report_id: the ID that the client's `create` or `refresh` returned for the report.
        report_type: which version is ready; see `AssetReportType`.
        user_id: the ID of a user of Plaid's user API.
        webhook_type: `ASSETS`.
        webhook_code: `PRODUCT_READY`.
        environment: `sandbox` or `production`.
        additional_properties: other fields that Plaid sent.
    """

    asset_report_id: str
    report_type: Annotated[str, values.AssetReportType] | None = None
    user_id: str | None = None


@frozen(kw_only=True)
class AssetsErrorWebhook(_Webhook):
    """`ASSETS`, `ERROR`: the generation of an Asset Report has failed.

    Attributes:
        asset_report_id: the ID of the report.
        error: the error, of the type `ASSET_REPORT_ERROR`. Its message may quote access tokens.
        user_id: the ID of a user of Plaid's user API.
        webhook_type: `ASSETS`.
        webhook_code: `ERROR`.
        environment: `sandbox` or `production`.
        additional_properties: other fields that Plaid sent.
    """

    asset_report_id: str
    error: Cause | None = field(repr=False)
    user_id: str | None = None


@frozen(kw_only=True)
class _ItemWebhook(_Webhook):
    item_id: str
    error: Cause | None = field(default=None, repr=False)


@frozen(kw_only=True)
class ItemErrorWebhook(_ItemWebhook):
    """`ITEM`, `ERROR`: an Item is in a state that the user or the bank has to change."""


@frozen(kw_only=True)
class ItemLoginRepairedWebhook(_ItemWebhook):
    """`ITEM`, `LOGIN_REPAIRED`: an Item works again, without an action in this application."""


@frozen(kw_only=True)
class NewAccountsAvailableWebhook(_ItemWebhook):
    """`ITEM`, `NEW_ACCOUNTS_AVAILABLE`: the user has accounts that aren't shared."""


@frozen(kw_only=True)
class PendingDisconnectWebhook(_ItemWebhook):
    """`ITEM`, `PENDING_DISCONNECT`: an Item in the USA or Canada will be disconnected.

    Attributes:
        reason: why; see `PendingDisconnectReason`.
    """

    reason: Annotated[str, values.PendingDisconnectReason]


@frozen(kw_only=True)
class PendingExpirationWebhook(_ItemWebhook):
    """`ITEM`, `PENDING_EXPIRATION`: the consent for an Item in Europe will expire.

    Attributes:
        consent_expiration_time: when it expires.
    """

    consent_expiration_time: datetime


@frozen(kw_only=True)
class UserPermissionRevokedWebhook(_ItemWebhook):
    """`ITEM`, `USER_PERMISSION_REVOKED`: the user has revoked the access to an Item."""


@frozen(kw_only=True)
class UserAccountRevokedWebhook(_ItemWebhook):
    """`ITEM`, `USER_ACCOUNT_REVOKED`: the user has revoked the access to an account.

    Attributes:
        account_id: the ID of the account.
    """

    account_id: str


@frozen(kw_only=True)
class WebhookUpdateAcknowledgedWebhook(_ItemWebhook):
    """`ITEM`, `WEBHOOK_UPDATE_ACKNOWLEDGED`: the webhook URL of an Item was changed; sent to the new one.

    Attributes:
        new_webhook_url: the new URL.
    """

    new_webhook_url: str = field(repr=False)


@frozen(kw_only=True)
class UnknownWebhook:
    """Any other webhook, with all of its fields.

    Attributes:
        additional_properties: the fields that Plaid sent.
    """

    additional_properties: dict[str, Any] = unknown_fields()

    @property
    def webhook_type(self) -> str | None:
        """The type, or `None` if the webhook has none that is a string."""
        return self._text("webhook_type")

    @property
    def webhook_code(self) -> str | None:
        """The code, or `None` if the webhook has none that is a string."""
        return self._text("webhook_code")

    @property
    def environment(self) -> str | None:
        """The environment, or `None` if the webhook has none that is a string."""
        return self._text("environment")

    def _text(self, name: str) -> str | None:
        value = self.additional_properties.get(name)
        return value if isinstance(value, str) else None

    def __repr__(self) -> str:
        return f"UnknownWebhook(webhook_type={self.webhook_type!r}, webhook_code={self.webhook_code!r})"


WebhookEvent: TypeAlias = (
    AssetsProductReadyWebhook
    | AssetsErrorWebhook
    | ItemErrorWebhook
    | ItemLoginRepairedWebhook
    | NewAccountsAvailableWebhook
    | PendingDisconnectWebhook
    | PendingExpirationWebhook
    | UserPermissionRevokedWebhook
    | UserAccountRevokedWebhook
    | WebhookUpdateAcknowledgedWebhook
    | UnknownWebhook
)
"""The record of a webhook."""

WEBHOOK_RECORDS: Final[Mapping[tuple[str, str], type[WebhookEvent]]] = {
    ("ASSETS", "PRODUCT_READY"): AssetsProductReadyWebhook,
    ("ASSETS", "ERROR"): AssetsErrorWebhook,
    ("ITEM", "ERROR"): ItemErrorWebhook,
    ("ITEM", "LOGIN_REPAIRED"): ItemLoginRepairedWebhook,
    ("ITEM", "NEW_ACCOUNTS_AVAILABLE"): NewAccountsAvailableWebhook,
    ("ITEM", "PENDING_DISCONNECT"): PendingDisconnectWebhook,
    ("ITEM", "PENDING_EXPIRATION"): PendingExpirationWebhook,
    ("ITEM", "USER_PERMISSION_REVOKED"): UserPermissionRevokedWebhook,
    ("ITEM", "USER_ACCOUNT_REVOKED"): UserAccountRevokedWebhook,
    ("ITEM", "WEBHOOK_UPDATE_ACKNOWLEDGED"): WebhookUpdateAcknowledgedWebhook,
}
"""The record of each type and code that has one of its own."""
