"""Who may call what: keys, operations, partners and credentials."""

from __future__ import annotations

import asyncio
import json
import os
from itertools import combinations

import pytest
from gateway_setup import UPSTREAM_CREDENTIALS, running_gateway, wait_for_keys
from raw_http import CREATE, CREATE_BODY, GET, PDF, REFRESH, REMOVE, build_request, raw_connection

from plaid_relay_async.gateway import Gateway, KeyFile
from plaid_relay_async.gateway.keys import new_key

OF_NOBODY = new_key("nobody")[1]


def wrong_keys(key: str) -> dict[str, str]:
    """What is nearly a key, or a way to have none."""
    return {
        "another's": OF_NOBODY,
        "its beginning": key[:-1],
        "with more behind it": f"{key}A",
        "in upper case": key.upper(),
        "one character off": key[:-1] + ("A" if key[-1] != "A" else "B"),
        "empty": "",
        "the prefix alone": "plaid-gateway-",
        "not ASCII": "plaid-gateway-\xe9",
        "very long": "plaid-gateway-" + "A" * 5_000,
        "null": "null",
        "its digest": "0" * 64,
    }


@pytest.mark.parametrize("wrong", wrong_keys("k" * 50))
@pytest.mark.parametrize("place", ["Authorization", "PLAID-SECRET", "secret"])
async def test_a_wrong_key_is_refused_wherever_it_stands(held, wrong, place):
    """What isn't a key to the byte gets a 401 in Plaid's form, and nothing leaves."""
    key = wrong_keys(held.keys["lender"])[wrong]
    if place == "secret":
        answer = await held.one(build_request(CREATE, CREATE_BODY | {"client_id": "me", "secret": key}))
    else:
        shown = f"Bearer {key}" if place == "Authorization" else key
        answer = await held.one(build_request(CREATE, CREATE_BODY, f"{place}: {shown}"))
    assert (answer.status, answer.code) == (401, "UNAUTHORIZED_KEY")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    held.assert_upstream_requests()


async def test_no_key_and_a_wrong_key_are_told_alike(held):
    """Answers to no key, to an unknown one and to an unknown operation without one tell nothing apart."""
    answers = [
        await held.one(build_request()),
        await held.one(build_request(key=OF_NOBODY)),
        await held.one(build_request(key="short")),
        await held.one(build_request(body=CREATE_BODY | {"secret": OF_NOBODY})),
    ]
    told = [{k: v for k, v in each.json.items() if k != "request_id"} for each in answers]
    assert [each.status for each in answers] == [401] * 4
    assert told == [told[0]] * 4
    assert len({each.json["request_id"] for each in answers}) == 4
    assert told[0]["suggested_action"]
    held.assert_upstream_requests()


@pytest.mark.parametrize("secret", [None, 7, True, ["KEY"], {"KEY": "KEY"}], ids=repr)
async def test_a_secret_in_the_body_that_is_no_string_is_no_key(held, secret):
    """Whatever JSON stands in the place of the secret, it opens nothing, nor breaks anything."""
    said = json.dumps(CREATE_BODY | {"secret": secret}).replace("KEY", held.keys["lender"]).encode()
    assert (await held.one(build_request(CREATE, said))).code == "UNAUTHORIZED_KEY"
    held.assert_upstream_requests()


@pytest.mark.parametrize(
    "scheme", ["Basic {}", "Digest {}", "{}", "Bearer", "Bearer {} {}", "Bearer, {}", "Token {}"]
)
async def test_another_scheme_is_no_bearer(held, scheme):
    """A key in an Authorization that isn't `Bearer KEY` opens nothing."""
    shown = scheme.replace("{}", held.keys["lender"])
    answer = await held.one(build_request(CREATE, CREATE_BODY, f"Authorization: {shown}"))
    assert (answer.status, answer.code) == (401, "UNAUTHORIZED_KEY")
    held.assert_upstream_requests()


PLACES = ("Authorization", "PLAID-SECRET", "secret")


@pytest.mark.parametrize(("first", "second"), [*combinations(PLACES, 2)])
@pytest.mark.parametrize("right", ["first", "second"])
async def test_the_first_place_decides(held, first, second, right):
    """Of two keys that one before the other decides: Authorization, PLAID-SECRET, the body."""
    keys = {first: OF_NOBODY, second: OF_NOBODY} | {
        first if right == "first" else second: held.keys["lender"]
    }
    lines = [
        f"{place}: {'Bearer ' if place == 'Authorization' else ''}{key}"
        for place, key in keys.items()
        if place != "secret"
    ]
    body = CREATE_BODY | ({"secret": keys["secret"]} if "secret" in keys else {})
    answer = await held.one(build_request(CREATE, body, *lines))
    assert answer.status == (200 if right == "first" else 401)
    held.assert_upstream_requests(count=right == "first")


@pytest.mark.parametrize("place", PLACES)
async def test_what_the_caller_calls_itself_is_dropped(held, place):
    """Credentials of the caller go no further, in whichever place and beside whichever key."""
    key = held.keys["lender"]
    lines = {
        "Authorization": [f"Authorization: Bearer {key}", "PLAID-CLIENT-ID: me", "PLAID-SECRET: mine"],
        "PLAID-SECRET": ["PLAID-CLIENT-ID: id-of-the-partner", f"PLAID-SECRET: {key}"],
        "secret": ["PLAID-CLIENT-ID: me"],
    }[place]
    nested = {"client_id": "stays", "secret": "stays"}
    body = CREATE_BODY | {"client_id": "id-of-the-partner", "secret": key if place == "secret" else "mine"}
    assert (await held.one(build_request(CREATE, body | {"options": nested}, *lines))).status == 200
    assert held.upstream.body() == CREATE_BODY | {"options": nested}
    fields = dict(held.upstream.fields())
    assert (fields["plaid-client-id"], fields["plaid-secret"]) == (
        "id-of-the-owner",
        "canary-upstream-of-the-owner",
    )


async def test_an_escaped_secret_is_the_secret(held):
    """A name written with escapes is the same name: the key is found, and dropped."""
    said = json.dumps(CREATE_BODY | {"secret": held.keys["lender"], "client_id": "me"})
    said = said.replace('"secret"', r'"\u0073ecret"').replace('"client_id"', r'"client\u005fid"')
    assert (await held.one(build_request(CREATE, said.encode()))).status == 200
    assert held.upstream.body() == CREATE_BODY


@pytest.mark.parametrize("path", [CREATE, GET, PDF, REFRESH, REMOVE])
@pytest.mark.parametrize("caller", ["creator", "remover"])
async def test_a_key_opens_its_operations_alone(held, path, caller):
    """A key for one operation gets a 403 for the four others."""
    answer = await held.call(path, caller)
    if {"creator": CREATE, "remover": REMOVE}[caller] == path:
        assert answer.status == 200
    else:
        assert (answer.status, answer.code) == (403, "UNAUTHORIZED_OPERATION")
        held.assert_upstream_requests()


@pytest.mark.parametrize(
    "path",
    [
        "/asset_report/create",
        "/asset_report/remove",
        "/item/remove",
        "/item/public_token/exchange",
        "/sandbox/public_token/create",
        "/webhook_verification_key/get",
    ],
)
async def test_nothing_but_relay_is_served_unasked(held, path):
    """The other operations that the client knows are refused by a gateway as it comes."""
    answer = await held.call(path)
    assert (answer.status, answer.code) == (403, "UNAUTHORIZED_OPERATION")
    held.assert_upstream_requests()


@pytest.mark.parametrize(
    "path", ["/link/token/create", "/auth/get", "/transfer/create", "/credit/relay", "/"]
)
async def test_no_other_path_of_plaids_is_there(held, path):
    """What this package has no operation for isn't found, whoever asks."""
    answer = await held.call(path)
    assert answer.status in {404, 405}
    held.assert_upstream_requests()


async def test_a_gateway_serves_what_it_is_told_to():
    """A key's operations are narrowed to the gateway's."""
    async with running_gateway(operations=[CREATE]) as held:
        assert (await held.call(REMOVE)).error_code == "UNAUTHORIZED_OPERATION"
        assert (await held.call(REMOVE, "remover")).error_code == "UNAUTHORIZED_OPERATION"
        held.assert_upstream_requests()


PARTNERS = {
    "another's": "p3",
    "in upper case": "P1",
    "with a blank": "p1 ",
    "with a NUL": "p1\0",
    "two in one": "p1,p2",
    "empty": "",
    "a list": ["p1"],
    "a list of two": ["p1", "p2"],
    "an object": {"p1": "p1"},
    "a number": 1,
    "true": True,
    "null": None,
}


@pytest.mark.parametrize("partner", PARTNERS.values(), ids=PARTNERS)
async def test_a_key_bound_to_partners_names_no_other(held, partner):
    """What isn't one of the key's partners to the byte is refused, whatever JSON it is."""
    answer = await held.call(CREATE, "bound", body=CREATE_BODY | {"secondary_client_id": partner})
    assert answer.status in {400, 403}
    assert answer.code in {"PARTNER_NOT_ALLOWED", "INVALID_BODY"}
    held.assert_upstream_requests()


async def test_a_key_bound_to_partners_has_to_name_one(held):
    """A creation without a partner isn't for one of the key's."""
    answer = await held.call(CREATE, "bound", body={"report_tokens": ["r"]})
    assert (answer.status, answer.code) == (403, "PARTNER_NOT_ALLOWED")
    held.assert_upstream_requests()


@pytest.mark.parametrize(
    "body",
    [
        b'{"secondary_client_id": "p1", "secondary_client_id": "p3"}',
        b'{"secondary_client_id": "p3", "secondary_client_id": "p1"}',
        rb'{"secondary_client_id": "p1", "secondary_client_\u0069d": "p3"}',
        rb'{"secondary_client_\u0069d": "p3", "secondary_client_id": "p1"}',
        rb'{"secondary_client_\u0069d": "p3"}',
        rb'{"secondary_client_id": "\u0070\u0033"}',
    ],
)
async def test_a_partner_said_twice_or_in_escapes_is_no_way_round(held, body):
    """Two parsers may take either of two names alike; so none of them gets the chance."""
    answer = await held.call(CREATE, "bound", body=body)
    assert answer.code in {"INVALID_BODY", "PARTNER_NOT_ALLOWED"}
    held.assert_upstream_requests()


async def test_a_partner_in_escapes_is_the_partner(held):
    """What the upstream is told is what was checked."""
    body = rb'{"secondary_client_\u0069d": "\u0070\u0031", "report_tokens": ["r"]}'
    assert (await held.call(CREATE, "bound", body=body)).status == 200
    assert held.upstream.body() == {"secondary_client_id": "p1", "report_tokens": ["r"]}


async def test_each_key_has_its_credentials(held):
    """A key of the partner's calls with the partner's credentials, whatever it says of itself."""
    body = CREATE_BODY | {"client_id": "id-of-the-owner"}
    await held.one(build_request(GET, body, "PLAID-CLIENT-ID: id-of-the-owner", key=held.keys["partner"]))
    fields = dict(held.upstream.fields())
    assert fields["plaid-secret"] == "canary-upstream-of-the-partner"
    assert fields["plaid-client-id"] == "id-of-the-partner"


async def test_a_key_of_credentials_that_are_not_there_is_refused(held):
    """It isn't served with another's."""
    answer = await held.call(CREATE, "lost")
    assert (answer.status, answer.code) == (403, "UNAUTHORIZED_CREDENTIALS")
    held.assert_upstream_requests()


async def test_a_key_has_its_rate(held):
    """What is above a key's rate is told to wait; the others aren't concerned."""
    answers = [await held.call(CREATE, "hasty") for _ in range(4)]
    assert [each.status for each in answers] == [200, 200, 429, 429]
    assert answers[-1].code == "RATE_LIMIT"
    assert 0 < float(answers[-1].headers["Retry-After"]) <= 60
    assert (await held.call()).status == 200
    held.assert_upstream_requests(count=3)


async def test_refused_calls_cost_nobody_elses_rate(held):
    """Wrong keys use up nothing of a caller's."""
    for _ in range(5):
        await held.one(build_request(key=held.keys["hasty"][:-1]))
    assert (await held.call(CREATE, "hasty")).status == 200


@pytest.mark.may_block
async def test_a_revoked_key_opens_nothing(tmp_path):
    """A key that is revoked is refused once the gateway has noticed, and one that is added is accepted."""
    keys = KeyFile(tmp_path / "keys.json")
    gone, stays = keys.add("gone"), keys.add("stays")
    async with running_gateway() as other:
        async with Gateway(keys, upstream=other.upstream.url, credentials=UPSTREAM_CREDENTIALS) as gateway:
            mine, other.gateway = other.gateway, gateway
            assert (await other.exchange_one(build_request(key=gone))).status == 200
            keys.revoke("gone")
            late = keys.add("late")
            await wait_for_keys(gateway, "late", "stays")
            assert (await other.exchange_one(build_request(key=gone))).error_code == "UNAUTHORIZED_KEY"
            assert (await other.exchange_one(build_request(key=stays))).status == 200
            assert (await other.exchange_one(build_request(key=late))).status == 200
            other.assert_upstream_requests(count=3)
            other.gateway = mine


@pytest.mark.may_block
async def test_a_key_that_is_revoked_while_its_body_is_awaited_opens_nothing(tmp_path):
    """A call that has begun with a good key isn't carried out once the key is gone."""
    keys = KeyFile(tmp_path / "keys.json")
    key = keys.add("gone")
    whole = build_request(key=key)
    async with running_gateway() as other:
        async with (
            Gateway(keys, upstream=other.upstream.url, credentials=UPSTREAM_CREDENTIALS) as gateway,
            raw_connection(gateway.url) as opened,
        ):
            await opened.send(whole[:-9])
            keys.revoke("gone")
            await wait_for_keys(gateway)
            await opened.send(whole[-9:])
            assert (await opened.read_response()).error_code == "UNAUTHORIZED_KEY"
        other.assert_upstream_requests()


@pytest.mark.may_block
@pytest.mark.parametrize("damage", ["not JSON", "for all to read", "gone"])
async def test_a_key_file_that_cannot_be_used_admits_nobody(tmp_path, damage):
    """A file that is damaged, readable by others or gone opens nothing, and the gateway says it isn't ready."""
    path = tmp_path / "keys.json"
    keys = KeyFile(path)
    key = keys.add("one")
    async with running_gateway() as other:
        async with Gateway(keys, upstream=other.upstream.url, credentials=UPSTREAM_CREDENTIALS) as gateway:
            mine, other.gateway = other.gateway, gateway
            assert (await other.exchange_one(build_request(key=key))).status == 200
            if damage == "not JSON":
                path.write_text('{"keys":')
            elif damage == "gone":
                path.unlink()
            else:
                path.chmod(0o644)
                path.write_text(path.read_text() + "\n")
            await wait_for_keys(gateway)
            assert (await other.exchange_one(build_request(key=key))).status in {401, 503}
            ready = await other.exchange_one(build_request("/readyz", b"", method="GET", content_type=None))
            assert ready.status == (200 if damage == "gone" else 503)
            other.gateway = mine


async def test_keys_are_read_again_on_request(tmp_path):
    """A reload reads the file of keys, even if its size and its times are what they were."""
    keys, path = KeyFile(tmp_path / "keys.json"), tmp_path / "keys.json"
    key = await asyncio.to_thread(keys.add, "one")
    async with running_gateway() as other:
        async with Gateway(keys, upstream=other.upstream.url, credentials=UPSTREAM_CREDENTIALS) as gateway:
            mine, other.gateway = other.gateway, gateway
            before = path.stat()
            text = path.read_text()
            path.write_text(text.replace("default", "partner"))  # a set whose name is as long
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            await asyncio.sleep(1.1)
            assert (await other.exchange_one(build_request(key=key))).status == 200
            assert (
                dict(other.upstream.fields(0))["plaid-client-id"] == UPSTREAM_CREDENTIALS["default"].client_id
            )
            gateway.reload()
            async with asyncio.timeout(60):
                while gateway._callers.keys[0].credentials != "partner":
                    await asyncio.sleep(0.01)
            assert (await other.exchange_one(build_request(key=key))).status == 200
            assert (
                dict(other.upstream.fields(1))["plaid-client-id"] == UPSTREAM_CREDENTIALS["partner"].client_id
            )
            other.gateway = mine


class Broken(KeyFile):
    """A file that can be looked at once."""

    looks = 0

    def stamp(self) -> object:
        self.looks += 1
        return 1 // (self.looks < 2)


async def test_nobody_is_admitted_by_keys_that_are_looked_at_no_more(tmp_path, caplog):
    """Where a bug ends the look at the file nobody gets in, revoked or not, and the log says why."""
    keys = Broken(tmp_path / "keys.json")
    key = await asyncio.to_thread(keys.add, "one")
    async with running_gateway() as other:
        async with Gateway(keys, upstream=other.upstream.url, credentials=UPSTREAM_CREDENTIALS) as gateway:
            mine, other.gateway = other.gateway, gateway
            assert (await other.exchange_one(build_request(key=key))).status == 200
            await wait_for_keys(gateway)
            assert (await other.exchange_one(build_request(key=key))).error_code == "UNAUTHORIZED_KEY"
            ready = await other.exchange_one(build_request("/readyz", b"", method="GET", content_type=None))
            assert ready.status == 503
            other.gateway = mine
    assert "looking at the keys ended in ZeroDivisionError" in caplog.text
