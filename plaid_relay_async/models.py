"""What goes to Plaid and what comes back, as frozen records.

Requests are checked when they are made: a bad one raises `InvalidRequestError`, which names the field, before
anything is sent. Tokens show in no repr. Answers keep the fields that this package doesn't know in
`additional_properties`, since Plaid adds fields at any time (https://plaid.com/docs/api/versioning/).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, datetime
from decimal import Decimal
from typing import Any, cast
from urllib.parse import urlsplit

from attrs import Attribute, field, fields, frozen, has, validators

from plaid_relay_async.errors import InvalidRequestError, sealed, sealed_init

# ---------------------------------------------------------------------------------------------- checks


def _refuse(problem: str) -> InvalidRequestError:
    return InvalidRequestError(problem, sent=False)


def _check_word(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise _refuse(f"{name} must be a string, not {type(value).__name__}")
    if not value:
        raise _refuse(f"{name} is empty")
    if " " in value or not value.isprintable():
        raise _refuse(f"{name} holds white space or control characters: strip it")


def _word(_: object, attribute: Attribute[str], value: object) -> None:
    _check_word(attribute.name, value)


def _as_tuple(value: Iterable[str]) -> tuple[str, ...]:
    # A lone string is an iterable of characters, which nobody means: the validator refuses it.
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return cast("tuple[str, ...]", value)
    return tuple(value)


def _words(_: object, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, tuple):
        raise _refuse(f"{attribute.name} must be a list of strings, not {type(value).__name__}: write [it]")
    if not value:
        raise _refuse(f"{attribute.name} is empty")
    for index, word in enumerate(value):
        _check_word(f"{attribute.name}[{index}]", word)


def _one_of_each_type(_: object, attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    # Plaid takes one token of each report type, and the asset report is the only type so far.
    if sum(token.startswith("assets-") for token in value) > 1:
        raise _refuse(f"{attribute.name} holds two asset report tokens: a relay token shares one")


def _webhook(_: object, attribute: Attribute[Any], value: object) -> None:
    _check_word(attribute.name, value)
    try:
        parts = urlsplit(str(value))
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise _refuse(f"{attribute.name} must be an http(s) URL")


def _flag(_: object, attribute: Attribute[bool], value: object) -> None:
    if not isinstance(value, bool):
        raise _refuse(f"{attribute.name} must be True or False, not {type(value).__name__}")


def _days(_: object, attribute: Attribute[int], value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 731:
        raise _refuse(f"{attribute.name} must be a whole number from 0 to 731")


def _at_most_99(_: object, attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    if len(value) > 99:
        raise _refuse(f"{attribute.name} holds {len(value)} tokens: a report covers at most 99")


def _asset(_: object, attribute: Attribute[str], value: object) -> None:
    if value != "asset":
        raise _refuse(f"{attribute.name} must be 'asset', the only type that Plaid relays")


_OPTIONAL_WEBHOOK = validators.optional(_webhook)


def secrets_in(record: Any) -> Iterator[str]:
    """Give the strings of a request that may be shown nowhere: those of fields without a repr."""
    for attribute in fields(type(record)):
        value = getattr(record, attribute.name)
        if not attribute.repr and value:
            yield from value if isinstance(value, tuple) else (value,)


# -------------------------------------------------------------------------------------------- requests


@sealed_init
@frozen
class RelayCreateRequest:
    """Share a report with one partner. See https://plaid.com/docs/api/products/assets/#creditrelaycreate.

    Attributes:
        report_tokens: one asset report token, as `/asset_report/create` gave it, in a list.
        secondary_client_id: the partner, by its client id at Plaid.
        webhook: where Plaid tells that the partner fetched the report; an http(s) URL.

    Raises:
        InvalidRequestError: a field can't pass; it is named, and nothing was sent.
    """

    report_tokens: tuple[str, ...] = field(
        converter=_as_tuple, validator=[_words, _one_of_each_type], repr=False
    )
    secondary_client_id: str = field(validator=_word)
    webhook: str | None = field(default=None, validator=_OPTIONAL_WEBHOOK)

    @classmethod
    @sealed
    def fan_out(
        cls, report_tokens: Iterable[str], secondary_client_ids: Iterable[str], *, webhook: str | None = None
    ) -> Iterator[RelayCreateRequest]:
        """Give one request for each partner, lazily: a partner is read when its request is asked for.

        Args:
            report_tokens: the report to share, as a list of one token.
            secondary_client_ids: the partners.
            webhook: the same for each of them.

        Raises:
            InvalidRequestError: the tokens or the webhook can't pass: at once; a partner: when it is met.
        """
        if isinstance(secondary_client_ids, str):
            raise _refuse("secondary_client_ids must be an iterable of strings, not one string: write [it]")
        first = cls(report_tokens, "checked-when-met", webhook)
        return (cls(first.report_tokens, partner, first.webhook) for partner in secondary_client_ids)


@sealed_init
@frozen
class RelayGetRequest:
    """Read a report that was shared with you."""

    relay_token: str = field(validator=_word, repr=False)
    include_insights: bool = field(default=False, validator=_flag, kw_only=True)
    report_type: str = field(default="asset", validator=_asset, kw_only=True)


@sealed_init
@frozen
class RelayPdfGetRequest:
    """Read a report that was shared with you, as a PDF."""

    relay_token: str = field(validator=_word, repr=False)
    report_type: str = field(default="asset", validator=_asset, kw_only=True)


@sealed_init
@frozen
class RelayRefreshRequest:
    """Have a report that was shared with you made anew."""

    relay_token: str = field(validator=_word, repr=False)
    webhook: str | None = field(default=None, validator=_OPTIONAL_WEBHOOK, kw_only=True)
    report_type: str = field(default="asset", validator=_asset, kw_only=True)


@sealed_init
@frozen
class RelayRemoveRequest:
    """Take a relay token back."""

    relay_token: str = field(validator=_word, repr=False)


@sealed_init
@frozen(kw_only=True)
class AssetReportCreateOptions:
    """Attributes: `client_report_id`, a name of your own; `webhook`, told when the report is ready."""

    client_report_id: str | None = None
    webhook: str | None = field(default=None, validator=_OPTIONAL_WEBHOOK)


@sealed_init
@frozen
class AssetReportCreateRequest:
    """Have a report made of 1 to 99 Items, over 0 to 731 days."""

    access_tokens: tuple[str, ...] = field(converter=_as_tuple, validator=[_words, _at_most_99], repr=False)
    days_requested: int = field(validator=_days)
    options: AssetReportCreateOptions | None = None


@sealed_init
@frozen
class AssetReportGetRequest:
    """Read a report of one's own."""

    asset_report_token: str = field(validator=_word, repr=False)
    include_insights: bool = field(default=False, validator=_flag, kw_only=True)


@sealed_init
@frozen
class SandboxPublicTokenCreateRequest:
    """Make a test Item in the sandbox."""

    institution_id: str = field(validator=_word)
    initial_products: tuple[str, ...] = field(converter=_as_tuple, validator=_words)


@sealed_init
@frozen
class ItemPublicTokenExchangeRequest:
    """Turn a public token into an access token."""

    public_token: str = field(validator=_word, repr=False)


# ------------------------------------------------------------------------------------------- responses


def _unknown_fields() -> Any:
    return field(factory=dict, repr=False, kw_only=True)


@frozen
class RelayCreateResponse:
    """A relay token for one partner.

    Attributes:
        relay_token: a bearer secret; hand it to the partner and keep it.
        request_id: Plaid's; `None` if the answer was damaged and only the token could be read.
        additional_properties: what else Plaid sent.
    """

    relay_token: str = field(validator=validators.min_len(1), repr=False)
    request_id: str | None = None
    additional_properties: dict[str, Any] = _unknown_fields()


@frozen
class RelayRefreshResponse:
    """A report made anew.

    Attributes:
        relay_token: whether it is another than was passed in isn't published; keep this one.
        request_id: Plaid's; `None` if the answer was damaged and only the token could be read.
        asset_report_id: the new report's, as its webhook names it.
        additional_properties: what else Plaid sent.
    """

    relay_token: str = field(validator=validators.min_len(1), repr=False)
    request_id: str | None = None
    asset_report_id: str | None = None
    additional_properties: dict[str, Any] = _unknown_fields()


@frozen
class RelayRemoveResponse:
    """A relay token taken back.

    Attributes:
        removed: whether the token was removed.
        request_id: Plaid's.
        inferred: a first attempt got no answer and the next was told that there is no such token; so it is
            gone, though nobody said that it was this call that removed it.
        additional_properties: what else Plaid sent.
    """

    removed: bool
    request_id: str | None = None
    inferred: bool = field(default=False, metadata={"ours": True})
    additional_properties: dict[str, Any] = _unknown_fields()


@frozen
class PdfResponse:
    """A report as a PDF.

    Attributes:
        content: the file's bytes.
        request_id: from the `Plaid-Request-ID` header.
    """

    content: bytes = field(repr=False)
    request_id: str | None = None


@frozen
class AssetReportCreateResponse:
    """A report under way: a token to read and share it with, and the id that webhooks name."""

    asset_report_token: str = field(repr=False)
    asset_report_id: str
    request_id: str
    additional_properties: dict[str, Any] = _unknown_fields()


@frozen
class SandboxPublicTokenCreateResponse:
    """A public token of a test Item."""

    public_token: str = field(repr=False)
    request_id: str
    additional_properties: dict[str, Any] = _unknown_fields()


@frozen
class ItemPublicTokenExchangeResponse:
    """An access token and the Item it opens."""

    access_token: str = field(repr=False)
    item_id: str
    request_id: str
    additional_properties: dict[str, Any] = _unknown_fields()


# --------------------------------------------------------------------------------------------- reports


@frozen
class AssetReportTransaction:
    """A transaction; `amount` is positive when money leaves the account."""

    account_id: str
    transaction_id: str
    amount: Decimal
    date: date
    pending: bool
    iso_currency_code: str | None
    unofficial_currency_code: str | None
    original_description: str | None
    additional_properties: dict[str, Any] = _unknown_fields()


@frozen
class HistoricalBalance:
    """An account's balance at the end of a day."""

    date: date
    current: Decimal
    iso_currency_code: str | None
    unofficial_currency_code: str | None
    additional_properties: dict[str, Any] = _unknown_fields()


@frozen
class AssetReportAccountBalance:
    """What is in an account now; each amount may be `None`, by institution."""

    available: Decimal | None
    current: Decimal | None
    iso_currency_code: str | None
    unofficial_currency_code: str | None
    limit: Decimal | None = None
    additional_properties: dict[str, Any] = _unknown_fields()


@frozen
class AccountAssets:
    """An account with its history."""

    account_id: str
    name: str
    official_name: str | None
    mask: str | None
    type: str
    subtype: str | None
    days_available: Decimal
    balances: AssetReportAccountBalance = field(repr=False)
    historical_balances: tuple[HistoricalBalance, ...] = field(repr=False)
    transactions: tuple[AssetReportTransaction, ...] = field(repr=False)
    additional_properties: dict[str, Any] = _unknown_fields()


@frozen
class AssetReportItem:
    """One connection to a bank, with its accounts."""

    item_id: str
    institution_id: str
    institution_name: str
    date_last_updated: datetime
    accounts: tuple[AccountAssets, ...] = field(repr=False)
    additional_properties: dict[str, Any] = _unknown_fields()


@frozen
class AssetReport:
    """A person's accounts over `days_requested` days, as they were at `date_generated`."""

    asset_report_id: str
    client_report_id: str | None
    date_generated: datetime
    days_requested: Decimal
    items: tuple[AssetReportItem, ...] = field(repr=False)
    additional_properties: dict[str, Any] = _unknown_fields()


@frozen
class AssetReportWarning:
    """A part of the report that couldn't be had, and why; `warning_code` is an open set."""

    warning_type: str
    warning_code: str
    cause: dict[str, Any] | None = None
    additional_properties: dict[str, Any] = _unknown_fields()


@frozen
class AssetReportGetResponse:
    """A report and what is missing from it."""

    report: AssetReport = field(repr=False)
    warnings: tuple[AssetReportWarning, ...]
    request_id: str
    additional_properties: dict[str, Any] = _unknown_fields()


def is_record(cls: object) -> bool:
    """Tell whether this is one of the records of this module."""
    return isinstance(cls, type) and has(cls) and cls.__module__ == __name__
