"""The texts of the console about each operation and its inputs; `forms` adds what the endpoint table says.

A field of a request that has no text here has no input on the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import field, frozen

from plaid_relay_async import codec
from plaid_relay_async.codec import Endpoint
from plaid_relay_async.models.values import ItemRemoveReason


@frozen(kw_only=True)
class InputText:
    """What the page shows of an input, besides what the record says of its field.

    Attributes:
        hint: a sentence; `{min}` and `{max}` are the field's bounds.
        env: for a token, the environment variable from which the code reads it; the page never stores it.
        example: the value in the code until the user enters one.
        preset: whether the page fills in the example.
        choices: the values to choose from.
        one_item: whether the page takes a single item of a list.
        required: whether the page requires it although the record has an alternative.
    """

    hint: str
    env: str | None = None
    example: str | None = None
    preset: bool = False
    choices: tuple[str, ...] = ()
    one_item: bool = False
    required: bool = False


@frozen(kw_only=True)
class OperationText:
    """What the page shows of an operation.

    Attributes:
        endpoint: the operation.
        title: its name.
        caller: who calls it.
        about: what it does.
        creates: what each call of a non-idempotent operation creates.
        method: the client's method for the code.
        batch_method: the client's method for many calls.
        inputs: the texts of its inputs by the names of the fields, such as `options.webhook`.
    """

    endpoint: Endpoint[Any, Any]
    title: str
    caller: str
    about: str
    creates: str | None = None
    method: str
    batch_method: str | None = None
    inputs: Mapping[str, InputText] = field(factory=dict)


# By the first part of a path: the title of the group, and the page of Plaid's documentation.
GROUPS: Final = {
    "credit": ("Relay", "https://plaid.com/docs/api/products/assets/#{anchor}"),
    "asset_report": ("Asset reports", "https://plaid.com/docs/api/products/assets/#{anchor}"),
    "item": ("Items", "https://plaid.com/docs/api/items/#{anchor}"),
    "sandbox": ("Sandbox", "https://plaid.com/docs/api/sandbox/#{anchor}"),
    "webhook_verification_key": ("Webhooks", "https://plaid.com/docs/api/webhooks/webhook-verification/"),
    "beta": ("Webhooks", "https://plaid.com/docs/api/webhooks/webhook-events/"),
}

# By the token in a response: the operations that the page offers next. The token is the first input of each.
NEXT_OPERATIONS: Final = {
    "relay_token": (codec.RELAY_GET, codec.RELAY_PDF_GET, codec.RELAY_REFRESH, codec.RELAY_REMOVE),
    "asset_report_token": (codec.RELAY_CREATE, codec.ASSET_REPORT_GET, codec.ASSET_REPORT_PDF_GET),
    "access_token": (codec.ASSET_REPORT_CREATE,),
    "public_token": (codec.ITEM_PUBLIC_TOKEN_EXCHANGE,),
}

_LENDER: Final = "the lender"
_PARTNER: Final = "the partner"
_TESTERS: Final = "testers"

_RELAY_TOKEN: Final = {
    "relay_token": InputText(env="RELAY_TOKEN", hint="The token that the lender sent you."),
}
_REPORT_TOKEN: Final = {
    "asset_report_token": InputText(
        env="REPORT_TOKEN", required=True, hint="From the response of the report’s creation."
    ),
}
_ACCESS_TOKEN: Final = {
    "access_token": InputText(env="ACCESS_TOKEN", hint="The Item’s access token, from the exchange."),
}
_INSIGHTS: Final = {
    "include_insights": InputText(hint="Include categories, merchants, and other insights."),
}
_DAYS_TO_INCLUDE: Final = {
    "options.days_to_include": InputText(hint="Include only the last days of the report, {min} to {max}."),
}

OPERATION_TEXTS: Final = (
    OperationText(
        endpoint=codec.RELAY_CREATE,
        title="Share a report",
        caller=_LENDER,
        about="Shares an Asset Report with one partner, who reads it with a separate relay token.",
        creates="relay token",
        method="relay.create",
        batch_method="relay.create_many",
        inputs={
            "report_tokens": InputText(
                env="REPORT_TOKEN",
                one_item=True,
                hint="One asset report token. It is sent as a list with one item.",
            ),
            "secondary_client_id": InputText(
                example="ce5bd328dcd34123456", hint="The partner’s client ID at Plaid."
            ),
            "webhook": InputText(hint="Plaid notifies this URL when the partner has fetched the report."),
        },
    ),
    OperationText(
        endpoint=codec.RELAY_GET,
        title="Read a shared report",
        caller=_PARTNER,
        about="Reads a report that was shared with you.",
        method="relay.get",
        batch_method="relay.get_many",
        inputs=_RELAY_TOKEN | _INSIGHTS,
    ),
    OperationText(
        endpoint=codec.RELAY_PDF_GET,
        title="Shared report as PDF",
        caller=_PARTNER,
        about="Downloads a report that was shared with you as a PDF. At Plaid this operation is in beta.",
        method="relay.download_pdf",
        batch_method="relay.get_pdf_many",
        inputs=_RELAY_TOKEN,
    ),
    OperationText(
        endpoint=codec.RELAY_REFRESH,
        title="Refresh a shared report",
        caller=_PARTNER,
        about="Requests a new report with recent data in place of one that was shared with you. Each call "
        "creates another report, and its response has the relay token to use from then on.",
        creates="report",
        method="relay.refresh",
        batch_method="relay.refresh_many",
        inputs=_RELAY_TOKEN
        | {"webhook": InputText(hint="Plaid notifies this URL when the new report is ready.")},
    ),
    OperationText(
        endpoint=codec.RELAY_REMOVE,
        title="Stop sharing",
        caller=_LENDER,
        about="Revokes a relay token, so that its partner can no longer read the report.",
        method="relay.remove",
        batch_method="relay.remove_many",
        inputs=_RELAY_TOKEN,
    ),
    OperationText(
        endpoint=codec.ASSET_REPORT_CREATE,
        title="Create a report",
        caller=_LENDER,
        about="Creates a report of one or more Items. It is ready after a few seconds, at most a minute.",
        creates="report",
        method="asset_report.create",
        inputs={
            "access_tokens": InputText(
                env="ACCESS_TOKENS",
                hint="One access token for each Item, one on each line, 1 to {max} lines.",
            ),
            "days_requested": InputText(example="60", hint="Days of history, {min} to {max}."),
            "options.client_report_id": InputText(hint="A name that you choose."),
            "options.webhook": InputText(
                hint="Plaid notifies this URL when the report is ready or has failed."
            ),
        },
    ),
    OperationText(
        endpoint=codec.ASSET_REPORT_GET,
        title="Read a report",
        caller=_LENDER,
        about="Reads one of your reports.",
        method="asset_report.get",
        inputs=_REPORT_TOKEN
        | _INSIGHTS
        | {
            "fast_report": InputText(
                hint="Read the fast version of a report that was created with that add-on."
            )
        }
        | _DAYS_TO_INCLUDE,
    ),
    OperationText(
        endpoint=codec.ASSET_REPORT_PDF_GET,
        title="Report as PDF",
        caller=_LENDER,
        about="Downloads one of your reports as a PDF.",
        method="asset_report.download_pdf",
        inputs=_REPORT_TOKEN | _DAYS_TO_INCLUDE,
    ),
    OperationText(
        endpoint=codec.ASSET_REPORT_REFRESH,
        title="Refresh a report",
        caller=_LENDER,
        about="Creates a new report with recent data from one of your reports. "
        "The new report has a new token.",
        creates="report",
        method="asset_report.refresh",
        inputs=_REPORT_TOKEN
        | {
            "days_requested": InputText(
                hint="Days of history, {min} to {max}. Default: as in the old report."
            ),
            "options.webhook": InputText(
                hint="Plaid notifies this URL when the report is ready. Default: as in the old report."
            ),
        },
    ),
    OperationText(
        endpoint=codec.ASSET_REPORT_FILTER,
        title="Exclude accounts",
        caller=_LENDER,
        about="Creates a copy of one of your reports without some of its accounts.",
        creates="report",
        method="asset_report.filter",
        inputs=_REPORT_TOKEN
        | {
            "account_ids_to_exclude": InputText(
                example="account-1", hint="One account_id of the report on each line, at least one."
            )
        },
    ),
    OperationText(
        endpoint=codec.ASSET_REPORT_REMOVE,
        title="Remove a report",
        caller=_LENDER,
        about="Removes a report. Plaid does not document what happens to its relay tokens.",
        method="asset_report.remove",
        inputs=_REPORT_TOKEN,
    ),
    OperationText(
        endpoint=codec.ITEM_PUBLIC_TOKEN_EXCHANGE,
        title="Exchange a public token",
        caller=_LENDER,
        about="Exchanges a public token, which is valid for 30 minutes, for an access token.",
        creates="access token",
        method="item.exchange_public_token",
        inputs={"public_token": InputText(env="PUBLIC_TOKEN", hint="From Link or from the sandbox.")},
    ),
    OperationText(
        endpoint=codec.ITEM_REMOVE,
        title="Remove an Item",
        caller=_LENDER,
        about="Removes an Item and its access token. Reports of the Item stay.",
        method="item.remove",
        inputs=_ACCESS_TOKEN
        | {
            "reason_code": InputText(choices=tuple(ItemRemoveReason), hint="The reason for the removal."),
            "reason_note": InputText(hint="The reason in your words, at most {max} characters."),
        },
    ),
    OperationText(
        endpoint=codec.SANDBOX_PUBLIC_TOKEN_CREATE,
        title="Create a test Item",
        caller=_TESTERS,
        about="Creates a test Item, and returns a public token to exchange.",
        creates="test Item",
        method="sandbox.create_public_token",
        inputs={
            "institution_id": InputText(
                preset=True,
                example="ins_109508",
                hint="ins_109508 is Plaid’s test bank, First Platypus Bank.",
            ),
            "initial_products": InputText(
                preset=True, example="assets", hint="The Item’s products, one on each line."
            ),
        },
    ),
    OperationText(
        endpoint=codec.SANDBOX_ITEM_FIRE_WEBHOOK,
        title="Fire a webhook",
        caller=_TESTERS,
        about="Sends a webhook to the URL of an Item. Each call sends one.",
        creates="webhook",
        method="sandbox.fire_webhook",
        inputs=_ACCESS_TOKEN
        | {
            "webhook_code": InputText(example="PRODUCT_READY", hint="Such as PRODUCT_READY."),
            "webhook_type": InputText(hint="Such as ASSETS. Needed for codes that several products use."),
        },
    ),
    OperationText(
        endpoint=codec.WEBHOOK_VERIFICATION_KEY_GET,
        title="Get a webhook’s key",
        caller="receivers of webhooks",
        about="Returns the public key that verifies a webhook’s signature.",
        method="webhook_verification_key.get",
        inputs={
            "key_id": InputText(
                example="6c5516e1-92dc-479e-a8ff-5a51992e0001",
                hint="The kid in the header of the webhook’s JWT.",
            )
        },
    ),
    OperationText(
        endpoint=codec.WEBHOOK_EVENTS_LIST,
        title="List sent webhooks",
        caller=_LENDER,
        about="Lists the webhooks that Plaid has sent to your account in the last 7 days, oldest first. "
        "At Plaid this operation is in beta.",
        method="webhook_events.list",
        inputs={
            "cursor": InputText(hint="The next_cursor of the previous page. Default: the oldest webhook."),
            "count": InputText(hint="Webhooks on a page, {min} to {max}. Default: 100."),
            "webhook_types": InputText(hint="One type on each line, such as ASSETS. Default: all types."),
            "webhook_codes": InputText(
                hint="One code on each line, such as PRODUCT_READY. Default: all codes."
            ),
            "item_ids": InputText(hint="One item_id on each line. Default: all."),
            "delivery_statuses": InputText(
                hint="PENDING, DELIVERED or FAILED, one on each line. Default: all of them."
            ),
        },
    ),
)
