"""Plausible reports, written from a seed: the same outline is the same report, to the cent."""

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random

from attrs import frozen

from plaid_relay_async.simulator import activity, holdings, pdf
from plaid_relay_async.simulator.insights import insights as lending_insights
from plaid_relay_async.simulator.outline import (
    MOST_TRANSACTIONS,
    USER_FIELDS,
    Account,
    Json,
    Linked,
    Outline,
    instant,
    report_id,
)
from plaid_relay_async.simulator.problems import cause

_AT_ONCE = 500
"""Records in one piece of JSON: writing a piece holds up every other thread."""

# Plaid's official test institutions; any other gets a name made of its id.
_BANKS = {
    "ins_109508": "First Platypus Bank",
    "ins_109509": "First Gingham Credit Union",
    "ins_109510": "Tattersall Federal Credit Union",
    "ins_109511": "Tartan Bank",
    "ins_109512": "Houndstooth Bank",
}


@frozen
class _Told:
    """An account of a report, and what the insights of the whole report need of it."""

    content: Json
    transactions: list[Json]
    balances: list[Json]


def report_bytes(
    transactions: int, *, days: int = 90, seed: int = 0, insights: bool = False, investments: bool = False
) -> bytes:
    """The body of an answer of `/credit/relay/get`, made without a server; the same at each call.

    About 0.1 MB at 200 transactions, 1 MB at 3,400, and 8 MB at 8,000 with insights.

    Args:
        transactions: How many it holds, at most Plaid's 15,000.
        days: How many days it goes back, 1 to 731.
        seed: Of what it holds.
        insights: Whether it is a report with insights.
        investments: Whether investment accounts are in it.

    Raises:
        ValueError: There can be no such report.
    """
    if not 0 <= transactions <= MOST_TRANSACTIONS:
        raise ValueError(f"transactions: must be from 0 to {MOST_TRANSACTIONS:,}")
    if not 1 <= days <= 731:
        raise ValueError("days: must be from 1 to 731")
    name = f"{seed}:sample"
    outline = Outline(
        seed=name,
        report_id=report_id(name),
        generated=datetime(2026, 6, 30, 12, tzinfo=UTC),
        days=days,
        items=(Linked(report_id(f"{name}:item"), "ins_109508", name),),
        investments=investments,
        transactions=transactions,
    )
    return written(outline, insights=insights, request_id="m8MDnv9okwxFNBV")


def written(outline: Outline, *, insights: bool, request_id: str) -> bytes:
    """The body of an answer with the report, in JSON."""
    return closed(opened(outline, insights=insights), request_id)


def closed(body: bytes, request_id: str) -> bytes:
    """A body from `opened`, with the id that each answer has of its own."""
    return b'%s, "request_id": %s}' % (body, json.dumps(request_id).encode())


def opened(outline: Outline, *, insights: bool) -> bytes:
    """The body of an answer with the report, up to its request_id.

    It is put together of small pieces: one call for all of a big report would hold up the event loop from
    another thread too.
    """
    pieces = ['{"report": ', *_pieces_of_report(outline, insights=insights)]
    pieces += [', "warnings": ', json.dumps(_warnings(outline))]
    return "".join(pieces).encode()


def _pieces_of_report(outline: Outline, *, insights: bool) -> Iterator[str]:
    head: Json = {
        "asset_report_id": outline.report_id,
        "client_report_id": outline.client_report_id,
        "date_generated": instant(outline.generated),
        "days_requested": outline.days,
        "user": dict(zip(USER_FIELDS, outline.user, strict=True)),
    }
    told = [_account(outline, account, insights=insights) for account in outline.accounts()]
    by_item: dict[str, list[_Told]] = {item.item_id: [] for item in outline.items}
    for account, one in zip(outline.accounts(), told, strict=True):
        by_item[account.item.item_id].append(one)
    if insights and not outline.fast:
        everything = [entry for one in told for entry in one.transactions]
        head["insights"] = lending_insights(outline, everything, [one.balances for one in told])
    items = [
        _piece_of_item(outline, item, by_item[item.item_id], insights=insights) for item in outline.items
    ]
    yield _with(head, "items", items)


def _piece_of_item(outline: Outline, item: Linked, accounts: Iterable[_Told], *, insights: bool) -> str:
    ago = Random(f"{outline.seed}:{item.item_id}").randrange(3600)
    head = {
        "date_last_updated": instant(outline.generated - timedelta(seconds=ago)),
        "institution_id": item.institution_id,
        "institution_name": _BANKS.get(item.institution_id, f"Bank {item.institution_id[4:]}"),
        "item_id": item.item_id,
    }
    return _with(head, "accounts", (_piece_of_account(one, insights=insights) for one in accounts))


def _piece_of_account(told: _Told, *, insights: bool) -> str:
    shown = told.transactions if insights else [activity.plain(entry) for entry in told.transactions]
    slices = (shown[start : start + _AT_ONCE] for start in range(0, len(shown), _AT_ONCE))
    return _with(told.content, "transactions", (json.dumps(entries)[1:-1] for entries in slices))


def _with(head: Json, name: str, pieces: Iterable[str]) -> str:
    """An object of JSON, with one list more that is JSON already."""
    return f'{json.dumps(head)[:-1]}, "{name}": [{", ".join(pieces)}]}}'


def _account(outline: Outline, account: Account, *, insights: bool) -> _Told:
    units = _balance(account) * activity.UNITS // 100
    entries = [] if outline.fast else list(activity.transactions(account, outline))
    past = [] if outline.fast else list(activity.history(account, outline, units, entries))
    since = outline.day(outline.shown)
    entries = [entry for entry in entries if entry["date"] > since]
    past = [balance for balance in past if balance["date"] > since]
    content = {
        **_identity(account),
        "balances": _balances(outline, account),
        "days_available": outline.days,
        "historical_balances": past,
    }
    if account.kind.account_type == "investment" and account.item.has("investments") and not outline.fast:
        content["investments"] = holdings.investments(account, outline)
    if insights and entries:
        content["account_insights"] = lending_insights(outline, entries, [past])
    return _Told(content, entries, past)


def _identity(account: Account) -> Json:
    """What stays the same in each report of the Item."""
    draw = Random(f"{account.item.seed}:{account.kind.name}")
    kind = account.kind
    told: Json = {
        "account_id": account.account_id,
        "mask": f"{draw.randrange(10_000):04}",
        "name": kind.name,
        "official_name": kind.official_name,
        "owners": _owners(account.item) if account.item.has("owners") else [],
        "ownership_type": draw.choice((None, "individual", "joint")),
        "subtype": kind.subtype,
        "type": kind.account_type,
    }
    # Plaid gives both for some accounts alone, and leaves them out elsewhere.
    if kind.account_type == "depository" and draw.random() < 0.5:
        told["verification_status"] = "automatically_verified"
        told["persistent_account_id"] = report_id(account.account_id).replace("-", "")
    return told


def _balance(account: Account) -> int:
    """In cents."""
    return Random(f"{account.seed}:balance").randrange(account.kind.low, account.kind.high)


def _balances(outline: Outline, account: Account) -> Json:
    kind, cents = account.kind, _balance(account)
    available: dict[str, int | None] = {"depository": cents, "credit": (kind.limit or 0) - cents}
    shown = available.get(kind.account_type)
    return {
        "available": None if shown is None else shown / 100,
        "current": cents / 100,
        "last_updated_datetime": instant(outline.generated) if kind.spends else None,
        "limit": None if kind.limit is None else kind.limit / 100,
        "margin_loan_amount": 0.0 if kind.subtype == "brokerage" else None,
        **kind.currencies(),
    }


def _owners(item: Linked) -> list[Json]:
    """Those of a login are the same for each of its accounts: one, or two."""
    draw = Random(f"{item.seed}:owners")
    last = draw.choice(("Charleson", "Okafor", "Lind"))
    firsts = draw.sample(("Alberta", "Rowan", "Mina", "Jo"), k=draw.choice((1, 2)))
    return [_owner(draw, first, last) for first in firsts]


def _owner(draw: Random, first: str, last: str) -> Json:
    name = f"{first}.{last}".lower()
    street, code = f"{draw.randrange(1, 9999)} Grandrose Road", f"{draw.randrange(10_000, 99_999)}"
    home = {"city": "Malakoff", "country": "US", "postal_code": code, "region": "NY", "street": street}
    # Null where the bank tells no more than a line.
    box = {"city": None, "country": None, "postal_code": None, "region": None, "street": "PO Box 17"}
    phones = (("home", True), ("work", False), ("mobile", False))
    return {
        "addresses": [{"data": home, "primary": True}, {"data": box, "primary": False}],
        "emails": [
            {"data": f"{name}@example.com", "primary": True, "type": "primary"},
            {"data": f"{name}@work.example", "primary": False, "type": "secondary"},
        ],
        "names": [f"{first} {last}"],
        "phone_numbers": [
            {"data": f"1555{draw.randrange(10**7):07}", "primary": primary, "type": kind}
            for kind, primary in phones
        ],
    }


def _warnings(outline: Outline) -> list[Json]:
    """One for each part that an Item lacks, with the reason."""
    lacks: Sequence[tuple[Linked, str, str]] = [
        (item, part, code) for item in outline.items for part, code in item.lacks
    ]
    return [
        {
            "cause": cause(code, item.item_id),
            "warning_code": f"{part.upper()}_UNAVAILABLE",
            "warning_type": "ASSET_REPORT_WARNING",
        }
        for item, part, code in lacks
        if _is_asked_for(outline, part)
    ]


def _is_asked_for(outline: Outline, part: str) -> bool:
    return part == "owners" or (not outline.fast and (part != "investments" or outline.investments))


def pdf_of(outline: Outline) -> bytes:
    """The report as a PDF: an account a line, with its balance."""
    lines = [f"Asset Report {outline.report_id}", f"Generated {instant(outline.generated)}", ""]
    shown = ""
    for account in outline.accounts():
        bank = account.item.institution_id
        if account.item.item_id != shown:
            lines.append(_BANKS.get(bank, f"Bank {bank[4:]}"))
            shown = account.item.item_id
        identity, current = _identity(account), _balance(account) / 100
        currency = account.kind.currency[0] or account.kind.currency[1]
        lines.append(f"    {identity['name']}  ...{identity['mask']}  {currency} {current:,.2f}")
    return pdf.typeset(lines)
