"""Request and response records of `/credit/relay/*`; the shared report itself is in `report`."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Self

from attrs import evolve, field, fields, frozen, validators

from plaid_relay_async.models.fields import (
    PAIR_PLACEHOLDER,
    are_report_tokens,
    as_tuple,
    boolean_field,
    check_identifier,
    invalid,
    is_identifier,
    is_url,
    is_url_template,
    optional_field,
    report_type_field,
    unknown_fields,
)
from plaid_relay_async.models.request import PlaidRequest
from plaid_relay_async.redaction import strip_init_traceback, strip_traceback

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from plaid_relay_async.errors import RequestValidationError


@strip_init_traceback
@frozen
class RelayCreateRequest(PlaidRequest):
    """A request to share a report with one partner.

    See https://plaid.com/docs/api/products/assets/#creditrelaycreate.

    Attributes:
        report_tokens: one asset report token from `/asset_report/create`, in a list.
        secondary_client_id: the partner's client ID at Plaid. It contains no whitespace, control characters,
            quotes, `,` or `;`.
        webhook: the http(s) URL that Plaid calls when the partner has fetched the report. With a journal,
            `{pair}` may be the last segment of its path: the journal replaces it by the pair ID.

    Raises:
        RequestValidationError: a field is invalid. The error names it, and nothing was sent.
    """

    report_tokens: tuple[str, ...] = field(converter=as_tuple, validator=are_report_tokens, repr=False)
    secondary_client_id: str = field(validator=is_identifier)
    webhook: str | None = field(default=None, validator=validators.optional(is_url_template))

    @classmethod
    @strip_traceback
    def fan_out(
        cls,
        report_tokens: Iterable[str],
        secondary_client_ids: Iterable[str],
        *,
        webhook: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Iterator[RelayCreateRequest]:
        """Yield one request for each partner, lazily: a partner is read when its request is needed.

        Args:
            report_tokens: the report to share, as a list of one token.
            secondary_client_ids: the partners' client IDs at Plaid.
            webhook: an http(s) URL, used for every request; see the attribute.
            extra: further fields of the body, used for every request; see `PlaidRequest`.

        Raises:
            RequestValidationError: the tokens, the webhook or `extra` are invalid, or `secondary_client_ids`
                is a single string. An invalid partner raises it when the iterator reaches it; the field is
                then `secondary_client_ids[n]`, counted from 0.
        """
        if isinstance(secondary_client_ids, str):
            raise invalid(
                "secondary_client_ids", "must be an iterable of strings, not one string: wrap it in a list"
            )
        template = cls(report_tokens, "checked-when-read", webhook, extra=extra)
        names = [a.name for a in fields(cls) if a.name != "secondary_client_id"]
        shared_values = {name: getattr(template, name) for name in names}

        @strip_traceback
        def request_for(index: int, partner: str) -> RelayCreateRequest:
            # The shared values were checked in the template. Only the partner is checked here, and the
            # request is built without __init__, because a batch may have millions of partners.
            check_identifier(f"secondary_client_ids[{index}]", partner)
            request = object.__new__(cls)
            for name, value in shared_values.items():
                object.__setattr__(request, name, value)
            object.__setattr__(request, "secondary_client_id", partner)
            return request

        return map(request_for, itertools.count(), secondary_client_ids)

    @property
    def needs_pair_id(self) -> bool:
        """Whether the URL of the webhook contains `{pair}`, so that a journal must replace it."""
        return self.webhook is not None and PAIR_PLACEHOLDER in self.webhook

    def with_pair_id(self, pair_id: str) -> RelayCreateRequest:
        """Return the request as it is sent: with the pair ID in place of `{pair}`."""
        if self.webhook is None or not self.needs_pair_id:
            return self
        return evolve(self, webhook=self.webhook.replace(PAIR_PLACEHOLDER, pair_id))


def needs_journal_error() -> RequestValidationError:
    """Return the error of a request that needs a pair ID, in a call without a journal."""
    return invalid("webhook", "contains {pair}, which only a journal can replace: pass journal=")


@strip_init_traceback
@frozen
class RelayGetRequest(PlaidRequest):
    """A request to read a report that was shared with you.

    Attributes:
        relay_token: the relay token from the lender.
        include_insights: whether the report has categories, merchants and Plaid's insights.
        report_type: always `"asset"`.

    Raises:
        RequestValidationError: a field is invalid.
    """

    relay_token: str = field(validator=is_identifier, repr=False)
    include_insights: bool = boolean_field()
    report_type: str = report_type_field()


@strip_init_traceback
@frozen
class RelayPdfGetRequest(PlaidRequest):
    """A request to read a report that was shared with you, as a PDF; see `RelayGetRequest`."""

    relay_token: str = field(validator=is_identifier, repr=False)
    report_type: str = report_type_field()


@strip_init_traceback
@frozen
class RelayRefreshRequest(PlaidRequest):
    """A request to refresh a report that was shared with you.

    Attributes:
        relay_token: the relay token from the lender.
        webhook: the http(s) URL that Plaid calls when the new report is ready.
        report_type: always `"asset"`.

    Raises:
        RequestValidationError: a field is invalid.
    """

    relay_token: str = field(validator=is_identifier, repr=False)
    webhook: str | None = optional_field(is_url)
    report_type: str = report_type_field()


@strip_init_traceback
@frozen
class RelayRemoveRequest(PlaidRequest):
    """A request to revoke a relay token."""

    relay_token: str = field(validator=is_identifier, repr=False)


@frozen
class RelayCreateResponse:
    """A relay token for one partner.

    Attributes:
        relay_token: a bearer secret. Store it, and send it to the partner.
        request_id: Plaid's identifier of the request; `None` if only the token of a damaged response could be
            recovered.
        additional_properties: other fields that Plaid sent.
    """

    relay_token: str = field(validator=validators.min_len(1), repr=False)
    request_id: str | None = None
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class RelayRefreshResponse:
    """A refresh that Plaid has started.

    Attributes:
        relay_token: the token of the new report. Plaid doesn't publish whether it differs from the one in the
            request; store this one.
        request_id: Plaid's identifier of the request; `None` if only the token of a damaged response could be
            recovered.
        asset_report_id: the new report's ID, which its webhook names.
        additional_properties: other fields that Plaid sent.
    """

    relay_token: str = field(validator=validators.min_len(1), repr=False)
    request_id: str | None = None
    asset_report_id: str | None = None
    additional_properties: dict[str, Any] = unknown_fields()


@frozen
class RemoveResponse:
    """The result of a removal.

    Attributes:
        removed: whether the token was removed.
        request_id: Plaid's identifier of the request; `None` if the removal is inferred.
        inferred: whether the removal is inferred: an attempt got no response, and a later one found no such
            token. The token is removed, but perhaps not by this call.
        additional_properties: other fields that Plaid sent.
    """

    removed: bool
    request_id: str | None = None
    inferred: bool = False
    additional_properties: dict[str, Any] = unknown_fields()

    @classmethod
    def already_removed(cls) -> Self:
        """Return the response for a token that doesn't exist, after an attempt in doubt to remove it."""
        return cls(removed=True, inferred=True)


@frozen
class RelayRemoveResponse(RemoveResponse):
    """The result of revoking a relay token; see `RemoveResponse`."""
