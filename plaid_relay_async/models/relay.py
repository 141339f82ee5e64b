"""The records of `/credit/relay/*`, but for the report that a relay token opens."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Self

from attrs import field, fields, frozen, validators

from plaid_relay_async.errors import strip_init_traceback, strip_traceback
from plaid_relay_async.models.fields import (
    are_identifiers,
    as_tuple,
    boolean_field,
    check_identifier,
    invalid,
    is_identifier,
    is_url,
    one_token_per_report_type,
    optional_field,
    report_type,
    unknown_fields,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@strip_init_traceback
@frozen
class RelayCreateRequest:
    """Share a report with one partner. See https://plaid.com/docs/api/products/assets/#creditrelaycreate.

    Attributes:
        report_tokens: one asset report token, as `/asset_report/create` gave it, in a list.
        secondary_client_id: the partner, by its client id at Plaid: without whitespace, control characters,
            quotes, `,` and `;`.
        webhook: where Plaid tells that the partner fetched the report; an http(s) URL.

    Raises:
        RequestValidationError: a field is invalid; it is named, and nothing was sent.
    """

    report_tokens: tuple[str, ...] = field(
        converter=as_tuple, validator=[are_identifiers, one_token_per_report_type], repr=False
    )
    secondary_client_id: str = field(validator=is_identifier)
    webhook: str | None = field(default=None, validator=validators.optional(is_url))

    @classmethod
    @strip_traceback
    def fan_out(
        cls, report_tokens: Iterable[str], secondary_client_ids: Iterable[str], *, webhook: str | None = None
    ) -> Iterator[RelayCreateRequest]:
        """Give one request for each partner, lazily: a partner is read when its request is asked for.

        Args:
            report_tokens: the report to share, as a list of one token.
            secondary_client_ids: the partners.
            webhook: the same for each of them.

        Raises:
            RequestValidationError: the tokens or the webhook are invalid. For a partner it is raised when
                that is reached, with the field `secondary_client_ids[n]`, counted from 0.
        """
        if isinstance(secondary_client_ids, str):
            raise invalid(
                "secondary_client_ids", "must be an iterable of strings, not one string: write [it]"
            )
        first = cls(report_tokens, "checked-when-met", webhook)
        shared = {a.name: getattr(first, a.name) for a in fields(cls)}

        @strip_traceback
        def request_for(index: int, partner: str) -> RelayCreateRequest:
            # What all of them share was checked once, and isn't again for each.
            check_identifier(f"secondary_client_ids[{index}]", partner)
            request = object.__new__(cls)
            for name, value in shared.items():
                object.__setattr__(request, name, value)
            object.__setattr__(request, "secondary_client_id", partner)
            return request

        return map(request_for, itertools.count(), secondary_client_ids)


@strip_init_traceback
@frozen
class RelayGetRequest:
    """Read a report that was shared with you."""

    relay_token: str = field(validator=is_identifier, repr=False)
    include_insights: bool = boolean_field()
    report_type: str = report_type()


@strip_init_traceback
@frozen
class RelayPdfGetRequest:
    """Read a report that was shared with you, as a PDF."""

    relay_token: str = field(validator=is_identifier, repr=False)
    report_type: str = report_type()


@strip_init_traceback
@frozen
class RelayRefreshRequest:
    """Have a report that was shared with you made anew."""

    relay_token: str = field(validator=is_identifier, repr=False)
    webhook: str | None = optional_field(is_url)
    report_type: str = report_type()


@strip_init_traceback
@frozen
class RelayRemoveRequest:
    """Take a relay token back."""

    relay_token: str = field(validator=is_identifier, repr=False)


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
    additional_properties: dict[str, Any] = unknown_fields()


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
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class RemoveResponse:
    """Something taken back.

    Attributes:
        removed: whether it was removed.
        request_id: Plaid's.
        inferred: a first attempt got no answer and the next was told that there is no such token; so it is
            gone, though nobody said that it was this call that removed it.
        additional_properties: what else Plaid sent.
    """

    removed: bool
    request_id: str | None = None
    inferred: bool = False
    additional_properties: dict[str, Any] = unknown_fields()

    @classmethod
    def already_removed(cls) -> Self:
        """Give the answer for what is known to be gone, though nobody said so of this call."""
        return cls(removed=True, inferred=True)


@frozen
class RelayRemoveResponse(RemoveResponse):
    """A relay token taken back; see `RemoveResponse`."""
