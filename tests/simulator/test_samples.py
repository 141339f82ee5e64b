"""The content of the sample reports."""

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
def report(api, clock):
    """Return a function that creates a report, waits until it is ready, and reads it."""

    async def report(days, days_shown=None, **options):
        token = (await api.report(days=days, **options))["asset_report_token"]
        clock.now += 10
        body = {"asset_report_token": token, "options": {"days_to_include": days_shown}}
        return (await api(GET, body)).json["report"]

    return report


def accounts(report):
    return [account for item in report["items"] for account in item["accounts"]]


def transactions(report):
    return [entry for account in accounts(report) for entry in account["transactions"]]


async def test_shape(report):
    """A report has sixty transactions, a balance for each day, an owner for each account, and Plaid's nulls."""
    created = await report(90)
    assert len(transactions(created)) == 60
    assert created["client_report_id"] is None
    assert set(created["user"].values()) == {None}
    assert created["items"][0]["institution_name"] == "First Platypus Bank"
    for account in accounts(created):
        assert len(account["historical_balances"]) == 90
        assert account["historical_balances"][0]["current"] == account["balances"]["current"]
        assert account["owners"][0]["names"]
        assert account["balances"]["margin_loan_amount"] is None
        assert "investments" not in account


async def test_number_of_decimals(api_for):
    """Most amounts have at most two decimals, and some have more."""
    async with Simulator(reports=[f"r{n}" for n in range(5)]) as plaid:
        api, digits = api_for(plaid), set()
        for n in range(5):
            body = {"client_id": "a", "secret": "b", "asset_report_token": f"r{n}"}
            raw = (await api(GET, body, client=None)).raw
            amounts = [
                entry["amount"] for entry in transactions(json.loads(raw, parse_float=Decimal)["report"])
            ]
            digits |= {-Decimal(amount).as_tuple().exponent for amount in amounts}
        assert {2, 4} <= digits <= {0, 1, 2, 3, 4}


async def test_balances_follow_the_transactions(report):
    """A day's expenses lower the balance of an account, and raise that of a credit card."""
    for account in accounts(await report(20)):
        sign = -1 if account["type"] == "credit" else 1
        history = account["historical_balances"]
        for later, earlier in pairwise(history):
            spent = sum(
                entry["amount"] for entry in account["transactions"] if entry["date"] == later["date"]
            )
            assert earlier["current"] == pytest.approx(later["current"] + sign * spent, abs=0.001)


async def test_insights(api):
    """Insights add fields such as category and merchant to each transaction, and change nothing else."""
    plain = (await api(GET, READY)).json["report"]
    rich = (await api(GET, READY | {"include_insights": True})).json["report"]
    for bare, full in zip(transactions(plain), transactions(rich), strict=True):
        assert set(bare) == BASE
        assert bare.items() <= full.items()
        assert {"category", "credit_category", "merchant_name", "location", "payment_meta"} <= set(full)


async def test_options_are_in_the_report(report):
    """client_report_id and the known fields of user are copied into the report."""
    options = {
        "client_report_id": "loan-7",
        "user": {"first_name": "Alberta", "x": 1},
        "add_ons": ["investments"],
    }
    created = await report(10, **options)
    assert created["client_report_id"] == "loan-7"
    assert created["user"]["first_name"] == "Alberta"
    assert created["user"]["ssn"] is None
    assert "x" not in created["user"]
    assert accounts(created)[-1]["investments"]["holdings"][0]["quantity"] > 0


async def test_no_days(report):
    """A report of no days has accounts without transactions and balances."""
    created = await report(0)
    assert transactions(created) == []
    assert all(account["historical_balances"] == [] for account in accounts(created))


@pytest.mark.parametrize(("days", "days_shown"), [(0, 0), (5, 5), (731, 20), (None, 20)])
async def test_days_to_include(report, days, days_shown):
    """Only the last days are shown, and at most all days of the report."""
    created = await report(20, days)
    assert [len(account["historical_balances"]) for account in accounts(created)] == [days_shown] * 4
    assert created["days_requested"] == 20


async def test_same_token_and_seed_same_report(api_for):
    """The token and the seed determine the content of a ready report, apart from the time of generation."""

    async def items(seed):
        async with Simulator(reports=["ready"], seed=seed) as plaid:
            api = api_for(plaid)
            body = READY | {"client_id": "a", "secret": "b"}
            first, second = await api(GET, body, client=None), await api(GET, body, client=None)
            assert first.json["report"] == second.json["report"]
            return [account["balances"]["current"] for account in accounts(first.json["report"])]

    assert await items(1) == await items(1) != await items(2)


async def test_compression_where_it_is_accepted(api, session):
    """A long response is compressed if the client accepts it, and otherwise not."""
    headers = {"PLAID-CLIENT-ID": "owner", "PLAID-SECRET": "owner-secret", "Accept-Encoding": "gzip"}
    async with session.post(
        api.plaid.url + GET, json=READY, headers=headers, auto_decompress=False
    ) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        decompressed = json.loads(gzip.decompress(await response.read()))
    plain = await api(GET, READY, headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    assert plain.json["report"] == decompressed["report"]


async def test_pdf_structure(api):
    """The offsets of all objects are in the file's table, and the table's offset is in the trailer."""
    raw = (await api("/asset_report/pdf/get", READY)).raw
    start = int(re.search(rb"startxref\n(\d+)\n%%EOF\n$", raw).group(1))
    assert raw[start:].startswith(b"xref\n0 7\n")
    offsets = [int(offset) for offset in re.findall(rb"(\d{10}) 00000 n \n", raw)]
    assert len(offsets) == 6
    for number, offset in enumerate(offsets, 1):
        assert raw[offset:].startswith(b"%d 0 obj\n" % number)
    length, stream = re.search(rb"/Length (\d+) >>\nstream\n(.*?)\nendstream", raw, re.DOTALL).groups()
    assert int(length) == len(stream)
    assert b"Everyday Checking" in stream


async def test_every_part_can_be_missing(api, plaid):
    """Each requested part that is missing has a warning, and is empty."""
    token = plaid.add_report(missing=["transactions", "owners", "investments"])
    response = await api(GET, {"asset_report_token": token, "include_insights": True})
    codes = [warning["warning_code"] for warning in response.json["warnings"]]
    assert codes == ["OWNERS_UNAVAILABLE", "TRANSACTIONS_UNAVAILABLE"]
    for account in accounts(response.json["report"]):
        assert account["owners"] == account["transactions"] == []
        assert "account_insights" not in account
    fast = await api(GET, {"asset_report_token": token, "fast_report": True})
    assert [warning["warning_code"] for warning in fast.json["warnings"]] == ["OWNERS_UNAVAILABLE"]


async def test_insights_add_up(api, plaid):
    """The sums for the report are those of its transactions, and of all its accounts."""
    # A fixed token, so that the content is always the same: a random report may lack one kind of risk.
    token = plaid.add_report("assets-sandbox-adds-up", transactions=600, days=200)
    response = await api(GET, {"asset_report_token": token, "include_insights": True})
    report = json.loads(response.raw, parse_float=Decimal)["report"]
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
    for name, indicator in report["insights"]["risk"].items():
        if name == "negative_balance":
            continue
        amounts = [
            account["account_insights"]["risk"][name]["amount"]
            for account in accounts(report)
            if "account_insights" in account
        ]
        assert sum(amounts) == indicator["amount"] > 0
        months = [month["total_amount"]["amount"] for month in indicator["monthly_summaries"]]
        assert sum(months) == indicator["amount"]


async def test_negative_balances_are_those_of_the_history(api, plaid):
    """Each period with a balance below zero is listed once, with its lowest balance."""
    token = plaid.add_report(transactions=300, days=300)
    response = await api(GET, {"asset_report_token": token, "include_insights": True})
    report = response.json["report"]
    below = [
        balance["current"]
        for account in accounts(report)
        for balance in account["historical_balances"]
        if balance["current"] < 0
    ]
    insights = report["insights"]["risk"]["negative_balance"]
    assert insights["days_with_negative_balance"] == len(below) > 0
    assert insights["minimum_balance"]["amount"] == min(below)
    lowest = [occurrence["minimum_balance"]["amount"] for occurrence in insights["occurrences"]]
    assert min(lowest) == min(below)
    assert all(occurrence["start_date"] <= occurrence["end_date"] for occurrence in insights["occurrences"])


def test_bytes_of_a_report_without_a_server():
    """They are a response body that is determined by the arguments."""
    created = report_bytes(200)
    assert created == report_bytes(200) != report_bytes(200, seed=1)
    body = json.loads(created)
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
def test_sizes_in_the_docstring(arguments, megabytes):
    """The sizes in the docstring are right within 10 %; the biggest is with insights."""
    size = len(report_bytes(*arguments, insights=megabytes == 8.0))
    assert size / 1e6 == pytest.approx(megabytes, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"transactions": -1}, "transactions"),
        ({"transactions": 15_001}, "transactions"),
        ({"days": 0}, "days"),
    ],
)
def test_invalid_arguments_of_report_bytes(arguments, field):
    """An argument out of range is a ValueError that names it."""
    with pytest.raises(ValueError, match=f"^{field}: "):
        report_bytes(**{"transactions": 1} | arguments)


async def test_pdf_of_several_items_and_pages(api, clock):
    """Each bank has a heading, and long reports continue on further pages."""
    tokens = [await api.access_token() for _ in range(12)]
    created = (await api("/asset_report/create", {"access_tokens": tokens, "days_requested": 1})).json
    clock.now += 10
    raw = (await api("/asset_report/pdf/get", {"asset_report_token": created["asset_report_token"]})).raw
    assert raw.count(b"(First Platypus Bank)") == 12
    assert b"/Count 2 >>" in raw
    assert raw.endswith(b"%%EOF\n")
