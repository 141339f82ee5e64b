"""Plausible reports, written from a seed: the same outline is the same report, to the cent."""

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random

from attrs import frozen

from plaid_relay_async.simulator import activity, holdings, pdf
from plaid_relay_async.simulator.api_errors import item_cause
from plaid_relay_async.simulator.insights import insights as lending_insights
from plaid_relay_async.simulator.outline import (
    MAX_TRANSACTIONS,
    USER_FIELDS,
    Account,
    BankLogin,
    Json,
    Outline,
    format_timestamp,
    report_id_from_seed,
)

_RECORDS_PER_PIECE = 500
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
class _RenderedAccount:
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
    if not 0 <= transactions <= MAX_TRANSACTIONS:
        raise ValueError(f"transactions: must be from 0 to {MAX_TRANSACTIONS:,}")
    if not 1 <= days <= 731:
        raise ValueError("days: must be from 1 to 731")
    name = f"{seed}:sample"
    outline = Outline(
        seed=name,
        report_id=report_id_from_seed(name),
        generated=datetime(2026, 6, 30, 12, tzinfo=UTC),
        days=days,
        items=(BankLogin(report_id_from_seed(f"{name}:item"), "ins_109508", name),),
        investments=investments,
        transactions=transactions,
    )
    return render_body(outline, insights=insights, request_id="m8MDnv9okwxFNBV")


def render_body(outline: Outline, *, insights: bool, request_id: str) -> bytes:
    """The body of an answer with the report, in JSON."""
    return finish_body(render_unfinished_body(outline, insights=insights), request_id)


def finish_body(body: bytes, request_id: str) -> bytes:
    """A body from `opened`, with the id that each answer has of its own."""
    return b'%s, "request_id": %s}' % (body, json.dumps(request_id).encode())


def render_unfinished_body(outline: Outline, *, insights: bool) -> bytes:
    """The body of an answer with the report, up to its request_id.

    It is put together of small pieces: one call for all of a big report would hold up the event loop from
    another thread too.
    """
    pieces = ['{"report": ', *_report_pieces(outline, insights=insights)]
    pieces += [', "warnings": ', json.dumps(_warnings(outline))]
    return "".join(pieces).encode()


def _report_pieces(outline: Outline, *, insights: bool) -> Iterator[str]:
    head: Json = {
        "asset_report_id": outline.report_id,
        "client_report_id": outline.client_report_id,
        "date_generated": format_timestamp(outline.generated),
        "days_requested": outline.days,
        "user": dict(zip(USER_FIELDS, outline.user, strict=True)),
    }
    told = [_render_account(outline, account, insights=insights) for account in outline.accounts()]
    by_item: dict[str, list[_RenderedAccount]] = {item.item_id: [] for item in outline.items}
    for account, one in zip(outline.accounts(), told, strict=True):
        by_item[account.item.item_id].append(one)
    if insights and not outline.fast:
        everything = [entry for one in told for entry in one.transactions]
        head["insights"] = lending_insights(outline, everything, [one.balances for one in told])
    items = [_item_piece(outline, item, by_item[item.item_id], insights=insights) for item in outline.items]
    yield _with_list(head, "items", items)


def _item_piece(
    outline: Outline, item: BankLogin, accounts: Iterable[_RenderedAccount], *, insights: bool
) -> str:
    ago = Random(f"{outline.seed}:{item.item_id}").randrange(3600)
    head = {
        "date_last_updated": format_timestamp(outline.generated - timedelta(seconds=ago)),
        "institution_id": item.institution_id,
        "institution_name": _BANKS.get(item.institution_id, f"Bank {item.institution_id[4:]}"),
        "item_id": item.item_id,
    }
    return _with_list(head, "accounts", (_account_piece(one, insights=insights) for one in accounts))


def _account_piece(told: _RenderedAccount, *, insights: bool) -> str:
    shown = (
        told.transactions if insights else [activity.without_insights(entry) for entry in told.transactions]
    )
    slices = (shown[start : start + _RECORDS_PER_PIECE] for start in range(0, len(shown), _RECORDS_PER_PIECE))
    return _with_list(told.content, "transactions", (json.dumps(entries)[1:-1] for entries in slices))


def _with_list(head: Json, name: str, pieces: Iterable[str]) -> str:
    """An object of JSON, with one list more that is JSON already."""
    return f'{json.dumps(head)[:-1]}, "{name}": [{", ".join(pieces)}]}}'


def _render_account(outline: Outline, account: Account, *, insights: bool) -> _RenderedAccount:
    units = _balance_cents(account) * activity.UNITS_PER_DOLLAR // 100
    entries = [] if outline.fast else list(activity.generate_transactions(account, outline))
    past = [] if outline.fast else list(activity.balance_history(account, outline, units, entries))
    since = outline.iso_date(outline.days_shown)
    entries = [entry for entry in entries if entry["date"] > since]
    past = [balance for balance in past if balance["date"] > since]
    content = {
        **_account_identity(account),
        "balances": _balance_fields(outline, account),
        "days_available": outline.days,
        "historical_balances": past,
    }
    if (
        account.kind.account_type == "investment"
        and account.item.has_part("investments")
        and not outline.fast
    ):
        content["investments"] = holdings.generate_investments(account, outline)
    if insights and entries:
        content["account_insights"] = lending_insights(outline, entries, [past])
    return _RenderedAccount(content, entries, past)


def _account_identity(account: Account) -> Json:
    """What stays the same in each report of the Item."""
    draw = Random(f"{account.item.seed}:{account.kind.name}")
    kind = account.kind
    told: Json = {
        "account_id": account.account_id,
        "mask": f"{draw.randrange(10_000):04}",
        "name": kind.name,
        "official_name": kind.official_name,
        "owners": _owners(account.item) if account.item.has_part("owners") else [],
        "ownership_type": draw.choice((None, "individual", "joint")),
        "subtype": kind.subtype,
        "type": kind.account_type,
    }
    # Plaid gives both for some accounts alone, and leaves them out elsewhere.
    if kind.account_type == "depository" and draw.random() < 0.5:
        told["verification_status"] = "automatically_verified"
        told["persistent_account_id"] = report_id_from_seed(account.account_id).replace("-", "")
    return told


def _balance_cents(account: Account) -> int:
    """In cents."""
    return Random(f"{account.seed}:balance").randrange(account.kind.min_balance, account.kind.max_balance)


def _balance_fields(outline: Outline, account: Account) -> Json:
    kind, cents = account.kind, _balance_cents(account)
    available: dict[str, int | None] = {"depository": cents, "credit": (kind.limit or 0) - cents}
    shown = available.get(kind.account_type)
    return {
        "available": None if shown is None else shown / 100,
        "current": cents / 100,
        "last_updated_datetime": format_timestamp(outline.generated) if kind.lists_transactions else None,
        "limit": None if kind.limit is None else kind.limit / 100,
        "margin_loan_amount": 0.0 if kind.subtype == "brokerage" else None,
        **kind.currency_fields(),
    }


def _owners(item: BankLogin) -> list[Json]:
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
    lacks: Sequence[tuple[BankLogin, str, str]] = [
        (item, part, code) for item in outline.items for part, code in item.lacks
    ]
    return [
        {
            "cause": item_cause(code, item.item_id),
            "warning_code": f"{part.upper()}_UNAVAILABLE",
            "warning_type": "ASSET_REPORT_WARNING",
        }
        for item, part, code in lacks
        if _is_requested(outline, part)
    ]


def _is_requested(outline: Outline, part: str) -> bool:
    return part == "owners" or (not outline.fast and (part != "investments" or outline.investments))


def render_report_pdf(outline: Outline) -> bytes:
    """The report as a PDF: an account a line, with its balance."""
    lines = [f"Asset Report {outline.report_id}", f"Generated {format_timestamp(outline.generated)}", ""]
    shown = ""
    for account in outline.accounts():
        bank = account.item.institution_id
        if account.item.item_id != shown:
            lines.append(_BANKS.get(bank, f"Bank {bank[4:]}"))
            shown = account.item.item_id
        identity, current = _account_identity(account), _balance_cents(account) / 100
        currency = account.kind.currency[0] or account.kind.currency[1]
        lines.append(f"    {identity['name']}  ...{identity['mask']}  {currency} {current:,.2f}")
    return pdf.render_pdf(lines)
