"""The generation of reports: refresh, filter, fast version, a user's report, Items that fail, and size."""

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


def account_ids(report):
    return [account["account_id"] for account in accounts(report)]


@pytest.fixture
def read(api):
    """Return a function that reads the report of a token, as the lender."""

    async def read(token, **fields):
        response = await api(GET, {"asset_report_token": token, **fields})
        assert response.status == 200, response.json
        return response.json["report"]

    return read


@pytest.fixture
def create_report(api, clock):
    """Return a function that creates a report of `count` Items, and returns their access tokens and its token."""

    async def create_report(count, **options):
        tokens = [await api.access_token() for _ in range(count)]
        body = {"access_tokens": tokens, "days_requested": 10, "options": options}
        return tokens, (await api(CREATE, body)).json["asset_report_token"]

    return create_report


# Refresh


async def test_refresh_keeps_omitted_values(api, clock, read):
    """A refresh is another report of the same Items and accounts, with other amounts, token and id."""
    user = {"first_name": "Alberta", "ssn": "123456789"}
    token = (await api.report(client_report_id="loan-1", user=user, add_ons=["investments"]))[
        "asset_report_token"
    ]
    clock.now += 10
    old = await read(token)
    created = (await api(REFRESH, {"asset_report_token": token, "days_requested": None, "options": {}})).json
    assert created["asset_report_token"] != token
    response = await api(GET, {"asset_report_token": created["asset_report_token"]})
    assert response.error == NOT_READY
    clock.now += 10
    new = await read(created["asset_report_token"])
    assert new["asset_report_id"] == created["asset_report_id"] != old["asset_report_id"]
    assert account_ids(new) == account_ids(old)
    for name in ("client_report_id", "user", "days_requested"):
        assert new[name] == old[name]
    assert accounts(new)[0]["balances"] != accounts(old)[0]["balances"]
    assert accounts(new)[0]["owners"] == accounts(old)[0]["owners"]
    assert await read(token) == old


async def test_refresh_takes_new_values_and_empties(api, clock, read):
    """A refresh replaces a value, removes it with "", and keeps it with null."""
    user = {"first_name": "Alberta", "last_name": "Lind", "ssn": "1"}
    token = (await api.report(client_report_id="loan-1", user=user))["asset_report_token"]
    options = {
        "client_report_id": "loan-2",
        "webhook": "",
        "user": {"first_name": "", "last_name": None, "email": "a@example.com"},
    }
    body = {"asset_report_token": token, "days_requested": 3, "options": options}
    second = (await api(REFRESH, body)).json["asset_report_token"]
    third = (await api(REFRESH, {"asset_report_token": second, "options": {"client_report_id": ""}})).json
    clock.now += 10
    report = await read(second)
    assert (report["client_report_id"], report["days_requested"]) == ("loan-2", 3)
    known_fields = {name: value for name, value in report["user"].items() if value is not None}
    assert known_fields == {"last_name": "Lind", "ssn": "1", "email": "a@example.com"}
    report = await read(third["asset_report_token"])
    assert report["client_report_id"] is None
    assert report["user"]["last_name"] == "Lind"


@pytest.mark.parametrize("path", [REFRESH, FILTER])
async def test_unknown_report(api, path):
    """Another client's report, or one that doesn't exist, can't be refreshed or filtered."""
    token = (await api.report())["asset_report_token"]
    fields = {"account_ids_to_exclude": []} if path == FILTER else {}
    assert (await api(path, {"asset_report_token": token, **fields}, client="other")).error == NO_REPORT
    assert (await api(path, {"asset_report_token": "none", **fields})).error == NO_REPORT


# Filter


async def test_filter(api, clock, read):
    """A filtered report has the same data without some accounts; a refresh of it excludes them too."""
    original = await read("ready")
    excluded, *others = account_ids(original)
    body = {"asset_report_token": "ready", "account_ids_to_exclude": [excluded]}
    created = (await api(FILTER, body)).json
    assert (await api(GET, {"asset_report_token": created["asset_report_token"]})).error == NOT_READY
    clock.now += 10
    filtered = await read(created["asset_report_token"])
    assert filtered["asset_report_id"] == created["asset_report_id"] != original["asset_report_id"]
    assert accounts(filtered) == accounts(original)[1:]
    assert await read("ready") == original
    refreshed = (await api(REFRESH, {"asset_report_token": created["asset_report_token"]})).json
    clock.now += 10
    assert account_ids(await read(refreshed["asset_report_token"])) == others


async def test_filter_of_a_filtered_report(api, clock, read):
    """A second filter excludes further accounts; without any account the Item remains."""
    token = "ready"
    for account_id in account_ids(await read("ready")):
        body = {"asset_report_token": token, "account_ids_to_exclude": [account_id]}
        token = (await api(FILTER, body)).json["asset_report_token"]
        clock.now += 10
    report = await read(token)
    assert [item["accounts"] for item in report["items"]] == [[]]


async def test_filter_of_unknown_accounts(api):
    """An account that the report doesn't have is an error, and so is a report that isn't ready."""
    body = {"asset_report_token": "ready", "account_ids_to_exclude": ["another's"]}
    assert (await api(FILTER, body)).error == INVALID_FIELD
    body["asset_report_token"] = (await api.report())["asset_report_token"]
    assert (await api(FILTER, body)).error == NOT_READY


# Fast reports


@pytest.mark.parametrize("options", [{"add_ons": ["fast_assets"]}, {"include_fast_report": True}])
async def test_fast_report(api, clock, read, options):
    """A fast report is ready in half the time, with balances and owners and without transactions."""
    token = (await api.report(**options))["asset_report_token"]
    body = {"asset_report_token": token, "fast_report": True, "include_insights": True}
    assert (await api(GET, body)).error == NOT_READY
    clock.now += 5
    fast = await read(token, fast_report=True, include_insights=True)
    assert (await api(GET, {"asset_report_token": token})).error == NOT_READY
    clock.now += 5
    full = await read(token)
    assert "insights" not in fast
    for fast_account, account in zip(accounts(fast), accounts(full), strict=True):
        assert fast_account["transactions"] == fast_account["historical_balances"] == []
        assert fast_account["balances"] == account["balances"]
        assert fast_account["owners"] == account["owners"] != []


async def test_fast_report_without_the_add_on(api, clock):
    """A report without the add-on has no fast version."""
    token = (await api.report())["asset_report_token"]
    clock.now += 10
    response = await api(GET, {"asset_report_token": token, "fast_report": True})
    assert response.error == INVALID_FIELD
    assert "fast_assets" in response.json["error_message"]


@pytest.mark.parametrize("options", [{"add_ons": ["investments"]}, {"products": ["investments"]}])
async def test_investments_by_either_name(api, clock, read, options):
    """The add-on can also be requested in the deprecated field products."""
    token = (await api.report(**options))["asset_report_token"]
    clock.now += 10
    assert "investments" in accounts(await read(token))[-1]


# A user's report


async def test_report_of_a_user(api, clock):
    """A user's token reads the lender's latest report of an Item that was linked for the user."""
    access_token = await api.access_token(user_token="user-1")
    body = {"access_tokens": [access_token], "days_requested": 1}
    created = [(await api(CREATE, body)).json["asset_report_id"] for _ in range(2)]
    clock.now += 10
    response = await api(GET, {"user_token": "user-1"})
    assert response.json["report"]["asset_report_id"] == created[1]
    both = await api(GET, {"user_token": "user-1", "asset_report_token": "ready"})
    assert both.json["report"]["asset_report_id"] not in created
    assert (await api(GET, {"user_token": "user-1"}, client="other")).error == INVALID_FIELD
    assert (await api(GET, {"user_token": "user-2"})).error == INVALID_FIELD


async def test_get_without_a_token(api):
    """Without either token the error names that of the report."""
    response = await api(GET, {})
    assert response.error == (400, "INVALID_REQUEST", "MISSING_FIELDS")
    assert "asset_report_token" in response.json["error_message"]


# Items that fail


async def test_create_with_a_broken_item(api, plaid):
    """No report can be created with it, whether or not all Items are required, until it is repaired."""
    access_token = await api.access_token()
    plaid.break_item(access_token, "ITEM_LOCKED")
    for required in (True, False):
        body = {
            "access_tokens": [access_token],
            "days_requested": 1,
            "options": {"require_all_items": required},
        }
        assert (await api(CREATE, body)).error == (400, "ITEM_ERROR", "ITEM_LOCKED")
    plaid.repair_item(access_token)
    assert (await api(CREATE, body)).status == 200


@pytest.mark.parametrize("options", [{}, {"require_all_items": None}, {"require_all_items": True}])
async def test_item_that_breaks_during_the_generation(api, plaid, clock, create_report, options):
    """The generation fails, for lender and partner, and the causes name the Item and the error."""
    tokens, report_token = await create_report(2, **options)
    relay_token = await api.relay_token(report_token)
    plaid.break_item(tokens[1])
    assert (await api(GET, {"asset_report_token": report_token})).error == NOT_READY
    clock.now += 10
    shared = {"relay_token": relay_token, "report_type": "asset"}
    for response in (
        await api(GET, {"asset_report_token": report_token}),
        await api("/credit/relay/get", shared, client="partner"),
        await api("/credit/relay/pdf/get", shared, client="partner"),
    ):
        assert response.error == UNAVAILABLE
        [cause] = response.json["causes"]
        assert (cause["error_type"], cause["error_code"]) == ("ITEM_ERROR", "ITEM_LOGIN_REQUIRED")
        assert cause["item_id"]


async def test_item_that_is_not_required(plaid, clock, create_report, read):
    """With require_all_items false, the report is generated without it, if there is another Item."""
    tokens, report_token = await create_report(2, require_all_items=False)
    plaid.break_item(tokens[0])
    clock.now += 10
    report = await read(report_token)
    assert len(report["items"]) == 1
    assert len(transactions(report)) == 60


async def test_all_items_break(api, plaid, clock, create_report):
    """Without any healthy Item the generation fails, even if not all are required."""
    tokens, report_token = await create_report(2, require_all_items=False)
    for token in tokens:
        plaid.break_item(token, "INSTITUTION_DOWN")
    clock.now += 10
    response = await api(GET, {"asset_report_token": report_token})
    assert response.error == UNAVAILABLE
    assert {cause["error_type"] for cause in response.json["causes"]} == {"INSTITUTION_ERROR"}


async def test_ready_reports_do_not_change(api, plaid, clock, create_report, read):
    """An Item that breaks after the report is ready fails only later versions of it."""
    tokens, report_token = await create_report(1)
    relay_token = await api.relay_token(report_token)
    clock.now += 10
    before = await read(report_token)
    plaid.break_item(tokens[0])
    assert await read(report_token) == before
    refreshed = (await api(REFRESH, {"asset_report_token": report_token})).json["asset_report_token"]
    shared = {"relay_token": relay_token, "report_type": "asset"}
    await api("/credit/relay/refresh", shared, client="partner")
    no_account = {"asset_report_token": report_token, "account_ids_to_exclude": []}
    filtered = (await api(FILTER, no_account)).json["asset_report_token"]
    clock.now += 10
    assert (await api(GET, {"asset_report_token": refreshed})).error == UNAVAILABLE
    assert (await api("/credit/relay/get", shared, client="partner")).error == UNAVAILABLE
    # No data is fetched for a filtered report.
    assert accounts(await read(filtered)) == accounts(before)


@pytest.mark.parametrize(
    ("part", "empty_field"), [("owners", "owners"), ("transactions", "transactions"), ("investments", None)]
)
async def test_part_that_breaks(api, plaid, clock, part, empty_field):
    """The report is generated without the part, and has a warning with the cause."""
    access_token = await api.access_token()
    options = {"days_requested": 30, "options": {"add_ons": ["investments"]}}
    created = (await api("/asset_report/create", {"access_tokens": [access_token], **options})).json
    plaid.break_item(access_token, "PRODUCTS_NOT_SUPPORTED", part=part)
    clock.now += 10
    response = await api(GET, {"asset_report_token": created["asset_report_token"]})
    [warning] = response.json["warnings"]
    assert warning["warning_type"] == "ASSET_REPORT_WARNING"
    assert warning["warning_code"] == f"{part.upper()}_UNAVAILABLE"
    assert warning["cause"]["error_code"] == "PRODUCTS_NOT_SUPPORTED"
    assert warning["cause"]["item_id"] == response.json["report"]["items"][0]["item_id"]
    for account in accounts(response.json["report"]):
        if empty_field:
            assert account[empty_field] == []
        else:
            assert "investments" not in account
    plaid.repair_item(access_token)
    body = {"asset_report_token": created["asset_report_token"]}
    filtered = (await api(FILTER, body | {"account_ids_to_exclude": []})).json["asset_report_token"]
    refreshed = (await api(REFRESH, {"asset_report_token": filtered})).json["asset_report_token"]
    clock.now += 10
    # A filtered report has the data of the original, a refreshed report has current data.
    assert (await api(GET, {"asset_report_token": filtered})).json["warnings"] == [warning]
    assert (await api(GET, {"asset_report_token": refreshed})).json["warnings"] == []


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"access_token": "access-sandbox-0"}, "access_token"),
        ({"access_token": ""}, "access_token"),
        ({"error_code": "RATE_LIMIT"}, "error_code"),
        ({"error_code": "NO_SUCH"}, "error_code"),
        ({"part": "balances"}, "part"),
    ],
)
async def test_invalid_arguments_of_break_item(api, plaid, arguments, field):
    """An unknown Item, code or part is a ValueError that names the argument."""
    valid = {"access_token": await api.access_token()}
    with pytest.raises(ValueError, match=f"^{field}: "):
        plaid.break_item(**valid | arguments)
    with pytest.raises(ValueError, match=r"^access_token: "):
        plaid.repair_item("access-sandbox-0")


async def test_an_item_that_is_listed_twice(api, clock, read):
    """An Item that is listed twice is in the report once."""
    token = await api.access_token()
    created = (await api(CREATE, {"access_tokens": [token, token], "days_requested": 1})).json
    clock.now += 10
    assert len((await read(created["asset_report_token"]))["items"]) == 1


# Size


async def test_reports_of_a_chosen_size(api_for):
    """The transactions are distributed over the accounts of all Items that have transactions."""
    async with Simulator(transactions=100, generation_delay=0, clients={"owner": "owner-secret"}) as plaid:
        api = api_for(plaid)
        tokens = [await api.access_token() for _ in range(2)]
        created = (await api(CREATE, {"access_tokens": tokens, "days_requested": 30})).json
        response = await api(GET, {"asset_report_token": created["asset_report_token"]})
    counts = [len(account["transactions"]) for account in accounts(response.json["report"])]
    assert sum(counts) == 100
    assert counts == [17, 17, 17, 0, 17, 16, 16, 0]


# When a thread starts, coverage acquires a lock, in whatever frame of the package is then active.
generated_in_thread = pytest.mark.may_block


@generated_in_thread
async def test_too_many_transactions(api, plaid, clock):
    """Above 15,000 the generation fails, as at Plaid; the fast version has none, and can be read."""
    maximum, too_many = plaid.add_report(transactions=15_000), plaid.add_report(transactions=15_001)
    relay_token = await api.relay_token(too_many)
    response = await api(GET, {"asset_report_token": too_many})
    assert response.error == (400, "ASSET_REPORT_ERROR", "ASSET_REPORT_GENERATION_FAILED")
    shared = {"relay_token": relay_token, "report_type": "asset"}
    response = await api("/credit/relay/get", shared, client="partner")
    assert response.error == (400, "ASSET_REPORT_ERROR", "ASSET_REPORT_GENERATION_FAILED")
    assert (await api(GET, {"asset_report_token": too_many, "fast_report": True})).status == 200
    assert (await api("/asset_report/pdf/get", {"asset_report_token": maximum})).status == 200
    first = await api(GET, {"asset_report_token": maximum})
    assert len(transactions(first.json["report"])) == 15_000
    second = await api(GET, {"asset_report_token": maximum})
    assert second.json["report"] == first.json["report"]
    assert second.json["request_id"] != first.json["request_id"]


@generated_in_thread
async def test_big_report_does_not_block(api, plaid):
    """While a big report is generated, the simulator responds to other requests."""
    token = plaid.add_report(transactions=10_000, days=731)
    big = asyncio.create_task(api(GET, {"asset_report_token": token, "include_insights": True}))
    while not plaid.requests:
        await asyncio.sleep(0)
    share = {"report_tokens": ["ready"], "secondary_client_id": "partner"}
    responses = 0
    while plaid.requests[0].status is None:
        assert (await api("/credit/relay/create", share)).status == 200
        responses += 1
    assert responses > 1
    assert len(transactions((await big).json["report"])) == 10_000


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"transactions": -1}, "transactions"),
        ({"days": -1}, "days"),
        ({"days": 732}, "days"),
        ({"missing": ["balances"]}, "missing"),
    ],
)
async def test_invalid_arguments_of_add_report(plaid, arguments, field):
    """An argument out of range is a ValueError that names it."""
    with pytest.raises(ValueError, match=f"^{field}: "):
        plaid.add_report(**arguments)
    if field == "transactions":
        with pytest.raises(ValueError, match=r"^transactions: "):
            Simulator(transactions=-1)


async def test_added_report(plaid, read):
    """Its size, days and accounts are those of the arguments."""
    report = await read(plaid.add_report(transactions=7, days=5, investments=True))
    assert len(transactions(report)) == 7
    assert report["days_requested"] == 5
    assert [account["type"] for account in accounts(report)][-1] == "investment"


async def test_same_seed_same_amounts(api_for):
    """The same requests lead to the same amounts and owners, with other tokens and ids."""

    async def create_and_read():
        async with Simulator(seed=3, generation_delay=0, clients={"owner": "owner-secret"}) as plaid:
            api = api_for(plaid)
            token = (await api.report())["asset_report_token"]
            report = (await api(GET, {"asset_report_token": token})).json["report"]
        identities = [
            (account["balances"]["current"], account["owners"], account["mask"])
            for account in accounts(report)
        ]
        return (
            json.dumps(identities),
            [entry["amount"] for entry in transactions(report)],
            account_ids(report),
        )

    first_identities, first_amounts, first_ids = await create_and_read()
    second_identities, second_amounts, second_ids = await create_and_read()
    assert (first_identities, first_amounts) == (second_identities, second_amounts)
    assert first_ids != second_ids
