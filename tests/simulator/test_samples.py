"""The reports themselves."""

import gzip
import json
import re
from decimal import Decimal
from itertools import pairwise

import pytest

from plaid_relay_async.simulator import Simulator, report_bytes

GET = "/asset_report/get"
READY = {"asset_report_token": "ready"}
BASE = {
    "account_id",
    "amount",
    "date",
    "iso_currency_code",
    "original_description",
    "pending",
    "transaction_id",
    "unofficial_currency_code",
}


@pytest.fixture
def report(ask, clock):
    """A new report, once it is ready."""

    async def report(days, shown=None, **options):
        token = (await ask.report(days=days, **options))["asset_report_token"]
        clock.now += 10
        body = {"asset_report_token": token, "options": {"days_to_include": shown}}
        return (await ask(GET, body)).json["report"]

    return report


def accounts(report):
    return [account for item in report["items"] for account in item["accounts"]]


def transactions(report):
    return [entry for account in accounts(report) for entry in account["transactions"]]


async def test_shape(report):
    """About sixty transactions, a balance for each day, an owner for each account, null where Plaid has null."""
    made = await report(90)
    assert len(transactions(made)) == 60
    assert made["client_report_id"] is None
    assert set(made["user"].values()) == {None}
    assert made["items"][0]["institution_name"] == "First Platypus Bank"
    for account in accounts(made):
        assert len(account["historical_balances"]) == 90
        assert account["historical_balances"][0]["current"] == account["balances"]["current"]
        assert account["owners"][0]["names"]
        assert account["balances"]["margin_loan_amount"] is None
        assert "investments" not in account


async def test_amounts_are_decimals_to_the_cent_and_beyond(asking):
    """Most amounts have at most two digits after the point, and some have more."""
    async with Simulator(reports=[f"r{n}" for n in range(5)]) as plaid:
        ask, digits = asking(plaid), set()
        for n in range(5):
            body = {"client_id": "a", "secret": "b", "asset_report_token": f"r{n}"}
            raw = (await ask(GET, body, client=None)).raw
            amounts = [
                entry["amount"] for entry in transactions(json.loads(raw, parse_float=Decimal)["report"])
            ]
            digits |= {-Decimal(amount).as_tuple().exponent for amount in amounts}
        assert {2, 4} <= digits <= {0, 1, 2, 3, 4}


async def test_balances_follow_the_transactions(report):
    """Yesterday's balance is today's with today undone: spending lowers an account's, and raises a card's."""
    for account in accounts(await report(20)):
        sign = -1 if account["type"] == "credit" else 1
        history = account["historical_balances"]
        for later, earlier in pairwise(history):
            spent = sum(
                entry["amount"] for entry in account["transactions"] if entry["date"] == later["date"]
            )
            assert earlier["current"] == pytest.approx(later["current"] + sign * spent, abs=0.001)


async def test_insights(ask):
    """They add category, merchant and the like to each transaction, and change nothing else."""
    plain = (await ask(GET, READY)).json["report"]
    rich = (await ask(GET, READY | {"include_insights": True})).json["report"]
    for bare, full in zip(transactions(plain), transactions(rich), strict=True):
        assert set(bare) == BASE
        assert bare.items() <= full.items()
        assert {"category", "credit_category", "merchant_name", "location", "payment_meta"} <= set(full)


async def test_the_makers_words_come_back(report):
    """client_report_id and user are told as they were given."""
    options = {
        "client_report_id": "loan-7",
        "user": {"first_name": "Alberta", "x": 1},
        "add_ons": ["investments"],
    }
    made = await report(10, **options)
    assert made["client_report_id"] == "loan-7"
    assert made["user"]["first_name"] == "Alberta"
    assert made["user"]["ssn"] is None
    assert "x" not in made["user"]
    assert accounts(made)[-1]["investments"]["holdings"][0]["quantity"] > 0


async def test_no_days(report):
    """A report of no days has accounts, and nothing that happened."""
    made = await report(0)
    assert transactions(made) == []
    assert all(account["historical_balances"] == [] for account in accounts(made))


@pytest.mark.parametrize(("days", "shown"), [(0, 0), (5, 5), (731, 20), (None, 20)])
async def test_days_to_include(report, days, shown):
    """Only the last days are shown, never more than there are."""
    made = await report(20, days)
    assert [len(account["historical_balances"]) for account in accounts(made)] == [shown] * 4
    assert made["days_requested"] == 20


async def test_same_token_and_seed_same_report(asking):
    """What a ready report holds follows from its token and the seed, but for the moment it was made."""

    async def items(seed):
        async with Simulator(reports=["ready"], seed=seed) as plaid:
            ask = asking(plaid)
            body = READY | {"client_id": "a", "secret": "b"}
            first, second = await ask(GET, body, client=None), await ask(GET, body, client=None)
            assert first.json["report"] == second.json["report"]
            return [account["balances"]["current"] for account in accounts(first.json["report"])]

    assert await items(1) == await items(1) != await items(2)


async def test_zipped_where_it_is_taken(ask, session):
    """A long answer is zipped for who says so, and not for others."""
    headers = {"PLAID-CLIENT-ID": "owner", "PLAID-SECRET": "owner-secret", "Accept-Encoding": "gzip"}
    async with session.post(
        ask.plaid.url + GET, json=READY, headers=headers, auto_decompress=False
    ) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        zipped = json.loads(gzip.decompress(await answer.read()))
    plain = await ask(GET, READY, headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    assert plain.json["report"] == zipped["report"]


async def test_pdf_is_whole(ask):
    """Every object begins where the file's own table says, and the table where the trailer says."""
    raw = (await ask("/asset_report/pdf/get", READY)).raw
    start = int(re.search(rb"startxref\n(\d+)\n%%EOF\n$", raw).group(1))
    assert raw[start:].startswith(b"xref\n0 7\n")
    offsets = [int(offset) for offset in re.findall(rb"(\d{10}) 00000 n \n", raw)]
    assert len(offsets) == 6
    for number, offset in enumerate(offsets, 1):
        assert raw[offset:].startswith(b"%d 0 obj\n" % number)
    length, stream = re.search(rb"/Length (\d+) >>\nstream\n(.*?)\nendstream", raw, re.DOTALL).groups()
    assert int(length) == len(stream)
    assert b"Everyday Checking" in stream


async def test_every_part_can_be_missing(ask, plaid):
    """A warning for each part that was asked for and isn't there, and the part is empty."""
    token = plaid.add_report(missing=["transactions", "owners", "investments"])
    answer = await ask(GET, {"asset_report_token": token, "include_insights": True})
    codes = [warning["warning_code"] for warning in answer.json["warnings"]]
    assert codes == ["OWNERS_UNAVAILABLE", "TRANSACTIONS_UNAVAILABLE"]
    for account in accounts(answer.json["report"]):
        assert account["owners"] == account["transactions"] == []
        assert "account_insights" not in account
    fast = await ask(GET, {"asset_report_token": token, "fast_report": True})
    assert [warning["warning_code"] for warning in fast.json["warnings"]] == ["OWNERS_UNAVAILABLE"]


async def test_insights_add_up(ask, plaid):
    """The sums over the report are those of its transactions, and of its accounts together."""
    # Of a token of its own, so that it holds the same each time: by chance, one may have no risk of some kind.
    token = plaid.add_report("assets-sandbox-adds-up", transactions=600, days=200)
    answer = await ask(GET, {"asset_report_token": token, "include_insights": True})
    report = json.loads(answer.raw, parse_float=Decimal)["report"]
    entries = transactions(report)
    incoming = -sum(entry["amount"] for entry in entries if entry["amount"] < 0)
    spent = sum(entry["amount"] for entry in entries if entry["amount"] > 0)
    affordability = report["insights"]["affordability"]
    assert affordability["income"]["total_income"]["amount"] == incoming
    assert affordability["expenditure"]["total_expenditure"]["amount"] == spent
    assert affordability["expenditure"]["cash_flow"]["amount"] == incoming - spent
    parts = ("essential_expenditure", "non_essential_expenditure", "other", "transfers_out")
    assert sum(affordability["expenditure"][part]["amount"] for part in parts) == spent
    assert 0 < affordability["expenditure"]["outlier_transactions"]["transactions_count"] < 100
    for name, told in report["insights"]["risk"].items():
        if name == "negative_balance":
            continue
        each = [
            account["account_insights"]["risk"][name]["amount"]
            for account in accounts(report)
            if "account_insights" in account
        ]
        assert sum(each) == told["amount"] > 0
        assert sum(month["total_amount"]["amount"] for month in told["monthly_summaries"]) == told["amount"]


async def test_negative_balances_are_those_of_the_history(ask, plaid):
    """Each stretch of days below zero is told once, with its lowest balance."""
    token = plaid.add_report(transactions=300, days=300)
    answer = await ask(GET, {"asset_report_token": token, "include_insights": True})
    report = answer.json["report"]
    below = [
        balance["current"]
        for account in accounts(report)
        for balance in account["historical_balances"]
        if balance["current"] < 0
    ]
    told = report["insights"]["risk"]["negative_balance"]
    assert told["days_with_negative_balance"] == len(below) > 0
    assert told["minimum_balance"]["amount"] == min(below)
    lowest = [occurrence["minimum_balance"]["amount"] for occurrence in told["occurrences"]]
    assert min(lowest) == min(below)
    assert all(occurrence["start_date"] <= occurrence["end_date"] for occurrence in told["occurrences"])


def test_bytes_of_a_report_without_a_server():
    """They are the body of an answer, the same at each call, and follow from size and seed."""
    made = report_bytes(200)
    assert made == report_bytes(200) != report_bytes(200, seed=1)
    body = json.loads(made)
    assert set(body) == {"report", "warnings", "request_id"}
    assert len(transactions(body["report"])) == 200
    rich = json.loads(report_bytes(10, days=5, insights=True, investments=True))["report"]
    assert "insights" in rich
    assert rich["days_requested"] == 5
    assert "investments" in accounts(rich)[-1]


@pytest.mark.parametrize(
    ("arguments", "megabytes"),
    [((200,), 0.1), ((3_400,), 1.0), ((8_000,), 8.0)],
    ids=["small", "middle", "big"],
)
def test_sizes_that_the_docstring_tells(arguments, megabytes):
    """About so many megabytes; the biggest is with insights."""
    size = len(report_bytes(*arguments, insights=megabytes == 8.0))
    assert size / 1e6 == pytest.approx(megabytes, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"transactions": -1}, "transactions"),
        ({"transactions": 15_001}, "transactions"),
        ({"days": 0}, "days"),
    ],
)
def test_bytes_of_a_report_that_cannot_be(arguments, named):
    """An argument out of its bounds is a ValueError that names it."""
    with pytest.raises(ValueError, match=f"^{named}: "):
        report_bytes(**{"transactions": 1} | arguments)


async def test_pdf_of_several_items_and_pages(ask, clock):
    """Each bank has its heading; what doesn't fit on a page goes on the next."""
    tokens = [await ask.access_token() for _ in range(12)]
    made = (await ask("/asset_report/create", {"access_tokens": tokens, "days_requested": 1})).json
    clock.now += 10
    raw = (await ask("/asset_report/pdf/get", {"asset_report_token": made["asset_report_token"]})).raw
    assert raw.count(b"(First Platypus Bank)") == 12
    assert b"/Count 2 >>" in raw
    assert raw.endswith(b"%%EOF\n")
