"""Plausible sample reports, generated from an outline: the same outline leads to the same report."""

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random

from attrs import frozen

from plaid_relay_async.simulator import activity, holdings, pdf
from plaid_relay_async.simulator.api_errors import item_cause
from plaid_relay_async.simulator.insights import lending_insights
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
"""Records that are encoded in one call of json.dumps, which holds the GIL and so blocks all other threads."""

# Plaid's official test institutions. The name of any other is derived from its ID.
_BANKS = {
    "ins_109508": "First Platypus Bank",
    "ins_109509": "First Gingham Credit Union",
    "ins_109510": "Tattersall Federal Credit Union",
    "ins_109511": "Tartan Bank",
    "ins_109512": "Houndstooth Bank",
}


@frozen
class _RenderedAccount:
    """An account of a report, with the data for the insights into all of the report's accounts."""

    content: Json
    transactions: list[Json]
    balances: list[Json]


def report_bytes(
    transactions: int, *, days: int = 90, seed: int = 0, insights: bool = False, investments: bool = False
) -> bytes:
    """Return a response body of `/credit/relay/get`, without a server.

    The same arguments lead to the same bytes: about 0.1 MB for 200 transactions, 1 MB for 3,400, and 8 MB for
    8,000 with insights.

    Args:
        transactions: number of transactions, from 0 to Plaid's maximum of 15,000.
        days: number of days, 1 to 731.
        seed: seed of the content.
        insights: whether the report has insights.
        investments: whether the report has investment accounts.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 0 <= transactions <= MAX_TRANSACTIONS:
        raise ValueError(f"transactions: must be from 0 to {MAX_TRANSACTIONS:,}")
    if not 1 <= days <= 731:
        raise ValueError("days: must be from 1 to 731")
    name = f"{seed}:sample"
    outline = Outline(
        seed=name,
        report_id=report_id_from_seed(name),
        generated_at=datetime(2026, 6, 30, 12, tzinfo=UTC),
        days=days,
        items=(BankLogin(report_id_from_seed(f"{name}:item"), "ins_109508", name),),
        investments=investments,
        transactions=transactions,
    )
    return render_body(outline, insights=insights, request_id="m8MDnv9okwxFNBV")


def render_body(outline: Outline, *, insights: bool, request_id: str) -> bytes:
    """Return the body of a response with the report, in JSON."""
    return finish_body(render_unfinished_body(outline, insights=insights), request_id)


def finish_body(body: bytes, request_id: str) -> bytes:
    """Return a body from `render_unfinished_body`, completed with the request_id of one response."""
    return b'%s, "request_id": %s}' % (body, json.dumps(request_id).encode())


def render_unfinished_body(outline: Outline, *, insights: bool) -> bytes:
    """Return the body of a response with the report, up to its request_id.

    The body is built from small pieces. A single call of json.dumps for a big report would block the event
    loop even if it ran in another thread, because it holds the GIL.
    """
    pieces = ['{"report": ', *_report_pieces(outline, insights=insights)]
    pieces += [', "warnings": ', json.dumps(_warnings(outline))]
    return "".join(pieces).encode()


def _report_pieces(outline: Outline, *, insights: bool) -> Iterator[str]:
    head: Json = {
        "asset_report_id": outline.report_id,
        "client_report_id": outline.client_report_id,
        "date_generated": format_timestamp(outline.generated_at),
        "days_requested": outline.days,
        "user": dict(zip(USER_FIELDS, outline.user, strict=True)),
    }
    rendered = [_render_account(outline, account, insights=insights) for account in outline.accounts()]
    by_item: dict[str, list[_RenderedAccount]] = {item.item_id: [] for item in outline.items}
    for account, content in zip(outline.accounts(), rendered, strict=True):
        by_item[account.item.item_id].append(content)
    if insights and not outline.fast:
        entries = [entry for account in rendered for entry in account.transactions]
        head["insights"] = lending_insights(outline, entries, [account.balances for account in rendered])
    items = [_item_piece(outline, item, by_item[item.item_id], insights=insights) for item in outline.items]
    yield _with_list(head, "items", items)


def _item_piece(
    outline: Outline, item: BankLogin, accounts: Iterable[_RenderedAccount], *, insights: bool
) -> str:
    ago = Random(f"{outline.seed}:{item.item_id}").randrange(3600)
    head = {
        "date_last_updated": format_timestamp(outline.generated_at - timedelta(seconds=ago)),
        "institution_id": item.institution_id,
        "institution_name": _BANKS.get(item.institution_id, f"Bank {item.institution_id[4:]}"),
        "item_id": item.item_id,
    }
    return _with_list(head, "accounts", (_account_piece(each, insights=insights) for each in accounts))


def _account_piece(account: _RenderedAccount, *, insights: bool) -> str:
    entries = account.transactions
    if not insights:
        entries = [activity.without_insights(entry) for entry in entries]
    slices = (
        entries[start : start + _RECORDS_PER_PIECE] for start in range(0, len(entries), _RECORDS_PER_PIECE)
    )
    # Without the brackets of each slice, the slices form one list.
    return _with_list(account.content, "transactions", (json.dumps(each)[1:-1] for each in slices))


def _with_list(head: Json, name: str, pieces: Iterable[str]) -> str:
    """Return an object as JSON, with one more field: a list whose items are encoded already."""
    return f'{json.dumps(head)[:-1]}, "{name}": [{", ".join(pieces)}]}}'


def _render_account(outline: Outline, account: Account, *, insights: bool) -> _RenderedAccount:
    units = _balance_cents(account) * activity.UNITS_PER_DOLLAR // 100
    entries = [] if outline.fast else list(activity.generate_transactions(account, outline))
    balances = [] if outline.fast else list(activity.balance_history(account, outline, units, entries))
    since = outline.iso_date(outline.days_shown)
    # The history was computed from all transactions. Only then are those before the days to show removed.
    entries = [entry for entry in entries if entry["date"] > since]
    balances = [balance for balance in balances if balance["date"] > since]
    content = {
        **_account_identity(account),
        "balances": _balance_fields(outline, account),
        "days_available": outline.days,
        "historical_balances": balances,
    }
    if (
        account.kind.account_type == "investment"
        and account.item.has_part("investments")
        and not outline.fast
    ):
        content["investments"] = holdings.generate_investments(account, outline)
    if insights and entries:
        content["account_insights"] = lending_insights(outline, entries, [balances])
    return _RenderedAccount(content, entries, balances)


def _account_identity(account: Account) -> Json:
    """Return the fields of an account that are the same in each report of its Item."""
    rng = Random(f"{account.item.seed}:{account.kind.name}")
    kind = account.kind
    identity: Json = {
        "account_id": account.account_id,
        "mask": f"{rng.randrange(10_000):04}",
        "name": kind.name,
        "official_name": kind.official_name,
        "owners": _owners(account.item) if account.item.has_part("owners") else [],
        "ownership_type": rng.choice((None, "individual", "joint")),
        "subtype": kind.subtype,
        "type": kind.account_type,
    }
    # Plaid sends these two fields only for some accounts, and omits them for the others.
    if kind.account_type == "depository" and rng.random() < 0.5:
        identity["verification_status"] = "automatically_verified"
        identity["persistent_account_id"] = report_id_from_seed(account.account_id).replace("-", "")
    return identity


def _balance_cents(account: Account) -> int:
    """Return the balance of an account in cents."""
    return Random(f"{account.seed}:balance").randrange(account.kind.min_balance, account.kind.max_balance)


def _balance_fields(outline: Outline, account: Account) -> Json:
    kind, cents = account.kind, _balance_cents(account)
    available: dict[str, int | None] = {"depository": cents, "credit": (kind.limit or 0) - cents}
    shown = available.get(kind.account_type)
    return {
        "available": None if shown is None else shown / 100,
        "current": cents / 100,
        "last_updated_datetime": format_timestamp(outline.generated_at) if kind.lists_transactions else None,
        "limit": None if kind.limit is None else kind.limit / 100,
        "margin_loan_amount": 0.0 if kind.subtype == "brokerage" else None,
        **kind.currency_fields(),
    }


def _owners(item: BankLogin) -> list[Json]:
    """Return the one or two owners of a login, who are the same for each of its accounts."""
    rng = Random(f"{item.seed}:owners")
    last = rng.choice(("Charleson", "Okafor", "Lind"))
    firsts = rng.sample(("Alberta", "Rowan", "Mina", "Jo"), k=rng.choice((1, 2)))
    return [_owner(rng, first, last) for first in firsts]


def _owner(rng: Random, first: str, last: str) -> Json:
    name = f"{first}.{last}".lower()
    street, code = f"{rng.randrange(1, 9999)} Grandrose Road", f"{rng.randrange(10_000, 99_999)}"
    home = {"city": "Malakoff", "country": "US", "postal_code": code, "region": "NY", "street": street}
    # Some banks know only one line of an address; the other fields are then null.
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
            {"data": f"1555{rng.randrange(10**7):07}", "primary": primary, "type": kind}
            for kind, primary in phones
        ],
    }


def _warnings(outline: Outline) -> list[Json]:
    """Return a warning for each requested part that is missing from an Item, with the cause."""
    unavailable_parts: Sequence[tuple[BankLogin, str, str]] = [
        (item, part, code) for item in outline.items for part, code in item.unavailable_parts
    ]
    return [
        {
            "cause": item_cause(code, item.item_id),
            "warning_code": f"{part.upper()}_UNAVAILABLE",
            "warning_type": "ASSET_REPORT_WARNING",
        }
        for item, part, code in unavailable_parts
        if _is_requested(outline, part)
    ]


def _is_requested(outline: Outline, part: str) -> bool:
    return part == "owners" or (not outline.fast and (part != "investments" or outline.investments))


def render_report_pdf(outline: Outline) -> bytes:
    """Return the report as a PDF with one line for each account, grouped by bank."""
    lines = [f"Asset Report {outline.report_id}", f"Generated {format_timestamp(outline.generated_at)}", ""]
    previous_item_id = ""
    for account in outline.accounts():
        bank = account.item.institution_id
        if account.item.item_id != previous_item_id:
            lines.append(_BANKS.get(bank, f"Bank {bank[4:]}"))
            previous_item_id = account.item.item_id
        identity, current = _account_identity(account), _balance_cents(account) / 100
        currency = account.kind.currency[0] or account.kind.currency[1]
        lines.append(f"    {identity['name']}  ...{identity['mask']}  {currency} {current:,.2f}")
    return pdf.render_pdf(lines)
