"""What becomes of a report: refreshed, filtered, fast, of a user, of an Item that fails, too big."""

import asyncio
import json

import pytest

from plaid_relay_async.simulator import Simulator

GET = "/asset_report/get"
CREATE = "/asset_report/create"
REFRESH = "/asset_report/refresh"
FILTER = "/asset_report/filter"
INVALID_FIELD = (400, "INVALID_REQUEST", "INVALID_FIELD")
NO_REPORT = (400, "INVALID_INPUT", "INVALID_ASSET_REPORT_TOKEN")
NOT_READY = (400, "ASSET_REPORT_ERROR", "PRODUCT_NOT_READY")
UNAVAILABLE = (400, "ASSET_REPORT_ERROR", "DATA_UNAVAILABLE")


def accounts(report):
    return [account for item in report["items"] for account in item["accounts"]]


def transactions(report):
    return [entry for account in accounts(report) for entry in account["transactions"]]


def ids(report):
    return [account["account_id"] for account in accounts(report)]


@pytest.fixture
def read(ask):
    """The report of a token, as its owner reads it."""

    async def read(token, **more):
        answer = await ask(GET, {"asset_report_token": token, **more})
        assert answer.status == 200, answer.json
        return answer.json["report"]

    return read


@pytest.fixture
def shares(ask, clock):
    """A report of several Items, and their access tokens."""

    async def shares(count, **options):
        tokens = [await ask.access_token() for _ in range(count)]
        body = {"access_tokens": tokens, "days_requested": 10, "options": options}
        return tokens, (await ask(CREATE, body)).json["asset_report_token"]

    return shares


# Refresh


async def test_refresh_keeps_what_is_not_told_anew(ask, clock, read):
    """It is a report of its own: the same Items, accounts and words, other amounts, another token and id."""
    user = {"first_name": "Alberta", "ssn": "123456789"}
    token = (await ask.report(client_report_id="loan-1", user=user, add_ons=["investments"]))[
        "asset_report_token"
    ]
    clock.now += 10
    old = await read(token)
    made = (await ask(REFRESH, {"asset_report_token": token, "days_requested": None, "options": {}})).json
    assert made["asset_report_token"] != token
    refused = await ask(GET, {"asset_report_token": made["asset_report_token"]})
    assert refused.refusal == NOT_READY
    clock.now += 10
    new = await read(made["asset_report_token"])
    assert new["asset_report_id"] == made["asset_report_id"] != old["asset_report_id"]
    assert ids(new) == ids(old)
    for name in ("client_report_id", "user", "days_requested"):
        assert new[name] == old[name]
    assert accounts(new)[0]["balances"] != accounts(old)[0]["balances"]
    assert accounts(new)[0]["owners"] == accounts(old)[0]["owners"]
    assert await read(token) == old


async def test_refresh_takes_new_values_and_empties(ask, clock, read):
    """A value that is told is taken, "" empties, and null leaves as it was."""
    user = {"first_name": "Alberta", "last_name": "Lind", "ssn": "1"}
    token = (await ask.report(client_report_id="loan-1", user=user))["asset_report_token"]
    options = {
        "client_report_id": "loan-2",
        "webhook": "",
        "user": {"first_name": "", "last_name": None, "email": "a@example.com"},
    }
    body = {"asset_report_token": token, "days_requested": 3, "options": options}
    second = (await ask(REFRESH, body)).json["asset_report_token"]
    third = (await ask(REFRESH, {"asset_report_token": second, "options": {"client_report_id": ""}})).json
    clock.now += 10
    report = await read(second)
    assert (report["client_report_id"], report["days_requested"]) == ("loan-2", 3)
    told = {name: value for name, value in report["user"].items() if value is not None}
    assert told == {"last_name": "Lind", "ssn": "1", "email": "a@example.com"}
    report = await read(third["asset_report_token"])
    assert report["client_report_id"] is None
    assert report["user"]["last_name"] == "Lind"


@pytest.mark.parametrize("path", [REFRESH, FILTER])
async def test_only_ones_own(ask, path):
    """Another's report can be neither refreshed nor filtered, nor one that there isn't."""
    token = (await ask.report())["asset_report_token"]
    more = {"account_ids_to_exclude": []} if path == FILTER else {}
    assert (await ask(path, {"asset_report_token": token, **more}, client="other")).refusal == NO_REPORT
    assert (await ask(path, {"asset_report_token": "none", **more})).refusal == NO_REPORT


# Filter


async def test_filter(ask, clock, read):
    """It is the same data, without some accounts; a refresh of it leaves them out too."""
    whole = await read("ready")
    gone, *kept = ids(whole)
    body = {"asset_report_token": "ready", "account_ids_to_exclude": [gone]}
    made = (await ask(FILTER, body)).json
    assert (await ask(GET, {"asset_report_token": made["asset_report_token"]})).refusal == NOT_READY
    clock.now += 10
    fewer = await read(made["asset_report_token"])
    assert fewer["asset_report_id"] == made["asset_report_id"] != whole["asset_report_id"]
    assert accounts(fewer) == accounts(whole)[1:]
    assert await read("ready") == whole
    again = (await ask(REFRESH, {"asset_report_token": made["asset_report_token"]})).json
    clock.now += 10
    assert ids(await read(again["asset_report_token"])) == kept


async def test_filter_of_a_filtered_report(ask, clock, read):
    """The accounts add up, and all may go; the Item stays."""
    token = "ready"
    for account_id in ids(await read("ready")):
        body = {"asset_report_token": token, "account_ids_to_exclude": [account_id]}
        token = (await ask(FILTER, body)).json["asset_report_token"]
        clock.now += 10
    report = await read(token)
    assert [item["accounts"] for item in report["items"]] == [[]]


async def test_filter_names_accounts_of_a_ready_report(ask):
    """An account that the report doesn't have is refused, and so is a report that has none yet."""
    body = {"asset_report_token": "ready", "account_ids_to_exclude": ["another's"]}
    assert (await ask(FILTER, body)).refusal == INVALID_FIELD
    body["asset_report_token"] = (await ask.report())["asset_report_token"]
    assert (await ask(FILTER, body)).refusal == NOT_READY


# Fast reports


@pytest.mark.parametrize("options", [{"add_ons": ["fast_assets"]}, {"include_fast_report": True}])
async def test_fast_report(ask, clock, read, options):
    """It is there in half the time, with balances and owners and nothing that happened."""
    token = (await ask.report(**options))["asset_report_token"]
    body = {"asset_report_token": token, "fast_report": True, "include_insights": True}
    assert (await ask(GET, body)).refusal == NOT_READY
    clock.now += 5
    fast = await read(token, fast_report=True, include_insights=True)
    assert (await ask(GET, {"asset_report_token": token})).refusal == NOT_READY
    clock.now += 5
    full = await read(token)
    assert "insights" not in fast
    for quick, account in zip(accounts(fast), accounts(full), strict=True):
        assert quick["transactions"] == quick["historical_balances"] == []
        assert quick["balances"] == account["balances"]
        assert quick["owners"] == account["owners"] != []


async def test_fast_report_that_was_not_asked_for(ask, clock):
    """Without the add-on there is none."""
    token = (await ask.report())["asset_report_token"]
    clock.now += 10
    answer = await ask(GET, {"asset_report_token": token, "fast_report": True})
    assert answer.refusal == INVALID_FIELD
    assert "fast_assets" in answer.json["error_message"]


@pytest.mark.parametrize("options", [{"add_ons": ["investments"]}, {"products": ["investments"]}])
async def test_investments_by_either_name(ask, clock, read, options):
    """The add-on was called a product before."""
    token = (await ask.report(**options))["asset_report_token"]
    clock.now += 10
    assert "investments" in accounts(await read(token))[-1]


# A user's report


async def test_report_of_a_user(ask, clock):
    """A user's token leads to the latest report of an Item that was linked for it, and the owner's alone."""
    access_token = await ask.access_token(user_token="user-1")
    body = {"access_tokens": [access_token], "days_requested": 1}
    made = [(await ask(CREATE, body)).json["asset_report_id"] for _ in range(2)]
    clock.now += 10
    answer = await ask(GET, {"user_token": "user-1"})
    assert answer.json["report"]["asset_report_id"] == made[1]
    both = await ask(GET, {"user_token": "user-1", "asset_report_token": "ready"})
    assert both.json["report"]["asset_report_id"] not in made
    assert (await ask(GET, {"user_token": "user-1"}, client="other")).refusal == INVALID_FIELD
    assert (await ask(GET, {"user_token": "user-2"})).refusal == INVALID_FIELD


async def test_report_of_nobody(ask):
    """Without either token it is the report's that is missing."""
    answer = await ask(GET, {})
    assert answer.refusal == (400, "INVALID_REQUEST", "MISSING_FIELDS")
    assert "asset_report_token" in answer.json["error_message"]


# Items that fail


async def test_item_that_is_broken_already(ask, plaid):
    """No report is begun with it, whether or not all Items are needed; once mended it is fine."""
    access_token = await ask.access_token()
    plaid.break_item(access_token, "ITEM_LOCKED")
    for needed in (True, False):
        body = {
            "access_tokens": [access_token],
            "days_requested": 1,
            "options": {"require_all_items": needed},
        }
        assert (await ask(CREATE, body)).refusal == (400, "ITEM_ERROR", "ITEM_LOCKED")
    plaid.repair_item(access_token)
    assert (await ask(CREATE, body)).status == 200


@pytest.mark.parametrize("options", [{}, {"require_all_items": None}, {"require_all_items": True}])
async def test_item_that_breaks_meanwhile(ask, plaid, clock, shares, options):
    """The generation fails, for owner and partner alike, and the causes tell which Item and why."""
    tokens, report_token = await shares(2, **options)
    relay_token = await ask.relay_token(report_token)
    plaid.break_item(tokens[1])
    assert (await ask(GET, {"asset_report_token": report_token})).refusal == NOT_READY
    clock.now += 10
    shared = {"relay_token": relay_token, "report_type": "asset"}
    for answer in (
        await ask(GET, {"asset_report_token": report_token}),
        await ask("/credit/relay/get", shared, client="partner"),
        await ask("/credit/relay/pdf/get", shared, client="partner"),
    ):
        assert answer.refusal == UNAVAILABLE
        [cause] = answer.json["causes"]
        assert (cause["error_type"], cause["error_code"]) == ("ITEM_ERROR", "ITEM_LOGIN_REQUIRED")
        assert cause["item_id"]


async def test_item_that_may_break(plaid, clock, shares, read):
    """With require_all_items false the report is made without it, as long as there is another."""
    tokens, report_token = await shares(2, require_all_items=False)
    plaid.break_item(tokens[0])
    clock.now += 10
    report = await read(report_token)
    assert len(report["items"]) == 1
    assert len(transactions(report)) == 60


async def test_all_items_break(ask, plaid, clock, shares):
    """With none left there is nothing to make it of; one that breaks after the report is ready changes nothing."""
    tokens, report_token = await shares(2, require_all_items=False)
    for token in tokens:
        plaid.break_item(token, "INSTITUTION_DOWN")
    clock.now += 10
    answer = await ask(GET, {"asset_report_token": report_token})
    assert answer.refusal == UNAVAILABLE
    assert {cause["error_type"] for cause in answer.json["causes"]} == {"INSTITUTION_ERROR"}


async def test_ready_reports_stay_as_they_are(ask, plaid, clock, shares, read):
    """What breaks later befalls the reports that come after: a refresh, and a relay token's."""
    tokens, report_token = await shares(1)
    relay_token = await ask.relay_token(report_token)
    clock.now += 10
    before = await read(report_token)
    plaid.break_item(tokens[0])
    assert await read(report_token) == before
    fresh = (await ask(REFRESH, {"asset_report_token": report_token})).json["asset_report_token"]
    shared = {"relay_token": relay_token, "report_type": "asset"}
    await ask("/credit/relay/refresh", shared, client="partner")
    no_account = {"asset_report_token": report_token, "account_ids_to_exclude": []}
    filtered = (await ask(FILTER, no_account)).json["asset_report_token"]
    clock.now += 10
    assert (await ask(GET, {"asset_report_token": fresh})).refusal == UNAVAILABLE
    assert (await ask("/credit/relay/get", shared, client="partner")).refusal == UNAVAILABLE
    # Nothing is fetched for a filtered report.
    assert accounts(await read(filtered)) == accounts(before)


@pytest.mark.parametrize(
    ("part", "emptied"), [("owners", "owners"), ("transactions", "transactions"), ("investments", None)]
)
async def test_part_that_breaks(ask, plaid, clock, part, emptied):
    """The report is made without it, and says so in a warning with the cause."""
    made = await ask.report(add_ons=["investments"])
    tokens = [*plaid._world._items]  # the one Item's
    plaid.break_item(tokens[0], "PRODUCTS_NOT_SUPPORTED", part=part)
    clock.now += 10
    answer = await ask(GET, {"asset_report_token": made["asset_report_token"]})
    [warning] = answer.json["warnings"]
    assert warning["warning_type"] == "ASSET_REPORT_WARNING"
    assert warning["warning_code"] == f"{part.upper()}_UNAVAILABLE"
    assert warning["cause"]["error_code"] == "PRODUCTS_NOT_SUPPORTED"
    assert warning["cause"]["item_id"] == answer.json["report"]["items"][0]["item_id"]
    for account in accounts(answer.json["report"]):
        if emptied:
            assert account[emptied] == []
        else:
            assert "investments" not in account
    plaid.repair_item(tokens[0])
    body = {"asset_report_token": made["asset_report_token"]}
    filtered = (await ask(FILTER, body | {"account_ids_to_exclude": []})).json["asset_report_token"]
    fresh = (await ask(REFRESH, {"asset_report_token": filtered})).json["asset_report_token"]
    clock.now += 10
    # A filtered report has the same data, one that is made anew has what there is now.
    assert (await ask(GET, {"asset_report_token": filtered})).json["warnings"] == [warning]
    assert (await ask(GET, {"asset_report_token": fresh})).json["warnings"] == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"access_token": "access-sandbox-0"}, "access_token"),
        ({"access_token": ""}, "access_token"),
        ({"error_code": "RATE_LIMIT"}, "error_code"),
        ({"error_code": "NO_SUCH"}, "error_code"),
        ({"part": "balances"}, "part"),
    ],
)
async def test_breaking_what_there_is_not(ask, plaid, arguments, named):
    """An Item, a code or a part that there isn't is a ValueError that names the argument."""
    own = {"access_token": await ask.access_token()}
    with pytest.raises(ValueError, match=f"^{named}: "):
        plaid.break_item(**own | arguments)
    with pytest.raises(ValueError, match=r"^access_token: "):
        plaid.repair_item("access-sandbox-0")


async def test_an_item_named_twice(ask, clock, read):
    """It is in the report once."""
    token = await ask.access_token()
    made = (await ask(CREATE, {"access_tokens": [token, token], "days_requested": 1})).json
    clock.now += 10
    assert len((await read(made["asset_report_token"]))["items"]) == 1


# Size


async def test_reports_of_a_chosen_size(asking):
    """So many transactions, shared out among the accounts of all Items that have any."""
    async with Simulator(transactions=100, generation_delay=0, clients={"owner": "owner-secret"}) as plaid:
        ask = asking(plaid)
        tokens = [await ask.access_token() for _ in range(2)]
        made = (await ask(CREATE, {"access_tokens": tokens, "days_requested": 30})).json
        answer = await ask(GET, {"asset_report_token": made["asset_report_token"]})
    counts = [len(account["transactions"]) for account in accounts(answer.json["report"])]
    assert sum(counts) == 100
    assert counts == [17, 17, 17, 0, 17, 16, 16, 0]


# Coverage takes a lock when a thread begins, in whichever frame of the package comes next.
made_in_a_thread = pytest.mark.may_block


@made_in_a_thread
async def test_too_many_transactions(ask, plaid, clock):
    """Beyond 15,000 the generation fails, as Plaid's does; the fast version, which has none, is fine."""
    most, more = plaid.add_report(transactions=15_000), plaid.add_report(transactions=15_001)
    relay_token = await ask.relay_token(more)
    answer = await ask(GET, {"asset_report_token": more})
    assert answer.refusal == (400, "ASSET_REPORT_ERROR", "ASSET_REPORT_GENERATION_FAILED")
    shared = {"relay_token": relay_token, "report_type": "asset"}
    answer = await ask("/credit/relay/get", shared, client="partner")
    assert answer.refusal == (400, "ASSET_REPORT_ERROR", "ASSET_REPORT_GENERATION_FAILED")
    assert (await ask(GET, {"asset_report_token": more, "fast_report": True})).status == 200
    assert (await ask("/asset_report/pdf/get", {"asset_report_token": most})).status == 200
    whole = await ask(GET, {"asset_report_token": most})
    assert len(transactions(whole.json["report"])) == 15_000
    again = await ask(GET, {"asset_report_token": most})
    assert again.json["report"] == whole.json["report"]
    assert again.json["request_id"] != whole.json["request_id"]


@made_in_a_thread
async def test_big_report_holds_up_no_one(ask, plaid):
    """While one is made, other requests are answered."""
    token = plaid.add_report(transactions=10_000, days=731)
    big = asyncio.create_task(ask(GET, {"asset_report_token": token, "include_insights": True}))
    while not plaid.requests:
        await asyncio.sleep(0)
    share = {"report_tokens": ["ready"], "secondary_client_id": "partner"}
    answered = 0
    while plaid.requests[0].status is None:
        assert (await ask("/credit/relay/create", share)).status == 200
        answered += 1
    assert answered > 1
    assert len(transactions((await big).json["report"])) == 10_000


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"transactions": -1}, "transactions"),
        ({"days": -1}, "days"),
        ({"days": 732}, "days"),
        ({"missing": ["balances"]}, "missing"),
    ],
)
async def test_reports_that_cannot_be(plaid, arguments, named):
    """An argument out of its bounds is a ValueError that names it."""
    with pytest.raises(ValueError, match=f"^{named}: "):
        plaid.add_report(**arguments)
    if named == "transactions":
        with pytest.raises(ValueError, match=r"^transactions: "):
            Simulator(transactions=-1)


async def test_added_report(plaid, read):
    """Its size, days and accounts are as asked."""
    report = await read(plaid.add_report(transactions=7, days=5, investments=True))
    assert len(transactions(report)) == 7
    assert report["days_requested"] == 5
    assert [account["type"] for account in accounts(report)][-1] == "investment"


async def test_same_seed_same_amounts(asking):
    """The reports that the same requests make hold the same amounts and owners, though tokens and ids differ."""

    async def made():
        async with Simulator(seed=3, generation_delay=0, clients={"owner": "owner-secret"}) as plaid:
            ask = asking(plaid)
            token = (await ask.report())["asset_report_token"]
            report = (await ask(GET, {"asset_report_token": token})).json["report"]
        told = [
            (account["balances"]["current"], account["owners"], account["mask"])
            for account in accounts(report)
        ]
        return json.dumps(told), [entry["amount"] for entry in transactions(report)], ids(report)

    (first, amounts, own), (second, others, theirs) = await made(), await made()
    assert (first, amounts) == (second, others)
    assert own != theirs
