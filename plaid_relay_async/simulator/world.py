"""What this Plaid knows: items, reports and relay tokens, and who may use which. No HTTP."""

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from random import Random
from string import ascii_letters, digits
from typing import Any, TypeAlias, overload
from uuid import uuid4

from attrs import define, evolve, field, frozen

from plaid_relay_async.simulator.api_errors import ITEM_ERROR_CODES, ApiError, item_cause
from plaid_relay_async.simulator.outline import (
    MAX_TRANSACTIONS,
    REPORT_PARTS,
    USER_FIELDS,
    BankLogin,
    Outline,
    report_id_from_seed,
)

_INSTITUTION = re.compile(r"ins_\d+")
_PUBLIC_TOKEN_SECONDS = 30 * 60  # https://plaid.com/docs/api/items/#itempublic_tokenexchange
_ALPHABET = ascii_letters + digits
_MAX_DAYS = 731


ItemErrors: TypeAlias = Mapping[str | None, str]
"""What is wrong with an Item: a code, under None with all of it, or with one of its parts."""


@define
class Item:
    """One bank login, and the two tokens that name it."""

    client_id: str
    linked: BankLogin
    products: frozenset[str]
    public_until: float
    access_token: str = field(repr=False)
    webhook: str | None = None
    user_token: str | None = field(default=None, repr=False)


@frozen
class GenerationTerms:
    """What the maker of a report asked of its generation, beside what is in it."""

    fast_assets: bool = False
    require_all_items: bool = True
    user_token: str | None = field(default=None, repr=False)


@define
class Report:
    """One version of a report; `client_id` None means that it serves every owner.

    `fetched` says whether data is fetched for it, so that its Items may fail; `failures` holds what did, by
    `item_id`, as `World.break_item` was told.
    """

    client_id: str | None
    outline: Outline
    terms: GenerationTerms
    ready_at: float
    fast_at: float
    fetched: bool = True
    failures: dict[str, ItemErrors] = field(factory=dict)

    def allows_client(self, client_id: str) -> bool:
        """Whether this client may use its token."""
        return self.client_id in {None, client_id}


@define
class RelayToken:
    """One relay token, and the report that it points at."""

    relay_token: str = field(repr=False)
    client_id: str
    secondary_client_id: str
    request_id: str
    report: Report = field(repr=False)
    removed: bool = False

    def ledger_entry(self) -> dict[str, object]:
        """Its line of the ledger."""
        return {
            "relay_token": self.relay_token,
            "client_id": self.client_id,
            "secondary_client_id": self.secondary_client_id,
            "request_id": self.request_id,
            "removed": self.removed,
        }


class Ledger(Sequence[Mapping[str, object]]):
    """Every relay token ever minted, in order; a live view that makes its entries as they are read."""

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
    """What the maker of a report may ask of it."""

    client_report_id: str | None = None
    user: Mapping[str, Any] = field(factory=dict, repr=False)
    investments: bool = False
    fast_assets: bool = False
    require_all_items: bool = True


def _utc_now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _merge_user(
    told: Mapping[str, Any], before: Sequence[str | None] = (None,) * len(USER_FIELDS)
) -> tuple[Any, ...]:
    """Each of `USER_FIELDS`: as told, else as before; an empty one is none."""
    return tuple(
        old if told.get(name) is None else told[name] or None
        for name, old in zip(USER_FIELDS, before, strict=True)
    )


def _check_transaction_count(count: int | None) -> None:
    if count is not None and count < 0:
        raise ValueError("transactions: must not be negative")


def _without_failed_items(report: Report) -> Outline:
    """Without the Items that failed, if its maker can do without, and one at least did not."""
    if not report.failures:
        return report.outline
    broken = {item_id: trouble[None] for item_id, trouble in report.failures.items() if None in trouble}
    whole = [item for item in report.outline.items if item.item_id not in broken]
    if broken and (report.terms.require_all_items or not whole):
        raise ApiError(
            "DATA_UNAVAILABLE", causes=[item_cause(code, item_id) for item_id, code in broken.items()]
        )
    items = tuple(item.without_parts(report.failures.get(item.item_id, {})) for item in whole)
    return evolve(report.outline, items=items)


class World:
    """The state, and the rules of who may do what with it.

    Args:
        generating: Seconds until a new report is ready.
        transactions: How many a new report holds; None is twenty an account.
        seed: Of what the reports hold.
        clock: Seconds that only grow.
    """

    def __init__(
        self, *, generation_delay: float, transactions: int | None, seed: int, clock: Callable[[], float]
    ) -> None:
        _check_transaction_count(transactions)
        self._generation_delay = generation_delay
        self._transactions = transactions
        self._seed = seed
        self._clock = clock
        # Of its own, so that no one's seeded draws are disturbed, nor disturb it.
        self._rng = Random()
        self._items: dict[str, Item] = {}
        self._public_tokens: dict[str, Item] = {}
        self._reports: dict[str, Report] = {}
        self._relay_tokens: list[RelayToken] = []
        self._active_tokens: dict[str, RelayToken] = {}
        # What is generated is numbered, so that the same requests get the same amounts from the same seed.
        self._seed_numbers = itertools.count(1)
        self._item_errors: dict[str, ItemErrors] = {}
        self.ledger = Ledger(self._relay_tokens)
        self.refreshes: list[tuple[str, str]] = []
        self.webhooks: list[Mapping[str, str]] = []

    def new_request_id(self) -> str:
        """Fifteen letters and digits, as Plaid's are."""
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
        """Log in to a bank, and get the public token."""
        if not _INSTITUTION.fullmatch(institution_id):
            raise ApiError("INVALID_INSTITUTION")
        public_token = f"public-sandbox-{uuid4()}"
        self._public_tokens[public_token] = Item(
            client_id=client_id,
            linked=BankLogin(self._new_identifier(), institution_id, self._next_seed()),
            products=frozenset(products),
            public_until=self._clock() + _PUBLIC_TOKEN_SECONDS,
            access_token=f"access-sandbox-{uuid4()}",
            webhook=webhook,
            user_token=user_token,
        )
        return public_token

    def exchange_public_token(self, client_id: str, public_token: str) -> Item:
        """The item of a public token; until that expires, each exchange tells the same (our choice)."""
        item = self._public_tokens.get(public_token)
        if item is None or item.client_id != client_id or self._clock() >= item.public_until:
            raise ApiError("INVALID_PUBLIC_TOKEN")
        self._items[item.access_token] = item
        return item

    def get_item(self, client_id: str, access_token: str) -> Item:
        """The item of an access token."""
        item = self._items.get(access_token)
        if item is None or item.client_id != client_id:
            raise ApiError("INVALID_ACCESS_TOKEN")
        return item

    def remove_item(self, client_id: str, access_token: str) -> None:
        """Invalidate an access token; existing reports stay, as Plaid says.

        That they can be refreshed too is our choice.
        """
        item = self.get_item(client_id, access_token)
        item.public_until = self._clock()
        del self._items[access_token]

    def break_item(self, access_token: str, error_code: str, part: str | None) -> None:
        """Let an Item fail, or one part of it, for what is generated now and from now on."""
        item = self._items.get(access_token)
        if item is None:
            raise ValueError("access_token: there is no such Item")
        if error_code not in ITEM_ERROR_CODES:
            raise ValueError(f"error_code: must be one of: {', '.join(sorted(ITEM_ERROR_CODES))}")
        if part is not None and part not in REPORT_PARTS:
            raise ValueError(f"part: must be null or one of: {', '.join(REPORT_PARTS)}")
        item_id = item.linked.item_id
        self._item_errors[item_id] = {**self._item_errors.get(item_id, {}), part: error_code}
        now = self._clock()
        for report in (*self._reports.values(), *(relay.report for relay in self._relay_tokens)):
            if now < report.ready_at:
                self._apply_item_errors(report)

    def repair_item(self, access_token: str) -> None:
        """Let all be well with an Item again."""
        item = self._items.get(access_token)
        if item is None:
            raise ValueError("access_token: there is no such Item")
        self._item_errors.pop(item.linked.item_id, None)

    # Reports

    def create_report(
        self, client_id: str, access_tokens: Sequence[str], days: int, options: ReportOptions
    ) -> tuple[str, Report]:
        """Begin to generate a report, and get its token."""
        items = [self.get_item(client_id, token) for token in access_tokens]
        if not all("assets" in item.products for item in items):
            raise ApiError("PRODUCT_NOT_ENABLED")
        for item in items:
            # Whether or not all Items are required: the schema of `require_all_items` says so.
            if None in (trouble := self._item_errors.get(item.linked.item_id, {})):
                raise ApiError(trouble[None])
        outline = Outline(
            seed=self._next_seed(),
            report_id="",
            generated=_utc_now(),
            days=days,
            # An Item that is named twice is in the report once (our choice).
            items=tuple(dict.fromkeys(item.linked for item in items)),
            client_report_id=options.client_report_id,
            user=_merge_user(options.user),
            investments=options.investments,
            transactions=self._transactions,
        )
        user_tokens = [item.user_token for item in items if item.user_token is not None]
        terms = GenerationTerms(options.fast_assets, options.require_all_items, next(iter(user_tokens), None))
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
        """A report that is ready, and serves every owner."""
        _check_transaction_count(transactions)
        if not 0 <= days <= _MAX_DAYS:
            raise ValueError(f"days: must be from 0 to {_MAX_DAYS}")
        if not set(missing) <= set(REPORT_PARTS):
            raise ValueError(f"missing: must be of: {', '.join(REPORT_PARTS)}")
        token = token or f"assets-sandbox-{uuid4()}"
        name = f"{self._seed}:{token}"
        # The reason is that of the specification's example.
        lacks = tuple((part, "PRODUCTS_NOT_SUPPORTED") for part in REPORT_PARTS if part in missing)
        outline = Outline(
            seed=name,
            report_id=report_id_from_seed(name),
            generated=_utc_now(),
            days=days,
            items=(
                BankLogin(report_id_from_seed(f"{self._seed}:item of {token}"), "ins_109508", name, lacks),
            ),
            investments=investments,
            transactions=transactions,
        )
        now = self._clock()
        self._reports[token] = Report(None, outline, GenerationTerms(fast_assets=True), now, now)
        return token

    def refresh_report(
        self, client_id: str, token: str, days: int | None, changes: Mapping[str, Any]
    ) -> tuple[str, Report]:
        """Begin to generate a new report of the same Items, with a token of its own.

        What isn't told anew stays as it was, and an empty string empties it, as Plaid says. Null is taken for
        not told, which is our choice, and so is that the original need not be ready.
        """
        report = self.get_report(client_id, token)
        old = report.outline
        named = changes.get("client_report_id")
        outline = evolve(
            old,
            seed=self._next_seed(),
            generated=_utc_now(),
            days=old.days if days is None else days,
            client_report_id=old.client_report_id if named is None else named or None,
            user=_merge_user(changes.get("user", {}), old.user),
        )
        return self._store_report(client_id, outline, report.terms)

    def filter_report(self, client_id: str, token: str, excluded: Collection[str]) -> tuple[str, Report]:
        """Begin to generate a new report without some accounts, with a token of its own.

        Our choices: the original must be ready, for before that it has no accounts to name; an account that
        it doesn't have is an INVALID_FIELD; all of its accounts may be left out.
        """
        original = self.get_report(client_id, token)
        known = {account.account_id for account in self.ready_outline(original).accounts()}
        if not known >= set(excluded):
            raise ApiError("INVALID_FIELD", "account_ids_to_exclude must be of accounts of the report")
        outline = evolve(original.outline, excluded=original.outline.excluded | set(excluded))
        new_token, report = self._store_report(client_id, outline, original.terms, fetched=False)
        report.failures.update(original.failures)
        return new_token, report

    def _store_report(
        self, client_id: str, outline: Outline, terms: GenerationTerms, *, fetched: bool = True
    ) -> tuple[str, Report]:
        token = f"assets-sandbox-{uuid4()}"
        outline = evolve(outline, report_id=report_id_from_seed(f"{self._seed}:{token}"))
        report = self._start_generation(client_id, outline, terms, fetched=fetched)
        self._reports[token] = report
        return token, report

    def _start_generation(
        self, client_id: str | None, outline: Outline, terms: GenerationTerms, *, fetched: bool = True
    ) -> Report:
        """Begin to generate; the fast version takes half the time (our choice)."""
        now = self._clock()
        report = Report(
            client_id, outline, terms, now + self._generation_delay, now + self._generation_delay / 2, fetched
        )
        self._apply_item_errors(report)
        return report

    def _apply_item_errors(self, report: Report) -> None:
        """Let what is wrong with its Items befall a report."""
        if not self._item_errors or not report.fetched:
            return
        for item in report.outline.items:
            if trouble := self._item_errors.get(item.item_id):
                report.failures[item.item_id] = trouble

    def get_report(self, client_id: str, token: str) -> Report:
        """The report of a token, ready or not."""
        report = self._reports.get(token)
        if report is None or not report.allows_client(client_id):
            raise ApiError("INVALID_ASSET_REPORT_TOKEN")
        return report

    def latest_report_of_user(self, client_id: str, user_token: str) -> Report:
        """The latest report with an Item that was linked for a user.

        What Plaid answers where there is none is not published: that it is an INVALID_FIELD is our choice.
        """
        for report in reversed(self._reports.values()):
            if report.client_id == client_id and report.terms.user_token == user_token:
                return report
        raise ApiError("INVALID_FIELD", "user_token must be of a user with a report")

    def ready_outline(self, report: Report) -> Outline:
        """What to write into the report, once it is ready."""
        if self._clock() < report.ready_at:
            raise ApiError("PRODUCT_NOT_READY")
        outline = _without_failed_items(report)
        if outline.transaction_count() > MAX_TRANSACTIONS:
            raise ApiError("ASSET_REPORT_GENERATION_FAILED")
        return outline

    def fast_outline(self, report: Report) -> Outline:
        """The same of its fast version; where there is none, that it is INVALID_FIELD is our choice."""
        if not report.terms.fast_assets:
            raise ApiError(
                "INVALID_FIELD", "fast_report must be false for a report without the add-on fast_assets"
            )
        if self._clock() < report.fast_at:
            raise ApiError("PRODUCT_NOT_READY")
        return evolve(_without_failed_items(report), fast=True)

    def remove_report(self, client_id: str, token: str) -> None:
        """Invalidate a report token.

        Relay tokens made of it go on working: what Plaid does to them is not published, this is our choice.
        """
        self.get_report(client_id, token)
        del self._reports[token]

    # Relay tokens

    def create_relay(self, client_id: str, report_token: str, partner: str, request_id: str) -> str:
        """Mint a relay token: a new one each time, whoever asks. The report need not be ready yet.

        Whether Plaid answers a second create for the same pair with a second token is not published; that it
        lists none, and that removing one leaves the others, speaks for it.
        """
        report = self.get_report(client_id, report_token)
        relay = RelayToken(f"credit-relay-sandbox-{uuid4()}", client_id, partner, request_id, report)
        self._relay_tokens.append(relay)
        self._active_tokens[relay.relay_token] = relay
        return relay.relay_token

    def get_relay_token(self, partner: str, relay_token: str) -> RelayToken:
        """The relay token, for the partner that it was made for and nobody else."""
        relay = self._active_tokens.get(relay_token)
        if relay is None or relay.secondary_client_id != partner:
            raise ApiError("INVALID_RELAY_TOKEN")
        return relay

    def refresh_relay(self, partner: str, relay_token: str) -> str:
        """Begin a fresh version of the report behind a relay token, and get its id.

        Our choices, for nothing is published: the token stays the same and points at the fresh version from
        now on, the owner's report token at the old one; a version still being generated may be refreshed.
        """
        relay = self.get_relay_token(partner, relay_token)
        fresh_id = report_id_from_seed(f"{self._seed}:{uuid4()}")
        outline = evolve(
            relay.report.outline, seed=self._next_seed(), report_id=fresh_id, generated=_utc_now()
        )
        relay.report = self._start_generation(relay.client_id, outline, relay.report.terms)
        fresh = relay.report.outline.report_id
        self.refreshes.append((relay_token, fresh))
        return fresh

    def remove_relay(self, client_id: str, relay_token: str) -> None:
        """Invalidate a relay token, for its owner; a second time it is no longer known."""
        relay = self._active_tokens.get(relay_token)
        if relay is None or relay.client_id != client_id:
            raise ApiError("INVALID_RELAY_TOKEN")
        relay.removed = True
        del self._active_tokens[relay_token]
