"""The simulator's state: Items, reports and relay tokens, and the clients that may use them. No HTTP.

Where Plaid doesn't publish how it behaves, a comment or docstring marks the behaviour as our choice.
"""

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from random import Random
from string import ascii_letters, digits
from typing import Any, TypeAlias, overload
from uuid import uuid4

from attrs import define, evolve, field, frozen

from plaid_relay_async.simulator import webhooks
from plaid_relay_async.simulator.agenda import Agenda
from plaid_relay_async.simulator.api_errors import ITEM_ERROR_CODES, ApiError, item_cause
from plaid_relay_async.simulator.outline import (
    MAX_TRANSACTIONS,
    REPORT_PARTS,
    USER_FIELDS,
    BankLogin,
    Outline,
    report_id_from_seed,
)
from plaid_relay_async.simulator.simulated_time import SimulatedTime
from plaid_relay_async.simulator.webhook_log import WebhookLog

_INSTITUTION = re.compile(r"ins_\d+")
_PUBLIC_TOKEN_SECONDS = 30 * 60  # https://plaid.com/docs/api/items/#itempublic_tokenexchange
_ALPHABET = ascii_letters + digits
_MAX_DAYS = 731


ItemErrors: TypeAlias = Mapping[str | None, str]
"""The errors of an Item: an error code for each part that fails, or under None for the Item itself."""


@define
class Item:
    """A bank login and its access token.

    Attributes:
        client_id: the client that created it.
        login: the bank login.
        products: the products that it was initialised with.
        public_token_expires_at: when its public token expires, in seconds of the simulator's clock.
        access_token: its access token, which is valid once the public token has been exchanged.
        webhook: the URL of its webhooks.
        user_token: the token of the user that it was linked for.
    """

    client_id: str
    login: BankLogin
    products: frozenset[str]
    public_token_expires_at: float
    access_token: str = field(repr=False)
    webhook: str | None = None
    user_token: str | None = field(default=None, repr=False)


@frozen
class WebhookTarget:
    """Where webhooks about a report are sent: a URL, and the client that registered it."""

    client_id: str
    url: str


@frozen
class GenerationTerms:
    """Options of a report that affect its generation and not its content."""

    fast_assets: bool = False
    require_all_items: bool = True
    user_token: str | None = field(default=None, repr=False)
    webhook: WebhookTarget | None = None


@define
class Report:
    """One version of a report.

    Attributes:
        client_id: the client that may use its token; None is any client.
        outline: the content.
        terms: the options of its generation.
        ready_at: when it is ready, in seconds of the simulator's clock.
        fast_ready_at: when its fast version is ready.
        fetches_data: whether its generation fetches data, so that Items may fail.
        item_errors: the errors that occurred during its generation, by `item_id`; see `World.break_item`.
    """

    client_id: str | None
    outline: Outline
    terms: GenerationTerms
    ready_at: float
    fast_ready_at: float
    fetches_data: bool = True
    item_errors: dict[str, ItemErrors] = field(factory=dict)

    def allows_client(self, client_id: str) -> bool:
        """Return whether this client may use the report's token."""
        return self.client_id in {None, client_id}


@define
class RelayToken:
    """A relay token and the report that it points to."""

    relay_token: str = field(repr=False)
    client_id: str
    secondary_client_id: str
    request_id: str
    report: Report = field(repr=False)
    webhook: str | None = None
    removed: bool = False

    def ledger_entry(self) -> dict[str, object]:
        """Return the token's entry in the ledger."""
        return {
            "relay_token": self.relay_token,
            "client_id": self.client_id,
            "secondary_client_id": self.secondary_client_id,
            "request_id": self.request_id,
            "removed": self.removed,
        }


class Ledger(Sequence[Mapping[str, object]]):
    """All relay tokens ever issued, in order, as a live view: an entry is created when it is read."""

    def __init__(self, relays: list[RelayToken]) -> None:
        self._relays = relays

    def __len__(self) -> int:
        return len(self._relays)

    def __iter__(self) -> Iterator[Mapping[str, object]]:
        return (relay.ledger_entry() for relay in self._relays)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, object]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, object]]: ...
    def __getitem__(self, index: int | slice) -> Mapping[str, object] | Sequence[Mapping[str, object]]:
        if isinstance(index, slice):
            return [relay.ledger_entry() for relay in self._relays[index]]
        return self._relays[index].ledger_entry()


@frozen
class ReportOptions:
    """Options of a new report."""

    client_report_id: str | None = None
    user: Mapping[str, Any] = field(factory=dict, repr=False)
    investments: bool = False
    fast_assets: bool = False
    require_all_items: bool = True
    webhook: str | None = None


def _webhook_target(client_id: str, url: str | None) -> WebhookTarget | None:
    return WebhookTarget(client_id, url) if url else None


def _utc_now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _merge_user(
    changes: Mapping[str, Any], previous: Sequence[str | None] = (None,) * len(USER_FIELDS)
) -> tuple[Any, ...]:
    """Return the values of `USER_FIELDS`: the changed ones, otherwise the previous ones; "" becomes None."""
    return tuple(
        old if changes.get(name) is None else changes[name] or None
        for name, old in zip(USER_FIELDS, previous, strict=True)
    )


def _check_transaction_count(count: int | None) -> None:
    if count is not None and count < 0:
        raise ValueError("transactions: must not be negative")


def _without_failed_items(report: Report) -> Outline:
    """Return the outline without the Items, and the parts of Items, that failed.

    Raises:
        ApiError: an Item failed, and either all Items are required or none is left.
    """
    if not report.item_errors:
        return report.outline
    failed = {item_id: errors[None] for item_id, errors in report.item_errors.items() if None in errors}
    healthy = [item for item in report.outline.items if item.item_id not in failed]
    if failed and (report.terms.require_all_items or not healthy):
        raise ApiError(
            "DATA_UNAVAILABLE", causes=[item_cause(code, item_id) for item_id, code in failed.items()]
        )
    items = tuple(item.without_parts(report.item_errors.get(item.item_id, {})) for item in healthy)
    return evolve(report.outline, items=items)


class World:
    """The state, and the rules that say which client may do what.

    A method that fails as Plaid would raises `ApiError`.

    Args:
        generation_delay: seconds until a new report is ready.
        transactions: number of transactions in a new report; None is twenty per account.
        seed: seed of the reports' content.
        clock: returns monotonic time in seconds.
    """

    def __init__(
        self, *, generation_delay: float, transactions: int | None, seed: int, clock: Callable[[], float]
    ) -> None:
        _check_transaction_count(transactions)
        self._generation_delay = generation_delay
        self._transactions = transactions
        self._seed = seed
        self.time = SimulatedTime(clock)
        # Not the module's shared generator: IDs must neither depend on a program's random.seed() nor change
        # the numbers that the program draws.
        self._rng = Random()
        self._items: dict[str, Item] = {}
        self._public_tokens: dict[str, Item] = {}
        self._reports: dict[str, Report] = {}
        self._relay_tokens: list[RelayToken] = []
        self._active_tokens: dict[str, RelayToken] = {}
        # Each report and login has a numbered seed, so that the same requests lead to the same amounts.
        self._seed_numbers = itertools.count(1)
        self._item_errors: dict[str, ItemErrors] = {}
        self.ledger = Ledger(self._relay_tokens)
        self.refreshes: list[tuple[str, str]] = []
        self.agenda = Agenda()
        self.webhooks = WebhookLog(self.time)
        self.webhook_keys = webhooks.WebhookKeys()

    def new_request_id(self) -> str:
        """Return a request_id of fifteen letters and digits, like Plaid's."""
        return "".join(self._rng.choices(_ALPHABET, k=15))

    def _new_identifier(self) -> str:
        return "".join(self._rng.choices(_ALPHABET, k=37))

    def _next_seed(self) -> str:
        return f"{self._seed}:{next(self._seed_numbers)}"

    # Items

    def create_public_token(
        self,
        client_id: str,
        institution_id: str,
        products: Collection[str],
        *,
        webhook: str | None = None,
        user_token: str | None = None,
    ) -> str:
        """Create a bank login, and return its public token."""
        if not _INSTITUTION.fullmatch(institution_id):
            raise ApiError("INVALID_INSTITUTION")
        public_token = f"public-sandbox-{uuid4()}"
        self._public_tokens[public_token] = Item(
            client_id=client_id,
            login=BankLogin(self._new_identifier(), institution_id, self._next_seed()),
            products=frozenset(products),
            public_token_expires_at=self.time() + _PUBLIC_TOKEN_SECONDS,
            access_token=f"access-sandbox-{uuid4()}",
            webhook=webhook,
            user_token=user_token,
        )
        return public_token

    def exchange_public_token(self, client_id: str, public_token: str) -> Item:
        """Return the Item of a public token.

        Until the token expires, each exchange returns the same Item (our choice).
        """
        item = self._public_tokens.get(public_token)
        if item is None or item.client_id != client_id or self.time() >= item.public_token_expires_at:
            raise ApiError("INVALID_PUBLIC_TOKEN")
        # Only now is the access token valid.
        self._items[item.access_token] = item
        return item

    def get_item(self, client_id: str, access_token: str) -> Item:
        """Return the Item of an access token."""
        item = self._items.get(access_token)
        if item is None or item.client_id != client_id:
            raise ApiError("INVALID_ACCESS_TOKEN")
        return item

    def remove_item(self, client_id: str, access_token: str) -> None:
        """Invalidate an access token.

        Existing reports stay valid, as Plaid documents. That they can be refreshed too is our choice.
        """
        item = self.get_item(client_id, access_token)
        item.public_token_expires_at = self.time()
        del self._items[access_token]

    def break_item(self, access_token: str, error_code: str, part: str | None) -> None:
        """Make an Item, or one part of it, fail for reports that are not ready yet and for later ones."""
        item = self._items.get(access_token)
        if item is None:
            raise ValueError("access_token: there is no such Item")
        if error_code not in ITEM_ERROR_CODES:
            raise ValueError(f"error_code: must be one of: {', '.join(sorted(ITEM_ERROR_CODES))}")
        if part is not None and part not in REPORT_PARTS:
            raise ValueError(f"part: must be null or one of: {', '.join(REPORT_PARTS)}")
        item_id = item.login.item_id
        self._item_errors[item_id] = {**self._item_errors.get(item_id, {}), part: error_code}
        now = self.time()
        # A refreshed relay token points to a report that has no report token.
        for report in (*self._reports.values(), *(relay.report for relay in self._relay_tokens)):
            if now < report.ready_at:
                self._apply_item_errors(report)

    def repair_item(self, access_token: str) -> None:
        """Remove the errors of an Item."""
        item = self._items.get(access_token)
        if item is None:
            raise ValueError("access_token: there is no such Item")
        self._item_errors.pop(item.login.item_id, None)

    # Reports

    def create_report(
        self, client_id: str, access_tokens: Sequence[str], days: int, options: ReportOptions
    ) -> tuple[str, Report]:
        """Start to generate a report, and return its token and the report."""
        items = [self.get_item(client_id, token) for token in access_tokens]
        if not all("assets" in item.products for item in items):
            raise ApiError("PRODUCT_NOT_ENABLED")
        for item in items:
            # This holds whether or not all Items are required, as the schema of `require_all_items` says.
            if None in (errors := self._item_errors.get(item.login.item_id, {})):
                raise ApiError(errors[None])
        outline = Outline(
            seed=self._next_seed(),
            report_id="",
            generated_at=_utc_now(),
            days=days,
            # An Item that is listed twice is in the report once (our choice).
            items=tuple(dict.fromkeys(item.login for item in items)),
            client_report_id=options.client_report_id,
            user=_merge_user(options.user),
            investments=options.investments,
            transactions=self._transactions,
        )
        # A report of several users is found by the token of the first (our choice).
        user_tokens = [item.user_token for item in items if item.user_token is not None]
        terms = GenerationTerms(
            options.fast_assets,
            options.require_all_items,
            next(iter(user_tokens), None),
            _webhook_target(client_id, options.webhook),
        )
        return self._store_report(client_id, outline, terms)

    def add_report(
        self,
        token: str | None = None,
        *,
        transactions: int | None = None,
        days: int = 60,
        investments: bool = False,
        missing: Collection[str] = (),
    ) -> str:
        """Add a report that is ready and that every client may use, and return its token."""
        _check_transaction_count(transactions)
        if not 0 <= days <= _MAX_DAYS:
            raise ValueError(f"days: must be from 0 to {_MAX_DAYS}")
        if not set(missing) <= set(REPORT_PARTS):
            raise ValueError(f"missing: must be among: {', '.join(REPORT_PARTS)}")
        token = token or f"assets-sandbox-{uuid4()}"
        name = f"{self._seed}:{token}"
        # The error code is that of the example in Plaid's OpenAPI document.
        unavailable_parts = tuple(
            (part, "PRODUCTS_NOT_SUPPORTED") for part in REPORT_PARTS if part in missing
        )
        outline = Outline(
            seed=name,
            report_id=report_id_from_seed(name),
            generated_at=_utc_now(),
            days=days,
            items=(
                BankLogin(
                    report_id_from_seed(f"{self._seed}:item of {token}"),
                    "ins_109508",
                    name,
                    unavailable_parts,
                ),
            ),
            investments=investments,
            transactions=transactions,
        )
        now = self.time()
        self._reports[token] = Report(None, outline, GenerationTerms(fast_assets=True), now, now)
        return token

    def refresh_report(
        self, client_id: str, token: str, days: int | None, changes: Mapping[str, Any]
    ) -> tuple[str, Report]:
        """Start to generate a new report of the same Items, with a new token.

        A value that is omitted stays as it was, and an empty string removes it, as Plaid documents. Our
        choices: null counts as omitted, and the original need not be ready.
        """
        report = self.get_report(client_id, token)
        old = report.outline
        new_id = changes.get("client_report_id")
        outline = evolve(
            old,
            seed=self._next_seed(),
            generated_at=_utc_now(),
            days=old.days if days is None else days,
            client_report_id=old.client_report_id if new_id is None else new_id or None,
            user=_merge_user(changes.get("user", {}), old.user),
        )
        terms, url = report.terms, changes.get("webhook")
        if url is not None:
            terms = evolve(terms, webhook=_webhook_target(client_id, url))
        return self._store_report(client_id, outline, terms)

    def filter_report(
        self, client_id: str, token: str, excluded_accounts: Collection[str]
    ) -> tuple[str, Report]:
        """Start to generate a copy of a report without some of its accounts, with a new token.

        Our choices: the original must be ready, because before that its accounts are not known; an account
        that it doesn't have is an INVALID_FIELD; all of its accounts may be excluded.
        """
        original = self.get_report(client_id, token)
        account_ids = {account.account_id for account in self.ready_outline(original).accounts()}
        if not account_ids >= set(excluded_accounts):
            raise ApiError("INVALID_FIELD", "account_ids_to_exclude must contain only accounts of the report")
        outline = evolve(
            original.outline, excluded_accounts=original.outline.excluded_accounts | set(excluded_accounts)
        )
        new_token, report = self._store_report(client_id, outline, original.terms, fetches_data=False)
        report.item_errors.update(original.item_errors)
        return new_token, report

    def _store_report(
        self, client_id: str, outline: Outline, terms: GenerationTerms, *, fetches_data: bool = True
    ) -> tuple[str, Report]:
        token = f"assets-sandbox-{uuid4()}"
        outline = evolve(outline, report_id=report_id_from_seed(f"{self._seed}:{token}"))
        report = self._start_generation(client_id, outline, terms, fetches_data=fetches_data)
        self._reports[token] = report
        return token, report

    def _start_generation(
        self, client_id: str | None, outline: Outline, terms: GenerationTerms, *, fetches_data: bool = True
    ) -> Report:
        """Start to generate a report; its fast version takes half the time (our choice)."""
        now = self.time()
        report = Report(
            client_id,
            outline,
            terms,
            now + self._generation_delay,
            now + self._generation_delay / 2,
            fetches_data,
        )
        self._apply_item_errors(report)
        if terms.webhook is not None:
            if terms.fast_assets:
                self.agenda.add(report.fast_ready_at, partial(self._announce_fast, report, terms.webhook))
            self.agenda.add(report.ready_at, partial(self._announce, report, terms.webhook))
        return report

    def _announce(self, report: Report, target: WebhookTarget) -> None:
        """Send a webhook that a report is ready, or has failed."""
        report_id = report.outline.report_id
        try:
            self.ready_outline(report)
        except ApiError as error:
            payload = webhooks.report_failed(report_id, error)
        else:
            payload = webhooks.report_ready(report_id)
        self.webhooks.send(target.client_id, target.url, payload)

    def _announce_fast(self, report: Report, target: WebhookTarget) -> None:
        """Send a webhook that the fast version of a report is ready.

        That its failure is only announced with that of the report is our choice.
        """
        with suppress(ApiError):
            self.fast_outline(report)
            payload = webhooks.report_ready(report.outline.report_id, "FAST")
            self.webhooks.send(target.client_id, target.url, payload)

    def fire_webhook(
        self,
        client_id: str,
        access_token: str,
        *,
        code: str,
        requested_type: str | None,
        request_id: str,
        new_transactions: int | None,
    ) -> None:
        """Send a webhook of an Item, as the sandbox does on request."""
        item = self.get_item(client_id, access_token)
        webhook_type = webhooks.resolve_type(code, requested_type)
        if item.webhook is None:
            raise ApiError("SANDBOX_WEBHOOK_INVALID")
        webhooks.check_product(webhook_type, item.products)
        item_id = item.login.item_id
        payload = webhooks.fired(webhook_type, code, item_id, self._report_id_of(item), new_transactions)
        self.webhooks.send(client_id, item.webhook, payload, item_id=item_id, request_id=request_id)

    def _report_id_of(self, item: Item) -> str:
        """Return the ID of the latest report of an Item; without one, an ID of no report (our choice)."""
        for report in reversed(self._reports.values()):
            if item.login in report.outline.items:
                return report.outline.report_id
        return report_id_from_seed(item.login.item_id)

    def _apply_item_errors(self, report: Report) -> None:
        """Copy the current errors of a report's Items to the report."""
        if not self._item_errors or not report.fetches_data:
            return
        for item in report.outline.items:
            if errors := self._item_errors.get(item.item_id):
                report.item_errors[item.item_id] = errors

    def get_report(self, client_id: str, token: str) -> Report:
        """Return the report of a token, ready or not."""
        report = self._reports.get(token)
        if report is None or not report.allows_client(client_id):
            raise ApiError("INVALID_ASSET_REPORT_TOKEN")
        return report

    def latest_report_of_user(self, client_id: str, user_token: str) -> Report:
        """Return the latest report with an Item that was linked for a user.

        Plaid doesn't publish what it responds if there is none: that it is an INVALID_FIELD is our choice.
        """
        for report in reversed(self._reports.values()):
            if report.client_id == client_id and report.terms.user_token == user_token:
                return report
        raise ApiError("INVALID_FIELD", "user_token must be the token of a user with a report")

    def ready_outline(self, report: Report) -> Outline:
        """Return the content of a report that is ready."""
        if self.time() < report.ready_at:
            raise ApiError("PRODUCT_NOT_READY")
        outline = _without_failed_items(report)
        if outline.transaction_count() > MAX_TRANSACTIONS:
            raise ApiError("ASSET_REPORT_GENERATION_FAILED")
        return outline

    def fast_outline(self, report: Report) -> Outline:
        """Return the content of a report's fast version, if that is ready.

        That a report without a fast version is an INVALID_FIELD is our choice.
        """
        if not report.terms.fast_assets:
            raise ApiError(
                "INVALID_FIELD", "fast_report must be false for a report without the add-on fast_assets"
            )
        if self.time() < report.fast_ready_at:
            raise ApiError("PRODUCT_NOT_READY")
        return evolve(_without_failed_items(report), fast=True)

    def remove_report(self, client_id: str, token: str) -> None:
        """Invalidate a report token.

        Plaid doesn't publish what happens to relay tokens of the report: that they stay valid is our choice.
        """
        self.get_report(client_id, token)
        del self._reports[token]

    # Relay tokens

    def create_relay(
        self, client_id: str, report_token: str, partner: str, request_id: str, webhook: str | None = None
    ) -> str:
        """Issue a relay token; the report need not be ready yet.

        Each call issues another token, also for the same report and partner. Plaid doesn't publish whether it
        does the same. That it has no list of tokens, and that removing one leaves the others valid, suggests
        that it does.
        """
        report = self.get_report(client_id, report_token)
        relay = RelayToken(f"credit-relay-sandbox-{uuid4()}", client_id, partner, request_id, report, webhook)
        self._relay_tokens.append(relay)
        self._active_tokens[relay.relay_token] = relay
        return relay.relay_token

    def get_relay_token(self, partner: str, relay_token: str) -> RelayToken:
        """Return a relay token, if it was issued for this partner."""
        relay = self._active_tokens.get(relay_token)
        if relay is None or relay.secondary_client_id != partner:
            raise ApiError("INVALID_RELAY_TOKEN")
        return relay

    def announce_retrieval(self, relay: RelayToken) -> None:
        """Send the lender a webhook that the partner has read the report."""
        if relay.webhook is not None:
            payload = webhooks.report_retrieved(relay.report.outline.report_id)
            self.webhooks.send(relay.client_id, relay.webhook, payload)

    def refresh_relay(self, partner: str, relay_token: str, webhook: str | None = None) -> str:
        """Start to generate a new version of a relay token's report, and return its ID.

        Plaid publishes nothing about it. Our choices: the relay token stays the same and points to the new
        version from now on; the lender's report token still points to the old one; a version that isn't
        ready yet may be refreshed; the webhooks are the partner's.
        """
        relay = self.get_relay_token(partner, relay_token)
        new_id = report_id_from_seed(f"{self._seed}:{uuid4()}")
        outline = evolve(
            relay.report.outline, seed=self._next_seed(), report_id=new_id, generated_at=_utc_now()
        )
        terms = evolve(relay.report.terms, webhook=_webhook_target(partner, webhook))
        relay.report = self._start_generation(relay.client_id, outline, terms)
        self.refreshes.append((relay_token, new_id))
        return new_id

    def remove_relay(self, client_id: str, relay_token: str) -> None:
        """Invalidate a relay token of this lender; after that it is unknown."""
        relay = self._active_tokens.get(relay_token)
        if relay is None or relay.client_id != client_id:
            raise ApiError("INVALID_RELAY_TOKEN")
        relay.removed = True
        del self._active_tokens[relay_token]
