"""What this Plaid knows: items, reports and relay tokens, and who may use which. No HTTP."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from random import Random
from string import ascii_letters, digits
from typing import Any, overload
from uuid import uuid4

from attrs import define, field, frozen

from plaid_relay_async.simulator.problems import Refusal
from plaid_relay_async.simulator.samples import USER_FIELDS, Linked, Outline, report_id

_INSTITUTION = re.compile(r"ins_\d+")
_PUBLIC_TOKEN_SECONDS = 30 * 60  # https://plaid.com/docs/api/items/#itempublic_tokenexchange
_ALPHABET = ascii_letters + digits


@define
class Item:
    """One bank login, and the two tokens that name it."""

    client_id: str
    linked: Linked
    has_assets: bool
    public_until: float
    access_token: str = field(repr=False)


@define
class Report:
    """One version of a report; `client_id` None means that it serves every owner."""

    client_id: str | None
    outline: Outline
    ready_at: float

    def serves(self, client_id: str) -> bool:
        """Whether this client may use its token."""
        return self.client_id in {None, client_id}


@define
class Relay:
    """One relay token, and the report that it points at."""

    relay_token: str = field(repr=False)
    client_id: str
    secondary_client_id: str
    request_id: str
    report: Report = field(repr=False)
    removed: bool = False

    def entry(self) -> dict[str, object]:
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

    def __init__(self, relays: list[Relay]) -> None:
        self._relays = relays

    def __len__(self) -> int:
        return len(self._relays)

    def __iter__(self) -> Iterator[Mapping[str, object]]:
        return (relay.entry() for relay in self._relays)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, object]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, object]]: ...
    def __getitem__(self, index: int | slice) -> Mapping[str, object] | Sequence[Mapping[str, object]]:
        if isinstance(index, slice):
            return [relay.entry() for relay in self._relays[index]]
        return self._relays[index].entry()


@frozen
class ReportOptions:
    """What the maker of a report may ask of it."""

    client_report_id: str | None = None
    user: Mapping[str, Any] = field(factory=dict, repr=False)
    investments: bool = False


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


class World:
    """The state, and the rules of who may do what with it.

    Args:
        generating: Seconds until a new report is ready.
        seed: Of what the reports hold.
        clock: Seconds that only grow.
    """

    def __init__(self, *, generating: float, seed: int, clock: Callable[[], float]) -> None:
        self._generating = generating
        self._seed = seed
        self._clock = clock
        # Of its own, so that no one's seeded draws are disturbed, nor disturb it.
        self._draw = Random()
        self._items: dict[str, Item] = {}
        self._public: dict[str, Item] = {}
        self._reports: dict[str, Report] = {}
        self._relays: list[Relay] = []
        self._by_token: dict[str, Relay] = {}
        self.ledger = Ledger(self._relays)
        self.refreshes: list[tuple[str, str]] = []

    def request_id(self) -> str:
        """Fifteen letters and digits, as Plaid's are."""
        return "".join(self._draw.choices(_ALPHABET, k=15))

    def _identifier(self) -> str:
        return "".join(self._draw.choices(_ALPHABET, k=37))

    # Items

    def link(self, client_id: str, institution_id: str, products: Sequence[str]) -> str:
        """Log in to a bank, and get the public token."""
        if not _INSTITUTION.fullmatch(institution_id):
            raise Refusal("INVALID_INSTITUTION")
        public_token = f"public-sandbox-{uuid4()}"
        self._public[public_token] = Item(
            client_id,
            Linked(self._identifier(), institution_id),
            "assets" in products,
            self._clock() + _PUBLIC_TOKEN_SECONDS,
            f"access-sandbox-{uuid4()}",
        )
        return public_token

    def exchange(self, client_id: str, public_token: str) -> Item:
        """The item of a public token; until that expires, each exchange tells the same (our choice)."""
        item = self._public.get(public_token)
        if item is None or item.client_id != client_id or self._clock() >= item.public_until:
            raise Refusal("INVALID_PUBLIC_TOKEN")
        self._items[item.access_token] = item
        return item

    def item(self, client_id: str, access_token: str) -> Item:
        """The item of an access token."""
        item = self._items.get(access_token)
        if item is None or item.client_id != client_id:
            raise Refusal("INVALID_ACCESS_TOKEN")
        return item

    def remove_item(self, client_id: str, access_token: str) -> None:
        """Invalidate an access token; existing reports stay, as Plaid says."""
        item = self.item(client_id, access_token)
        item.public_until = self._clock()
        del self._items[access_token]

    # Reports

    def create_report(
        self, client_id: str, access_tokens: Sequence[str], days: int, options: ReportOptions
    ) -> tuple[str, Report]:
        """Begin to generate a report, and get its token."""
        items = [self.item(client_id, token) for token in access_tokens]
        if not all(item.has_assets for item in items):
            raise Refusal("PRODUCT_NOT_ENABLED")
        linked = tuple(item.linked for item in items)
        token = f"assets-sandbox-{uuid4()}"
        report = self._generate(client_id, self._outline(token, days, linked, options))
        self._reports[token] = report
        return token, report

    def add_report(self, token: str | None = None) -> str:
        """A report that is ready, and serves every owner."""
        token = token or f"assets-sandbox-{uuid4()}"
        linked = (Linked(report_id(f"{self._seed}:item of {token}"), "ins_109508"),)
        outline = self._outline(token, 60, linked, ReportOptions())
        self._reports[token] = Report(None, outline, self._clock())
        return token

    def _outline(self, token: str, days: int, linked: tuple[Linked, ...], options: ReportOptions) -> Outline:
        return Outline(
            seed=f"{self._seed}:{token}",
            report_id=report_id(f"{self._seed}:{token}"),
            generated=_now(),
            days=days,
            items=linked,
            client_report_id=options.client_report_id,
            user=tuple(options.user.get(name) for name in USER_FIELDS),
            investments=options.investments,
        )

    def _generate(self, client_id: str | None, outline: Outline) -> Report:
        return Report(client_id, outline, self._clock() + self._generating)

    def report(self, client_id: str, token: str) -> Report:
        """The report of a token, ready or not."""
        report = self._reports.get(token)
        if report is None or not report.serves(client_id):
            raise Refusal("INVALID_ASSET_REPORT_TOKEN")
        return report

    def ready(self, report: Report) -> Outline:
        """What to write into the report, once it is ready."""
        if self._clock() < report.ready_at:
            raise Refusal("PRODUCT_NOT_READY")
        return report.outline

    def remove_report(self, client_id: str, token: str) -> None:
        """Invalidate a report token.

        Relay tokens made of it go on working: what Plaid does to them is not published, this is our choice.
        """
        self.report(client_id, token)
        del self._reports[token]

    # Relay tokens

    def create_relay(self, client_id: str, report_token: str, partner: str, request_id: str) -> str:
        """Mint a relay token: a new one each time, whoever asks. The report need not be ready yet.

        Whether Plaid answers a second create for the same pair with a second token is not published; that it
        lists none, and that removing one leaves the others, speaks for it.
        """
        report = self.report(client_id, report_token)
        relay = Relay(f"credit-relay-sandbox-{uuid4()}", client_id, partner, request_id, report)
        self._relays.append(relay)
        self._by_token[relay.relay_token] = relay
        return relay.relay_token

    def shared(self, partner: str, relay_token: str) -> Relay:
        """The relay token, for the partner that it was made for and nobody else."""
        relay = self._by_token.get(relay_token)
        if relay is None or relay.secondary_client_id != partner:
            raise Refusal("INVALID_RELAY_TOKEN")
        return relay

    def refresh(self, partner: str, relay_token: str) -> str:
        """Begin a fresh version of the report behind a relay token, and get its id.

        Our choices, for nothing is published: the token stays the same and points at the fresh version from
        now on, the owner's report token at the old one; a version still being generated may be refreshed.
        """
        relay = self.shared(partner, relay_token)
        old = relay.report.outline
        relay.report = self._generate(relay.client_id, old.again(f"{self._seed}:{uuid4()}", _now()))
        fresh = relay.report.outline.report_id
        self.refreshes.append((relay_token, fresh))
        return fresh

    def remove_relay(self, client_id: str, relay_token: str) -> None:
        """Invalidate a relay token, for its owner; a second time it is no longer known."""
        relay = self._by_token.get(relay_token)
        if relay is None or relay.client_id != client_id:
            raise Refusal("INVALID_RELAY_TOKEN")
        relay.removed = True
        del self._by_token[relay_token]
