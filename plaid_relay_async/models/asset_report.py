"""The records of `/asset_report/*`, but for the report itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import Attribute, field, fields, frozen, validators

from plaid_relay_async.errors import strip_init_traceback
from plaid_relay_async.models.fields import (
    are_identifiers,
    as_optional_tuple,
    as_tuple,
    boolean_field,
    check_json_value,
    check_text,
    has_type,
    invalid,
    is_boolean,
    is_identifier,
    is_text,
    is_url,
    is_whole_number,
    max_items,
    optional_field,
    unknown_fields,
)
from plaid_relay_async.models.relay import RemoveResponse

_is_report_days = is_whole_number(0, 731)


@frozen(kw_only=True)
class AssetReportUser:
    """The person whom a report is about, as its owner described them; all fields are optional.

    In a request none may be empty. Shown in no repr. Plaid puts it into the report as it came, fields of
    one's own included.

    Attributes:
        client_user_id: an id of one's own for the person.
        first_name: with `last_name` and `ssn` needed for Fannie Mae's Day 1 Certainty.
        middle_name: ditto.
        last_name: ditto.
        ssn: as `"123-45-6789"`.
        phone_number: in E.164, such as `"+14151234567"`.
        email: their address.
        additional_properties: what else was told.
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
    # As a part of an answer a user is what Plaid sent; here it is what somebody means to send.
    if not isinstance(value, AssetReportUser):
        raise invalid(attribute.name, f"must be of type AssetReportUser, not {type(value).__name__}")
    for told in fields(AssetReportUser):
        name, word = f"{attribute.name}.{told.name}", getattr(value, told.name)
        if told.name != "additional_properties":
            if word is not None:
                check_text(name, word)
        elif isinstance(word, dict):
            _check_nested_json(name, word)
        else:
            raise invalid(name, f"must be a dict, not {type(word).__name__}")


def _check_nested_json(name: str, value: object) -> None:
    too_deep = False
    try:
        check_json_value(name, value)
    except RecursionError:
        too_deep = True
    if too_deep:
        raise invalid(name, "is nested too deeply")


@strip_init_traceback
@frozen(kw_only=True)
class AssetReportCreateOptions:
    """What may be asked of a new report.

    Attributes:
        client_report_id: a name of your own.
        webhook: told when the report is ready; an http(s) URL.
        add_ons: `AddOn.INVESTMENTS`, `AddOn.FAST_ASSETS`.
        user: whom it is about.
        require_all_items: whether one Item that can't be read fails the report; Plaid does so by default.
        include_fast_report: deprecated by Plaid; see `add_ons`.
        products: deprecated by Plaid; see `add_ons`.
    """

    client_report_id: str | None = optional_field(is_text())
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
class AssetReportCreateRequest:
    """Have a report made of 1 to 99 Items, over 0 to 731 days."""

    access_tokens: tuple[str, ...] = field(
        converter=as_tuple, validator=[are_identifiers, max_items(99, "access tokens")], repr=False
    )
    days_requested: int = field(validator=_is_report_days)
    options: AssetReportCreateOptions | None = optional_field(has_type(AssetReportCreateOptions))


@strip_init_traceback
@frozen(kw_only=True)
class AssetReportRefreshOptions:
    """What may be asked of a report made anew; what isn't given stays as it was.

    Attributes:
        client_report_id: a name of your own.
        webhook: told when the report is ready; an http(s) URL.
        user: whom it is about.
    """

    client_report_id: str | None = optional_field(is_text())
    webhook: str | None = optional_field(is_url)
    user: AssetReportUser | None = optional_field(_is_user)


@strip_init_traceback
@frozen
class AssetReportRefreshRequest:
    """Have a report of one's own made anew, as another report."""

    asset_report_token: str = field(validator=is_identifier, repr=False)
    days_requested: int | None = optional_field(_is_report_days)
    options: AssetReportRefreshOptions | None = optional_field(has_type(AssetReportRefreshOptions))


@strip_init_traceback
@frozen
class AssetReportFilterRequest:
    """Have a report of one's own copied without some of its accounts, as another report."""

    asset_report_token: str = field(validator=is_identifier, repr=False)
    account_ids_to_exclude: tuple[str, ...] = field(converter=as_tuple, validator=are_identifiers)


@strip_init_traceback
@frozen(kw_only=True)
class DaysToInclude:
    """Attributes: `days_to_include`, of the report's days, the last 0 to 731."""

    days_to_include: int | None = optional_field(_is_report_days)


@strip_init_traceback
@frozen
class AssetReportGetRequest:
    """Read a report of one's own: by its token, or the latest of a user by the user's token."""

    asset_report_token: str | None = field(
        default=None, validator=validators.optional(is_identifier), repr=False
    )
    user_token: str | None = optional_field(is_identifier, repr=False)
    include_insights: bool = boolean_field()
    fast_report: bool = boolean_field()
    options: DaysToInclude | None = optional_field(has_type(DaysToInclude))

    def __attrs_post_init__(self) -> None:
        if self.asset_report_token is None and self.user_token is None:
            raise invalid("asset_report_token", "is missing: pass it, or a user_token")


@strip_init_traceback
@frozen
class AssetReportPdfGetRequest:
    """Read a report of one's own, as a PDF."""

    asset_report_token: str = field(validator=is_identifier, repr=False)
    options: DaysToInclude | None = optional_field(has_type(DaysToInclude))


@strip_init_traceback
@frozen
class AssetReportRemoveRequest:
    """Take a report's token back."""

    asset_report_token: str = field(validator=is_identifier, repr=False)


# --------------------------------------------------------------------------------------------- answers


@frozen
class AssetReportCreateResponse:
    """A report under way: a token to read and share it with, and the id that webhooks name."""

    asset_report_token: str = field(repr=False)
    asset_report_id: str
    request_id: str
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class AssetReportRefreshResponse(AssetReportCreateResponse):
    """A fresh report under way: it has a token and an id of its own, and the old one stays as it was."""


@frozen
class AssetReportFilterResponse(AssetReportCreateResponse):
    """A report without some accounts: it has a token and an id of its own, and the old one stays."""


@frozen
class AssetReportRemoveResponse(RemoveResponse):
    """A report's token taken back; see `RemoveResponse`."""


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
    """A report as a PDF, in a file that nobody else may read.

    Attributes:
        path: the file.
        size: its bytes.
        request_id: from the `Plaid-Request-ID` header.
    """

    path: Path
    size: int
    request_id: str | None = None
