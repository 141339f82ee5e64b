"""Request and response records of `/asset_report/*`; the report itself is in `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import Attribute, field, fields, frozen, validators

from plaid_relay_async.models.fields import (
    AreIdentifiers,
    HasType,
    IsText,
    IsWholeNumber,
    are_identifiers,
    as_optional_tuple,
    as_tuple,
    boolean_field,
    check_json_value,
    check_text,
    invalid,
    is_boolean,
    is_identifier,
    is_url,
    optional_field,
    unknown_fields,
)
from plaid_relay_async.models.relay import RemoveResponse
from plaid_relay_async.models.request import PlaidRequest
from plaid_relay_async.redaction import strip_init_traceback

_is_report_days = IsWholeNumber(0, 731)


@frozen(kw_only=True)
class AssetReportUser:
    """The person whom a report is about, as the lender describes them; all fields are optional.

    In a request no field may be empty. No repr shows any of them. Plaid copies the user into the report
    unchanged, including the fields in `additional_properties`.

    Attributes:
        client_user_id: the lender's own ID for the person.
        first_name: required for Fannie Mae's Day 1 Certainty, as are `last_name` and `ssn`.
        middle_name: the middle name.
        last_name: see `first_name`.
        ssn: the social security number, in the form `"123-45-6789"`.
        phone_number: in E.164, such as `"+14151234567"`.
        email: the email address.
        additional_properties: further fields.
    """

    client_user_id: str | None = field(default=None, repr=False)
    first_name: str | None = field(default=None, repr=False)
    middle_name: str | None = field(default=None, repr=False)
    last_name: str | None = field(default=None, repr=False)
    ssn: str | None = field(default=None, repr=False)
    phone_number: str | None = field(default=None, repr=False)
    email: str | None = field(default=None, repr=False)
    additional_properties: dict[str, Any] = unknown_fields()


# -------------------------------------------------------------------------------------------- requests


def _is_user(_: object, attribute: Attribute[Any], value: object) -> None:
    # AssetReportUser itself has no validators, because it is also part of a response, and what Plaid sends
    # is accepted as it is. So its fields are checked here, where it becomes part of a request.
    if not isinstance(value, AssetReportUser):
        raise invalid(attribute.name, f"must be of type AssetReportUser, not {type(value).__name__}")
    for part in fields(AssetReportUser):
        name, content = f"{attribute.name}.{part.name}", getattr(value, part.name)
        if part.name != "additional_properties":
            if content is not None:
                check_text(name, content)
        elif isinstance(content, dict):
            check_json_value(name, content)
        else:
            raise invalid(name, f"must be a dict, not {type(content).__name__}")


@strip_init_traceback
@frozen(kw_only=True)
class AssetReportCreateOptions:
    """Options of a new report.

    Attributes:
        client_report_id: your own ID for the report.
        webhook: the http(s) URL that Plaid calls when the report is ready.
        add_ons: `AddOn.INVESTMENTS`, `AddOn.FAST_ASSETS`.
        user: the person whom the report is about.
        require_all_items: whether the report fails if one of its Items can't be read; by default it does.
        include_fast_report: deprecated by Plaid; see `add_ons`.
        products: deprecated by Plaid; see `add_ons`.
    """

    client_report_id: str | None = optional_field(IsText())
    webhook: str | None = optional_field(is_url)
    add_ons: tuple[str, ...] | None = field(
        default=None, converter=as_optional_tuple, validator=validators.optional(are_identifiers)
    )
    user: AssetReportUser | None = optional_field(_is_user)
    require_all_items: bool | None = optional_field(is_boolean)
    include_fast_report: bool | None = optional_field(is_boolean)
    products: tuple[str, ...] | None = field(
        default=None, converter=as_optional_tuple, validator=validators.optional(are_identifiers)
    )


@strip_init_traceback
@frozen
class AssetReportCreateRequest(PlaidRequest):
    """A request to create a report of 1 to 99 Items, over 0 to 731 days."""

    access_tokens: tuple[str, ...] = field(
        converter=as_tuple, validator=AreIdentifiers(99, "access tokens"), repr=False
    )
    days_requested: int = field(validator=_is_report_days)
    options: AssetReportCreateOptions | None = optional_field(HasType(AssetReportCreateOptions))


@strip_init_traceback
@frozen(kw_only=True)
class AssetReportRefreshOptions:
    """Options of a refresh; a value that is omitted stays as it was.

    Attributes:
        client_report_id: your own ID for the report.
        webhook: the http(s) URL that Plaid calls when the report is ready.
        user: the person whom the report is about.
    """

    client_report_id: str | None = optional_field(IsText())
    webhook: str | None = optional_field(is_url)
    user: AssetReportUser | None = optional_field(_is_user)


@strip_init_traceback
@frozen
class AssetReportRefreshRequest(PlaidRequest):
    """A request to refresh a report of your own; the result is a new report."""

    asset_report_token: str = field(validator=is_identifier, repr=False)
    days_requested: int | None = optional_field(_is_report_days)
    options: AssetReportRefreshOptions | None = optional_field(HasType(AssetReportRefreshOptions))


@strip_init_traceback
@frozen
class AssetReportFilterRequest(PlaidRequest):
    """A request to copy a report of your own without some of its accounts; the result is a new report."""

    asset_report_token: str = field(validator=is_identifier, repr=False)
    account_ids_to_exclude: tuple[str, ...] = field(converter=as_tuple, validator=are_identifiers)


@strip_init_traceback
@frozen(kw_only=True)
class DaysToInclude:
    """A limit on the days to read: the report's last `days_to_include` days, from 0 to 731."""

    days_to_include: int | None = optional_field(_is_report_days)


@strip_init_traceback
@frozen
class AssetReportGetRequest(PlaidRequest):
    """A request to read a report of your own, by its token, or a user's latest report by the user's token."""

    asset_report_token: str | None = field(
        default=None, validator=validators.optional(is_identifier), repr=False
    )
    user_token: str | None = optional_field(is_identifier, repr=False)
    include_insights: bool = boolean_field()
    fast_report: bool = boolean_field()
    options: DaysToInclude | None = optional_field(HasType(DaysToInclude))

    def __attrs_post_init__(self) -> None:
        if self.asset_report_token is None and self.user_token is None:
            raise invalid("asset_report_token", "is missing: pass it, or a user_token")


@strip_init_traceback
@frozen
class AssetReportPdfGetRequest(PlaidRequest):
    """A request to read a report of your own, as a PDF."""

    asset_report_token: str = field(validator=is_identifier, repr=False)
    options: DaysToInclude | None = optional_field(HasType(DaysToInclude))


@strip_init_traceback
@frozen
class AssetReportRemoveRequest(PlaidRequest):
    """A request to revoke a report's token."""

    asset_report_token: str = field(validator=is_identifier, repr=False)


# ------------------------------------------------------------------------------------------- responses


@frozen
class AssetReportCreateResponse:
    """A report that Plaid is generating: its token, and the ID that webhooks name."""

    asset_report_token: str = field(repr=False)
    asset_report_id: str
    request_id: str
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class AssetReportRefreshResponse(AssetReportCreateResponse):
    """A refreshed report that Plaid is generating, with a new token and ID; the old report doesn't change."""


@frozen
class AssetReportFilterResponse(AssetReportCreateResponse):
    """A filtered report that Plaid is generating, with a new token and ID; the old report doesn't change."""


@frozen
class AssetReportRemoveResponse(RemoveResponse):
    """The result of revoking a report's token; see `RemoveResponse`."""


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
class PdfFile:
    """A report as a PDF file that only its owner may read.

    Attributes:
        path: the file.
        size: its length in bytes.
        request_id: from the `Plaid-Request-ID` header.
    """

    path: Path
    size: int
    request_id: str | None = None
