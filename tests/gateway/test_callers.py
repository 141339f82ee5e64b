"""Access control: keys, operations, partners and credentials."""

from __future__ import annotations

import asyncio
import json
import os
from itertools import combinations

import pytest
from gateway_setup import UPSTREAM_CREDENTIALS, running_gateway, wait_for_keys
from raw_http import CREATE, CREATE_BODY, GET, PDF, REFRESH, REMOVE, build_request, raw_connection

from plaid_relay_async import ConfigurationError
from plaid_relay_async.gateway import Gateway, KeyFile
from plaid_relay_async.gateway.keys import new_key

UNKNOWN_KEY = new_key("unknown")[1]


def invalid_keys(key: str) -> dict[str, str]:
    """Return variants of a key that must not be accepted."""
    return {
        "another's": UNKNOWN_KEY,
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


@pytest.mark.parametrize("wrong", invalid_keys("k" * 50))
@pytest.mark.parametrize("place", ["Authorization", "PLAID-SECRET", "secret"])
async def test_an_invalid_key_is_rejected_in_each_place(setup, wrong, place):
    """A key that differs in any byte gets a 401 in the form of Plaid's errors, and nothing is forwarded."""
    key = invalid_keys(setup.keys["lender"])[wrong]
    if place == "secret":
        response = await setup.exchange_one(
            build_request(CREATE, CREATE_BODY | {"client_id": "me", "secret": key})
        )
    else:
        shown = f"Bearer {key}" if place == "Authorization" else key
        response = await setup.exchange_one(build_request(CREATE, CREATE_BODY, f"{place}: {shown}"))
    assert (response.status, response.error_code) == (401, "UNAUTHORIZED_KEY")
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    setup.assert_upstream_requests()


async def test_no_key_and_an_invalid_key_get_the_same_response(setup):
    """The response reveals nothing about keys."""
    responses = [
        await setup.exchange_one(build_request()),
        await setup.exchange_one(build_request(key=UNKNOWN_KEY)),
        await setup.exchange_one(build_request(key="short")),
        await setup.exchange_one(build_request(body=CREATE_BODY | {"secret": UNKNOWN_KEY})),
    ]
    errors = [{k: v for k, v in each.json.items() if k != "request_id"} for each in responses]
    assert [each.status for each in responses] == [401] * 4
    assert errors == [errors[0]] * 4
    assert len({each.json["request_id"] for each in responses}) == 4
    assert errors[0]["suggested_action"]
    setup.assert_upstream_requests()


@pytest.mark.parametrize("secret", [None, 7, True, ["KEY"], {"KEY": "KEY"}], ids=repr)
async def test_a_secret_in_the_body_that_is_not_a_string_is_not_a_key(setup, secret):
    """Any other JSON value is rejected, and causes no error in the gateway."""
    body = json.dumps(CREATE_BODY | {"secret": secret}).replace("KEY", setup.keys["lender"]).encode()
    assert (await setup.exchange_one(build_request(CREATE, body))).error_code == "UNAUTHORIZED_KEY"
    setup.assert_upstream_requests()


@pytest.mark.parametrize(
    "scheme", ["Basic {}", "Digest {}", "{}", "Bearer", "Bearer {} {}", "Bearer, {}", "Token {}"]
)
async def test_another_authorization_scheme_is_rejected(setup, scheme):
    """A key in an Authorization header of another form than `Bearer KEY` isn't accepted."""
    shown = scheme.replace("{}", setup.keys["lender"])
    response = await setup.exchange_one(build_request(CREATE, CREATE_BODY, f"Authorization: {shown}"))
    assert (response.status, response.error_code) == (401, "UNAUTHORIZED_KEY")
    setup.assert_upstream_requests()


PLACES = ("Authorization", "PLAID-SECRET", "secret")


@pytest.mark.parametrize(("first", "second"), [*combinations(PLACES, 2)])
@pytest.mark.parametrize("right", ["first", "second"])
async def test_the_first_place_decides(setup, first, second, right):
    """Of two keys, the one that comes first in this order counts: Authorization, PLAID-SECRET, the body."""
    keys = {first: UNKNOWN_KEY, second: UNKNOWN_KEY} | {
        first if right == "first" else second: setup.keys["lender"]
    }
    lines = [
        f"{place}: {'Bearer ' if place == 'Authorization' else ''}{key}"
        for place, key in keys.items()
        if place != "secret"
    ]
    body = CREATE_BODY | ({"secret": keys["secret"]} if "secret" in keys else {})
    response = await setup.exchange_one(build_request(CREATE, body, *lines))
    assert response.status == (200 if right == "first" else 401)
    setup.assert_upstream_requests(count=right == "first")


@pytest.mark.parametrize("place", PLACES)
async def test_credentials_of_the_caller_are_dropped(setup, place):
    """They aren't forwarded, in whichever place they are sent."""
    key = setup.keys["lender"]
    lines = {
        "Authorization": [f"Authorization: Bearer {key}", "PLAID-CLIENT-ID: me", "PLAID-SECRET: mine"],
        "PLAID-SECRET": ["PLAID-CLIENT-ID: id-of-the-partner", f"PLAID-SECRET: {key}"],
        "secret": ["PLAID-CLIENT-ID: me"],
    }[place]
    nested = {"client_id": "stays", "secret": "stays"}
    body = CREATE_BODY | {"client_id": "id-of-the-partner", "secret": key if place == "secret" else "mine"}
    assert (await setup.exchange_one(build_request(CREATE, body | {"options": nested}, *lines))).status == 200
    assert setup.upstream.body() == CREATE_BODY | {"options": nested}
    fields = dict(setup.upstream.fields())
    assert (fields["plaid-client-id"], fields["plaid-secret"]) == (
        "id-of-the-owner",
        "canary-upstream-of-the-owner",
    )


async def test_an_escaped_secret_is_recognized(setup):
    """A name with escape sequences is the same name: the key is found, and dropped."""
    body = json.dumps(CREATE_BODY | {"secret": setup.keys["lender"], "client_id": "me"})
    body = body.replace('"secret"', r'"\u0073ecret"').replace('"client_id"', r'"client\u005fid"')
    assert (await setup.exchange_one(build_request(CREATE, body.encode()))).status == 200
    assert setup.upstream.body() == CREATE_BODY


@pytest.mark.parametrize("path", [CREATE, GET, PDF, REFRESH, REMOVE])
@pytest.mark.parametrize("caller", ["creator", "remover"])
async def test_a_key_allows_only_its_operations(setup, path, caller):
    """A key for one operation gets a 403 for the other four."""
    response = await setup.call(path, caller)
    if {"creator": CREATE, "remover": REMOVE}[caller] == path:
        assert response.status == 200
    else:
        assert (response.status, response.error_code) == (403, "UNAUTHORIZED_OPERATION")
        setup.assert_upstream_requests()


@pytest.mark.parametrize(
    "path",
    [
        "/asset_report/create",
        "/asset_report/remove",
        "/item/remove",
        "/item/public_token/exchange",
        "/sandbox/public_token/create",
        "/webhook_verification_key/get",
        "/beta/webhook_events/list",
    ],
)
async def test_only_relay_is_served_by_default(setup, path):
    """By default the gateway rejects the client's other operations."""
    response = await setup.call(path)
    assert (response.status, response.error_code) == (403, "UNAUTHORIZED_OPERATION")
    setup.assert_upstream_requests()


@pytest.mark.parametrize(
    "path", ["/link/token/create", "/auth/get", "/transfer/create", "/credit/relay", "/"]
)
async def test_other_paths_of_plaid_are_not_found(setup, path):
    """A path that the package has no operation for isn't found."""
    response = await setup.call(path)
    assert response.status in {404, 405}
    setup.assert_upstream_requests()


async def test_a_gateway_serves_only_its_operations():
    """A key allows only operations that the gateway serves."""
    async with running_gateway(operations=[CREATE]) as setup:
        assert (await setup.call(REMOVE)).error_code == "UNAUTHORIZED_OPERATION"
        assert (await setup.call(REMOVE, "remover")).error_code == "UNAUTHORIZED_OPERATION"
        setup.assert_upstream_requests()


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
async def test_a_key_bound_to_partners_rejects_others(setup, partner):
    """A partner that differs in any byte is rejected, and so is any other JSON value."""
    response = await setup.call(CREATE, "bound", body=CREATE_BODY | {"secondary_client_id": partner})
    assert response.status in {400, 403}
    assert response.error_code in {"PARTNER_NOT_ALLOWED", "INVALID_BODY"}
    setup.assert_upstream_requests()


async def test_a_key_bound_to_partners_requires_a_partner(setup):
    """A creation without a partner is rejected."""
    response = await setup.call(CREATE, "bound", body={"report_tokens": ["r"]})
    assert (response.status, response.error_code) == (403, "PARTNER_NOT_ALLOWED")
    setup.assert_upstream_requests()


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
async def test_a_repeated_or_escaped_partner_is_rejected(setup, body):
    """Two parsers may read different values, so such a body isn't forwarded."""
    response = await setup.call(CREATE, "bound", body=body)
    assert response.error_code in {"INVALID_BODY", "PARTNER_NOT_ALLOWED"}
    setup.assert_upstream_requests()


async def test_an_escaped_partner_is_recognized(setup):
    """The value that is checked is the value that is forwarded."""
    body = rb'{"secondary_client_\u0069d": "\u0070\u0031", "report_tokens": ["r"]}'
    assert (await setup.call(CREATE, "bound", body=body)).status == 200
    assert setup.upstream.body() == {"secondary_client_id": "p1", "report_tokens": ["r"]}


async def test_each_key_has_its_credentials(setup):
    """A key of the partner calls with the partner's credentials, whatever client ID it sends."""
    body = CREATE_BODY | {"client_id": "id-of-the-owner"}
    await setup.exchange_one(
        build_request(GET, body, "PLAID-CLIENT-ID: id-of-the-owner", key=setup.keys["partner"])
    )
    fields = dict(setup.upstream.fields())
    assert fields["plaid-secret"] == "canary-upstream-of-the-partner"
    assert fields["plaid-client-id"] == "id-of-the-partner"


async def test_a_key_with_missing_credentials_is_rejected(setup):
    """It isn't served with other credentials."""
    response = await setup.call(CREATE, "lost")
    assert (response.status, response.error_code) == (403, "UNAUTHORIZED_CREDENTIALS")
    setup.assert_upstream_requests()


async def test_a_key_has_a_rate_limit(setup):
    """A call beyond the limit gets a 429 with Retry-After; other keys aren't affected."""
    responses = [await setup.call(CREATE, "hasty") for _ in range(4)]
    assert [each.status for each in responses] == [200, 200, 429, 429]
    assert responses[-1].error_code == "RATE_LIMIT"
    assert 0 < float(responses[-1].headers["Retry-After"]) <= 60
    assert (await setup.call()).status == 200
    setup.assert_upstream_requests(count=3)


async def test_rejected_calls_do_not_count_against_a_rate_limit(setup):
    """Calls with invalid keys use up nothing of a caller's limit."""
    for _ in range(5):
        await setup.exchange_one(build_request(key=setup.keys["hasty"][:-1]))
    assert (await setup.call(CREATE, "hasty")).status == 200


@pytest.mark.may_block
async def test_a_revoked_key_is_rejected(tmp_path):
    """Once the gateway has reloaded the file, a revoked key is rejected and an added key is accepted."""
    keys = KeyFile(tmp_path / "keys.json")
    revoked, kept_key = keys.add("gone"), keys.add("stays")
    async with running_gateway() as other:
        async with Gateway(keys, upstream=other.upstream.url, credentials=UPSTREAM_CREDENTIALS) as gateway:
            first, other.gateway = other.gateway, gateway
            assert (await other.exchange_one(build_request(key=revoked))).status == 200
            keys.revoke("gone")
            added = keys.add("late")
            await wait_for_keys(gateway, "late", "stays")
            assert (await other.exchange_one(build_request(key=revoked))).error_code == "UNAUTHORIZED_KEY"
            assert (await other.exchange_one(build_request(key=kept_key))).status == 200
            assert (await other.exchange_one(build_request(key=added))).status == 200
            other.assert_upstream_requests(count=3)
            other.gateway = first


@pytest.mark.may_block
async def test_a_key_that_is_revoked_during_its_request_is_rejected(tmp_path):
    """A call isn't executed if its key was revoked while its body arrived."""
    keys = KeyFile(tmp_path / "keys.json")
    key = keys.add("gone")
    request_bytes = build_request(key=key)
    async with running_gateway() as other:
        async with (
            Gateway(keys, upstream=other.upstream.url, credentials=UPSTREAM_CREDENTIALS) as gateway,
            raw_connection(gateway.url) as connection,
        ):
            await connection.send(request_bytes[:-9])
            keys.revoke("gone")
            await wait_for_keys(gateway)
            await connection.send(request_bytes[-9:])
            assert (await connection.read_response()).error_code == "UNAUTHORIZED_KEY"
        other.assert_upstream_requests()


@pytest.mark.may_block
@pytest.mark.parametrize("damage", ["not JSON", "for all to read", "gone"])
async def test_an_unusable_key_file_admits_no_caller(tmp_path, damage):
    """A file that is damaged, readable by others or missing admits no caller; /readyz reports the first two."""
    path = tmp_path / "keys.json"
    keys = KeyFile(path)
    key = keys.add("one")
    async with running_gateway() as other:
        async with Gateway(keys, upstream=other.upstream.url, credentials=UPSTREAM_CREDENTIALS) as gateway:
            first, other.gateway = other.gateway, gateway
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
            other.gateway = first


async def test_keys_are_reloaded_on_request(tmp_path):
    """A reload reads the key file even if its size and times are unchanged."""
    keys, path = KeyFile(tmp_path / "keys.json"), tmp_path / "keys.json"
    key = await asyncio.to_thread(keys.add, "one")
    async with running_gateway() as other:
        async with Gateway(keys, upstream=other.upstream.url, credentials=UPSTREAM_CREDENTIALS) as gateway:
            first, other.gateway = other.gateway, gateway
            before = path.stat()
            text = path.read_text()
            path.write_text(
                text.replace("default", "partner")
            )  # a name of the same length, so that the size stays
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            await asyncio.sleep(1.1)
            assert (await other.exchange_one(build_request(key=key))).status == 200
            assert (
                dict(other.upstream.fields(0))["plaid-client-id"] == UPSTREAM_CREDENTIALS["default"].client_id
            )
            await gateway.reload()
            assert (await other.exchange_one(build_request(key=key))).status == 200
            assert (
                dict(other.upstream.fields(1))["plaid-client-id"] == UPSTREAM_CREDENTIALS["partner"].client_id
            )
            other.gateway = first


class BrokenKeyFile(KeyFile):
    """A file whose second check raises an error."""

    checks = 0

    def read_fingerprint(self) -> object:
        self.checks += 1
        return 1 // (self.checks < 2)


async def test_no_caller_is_admitted_after_the_watcher_failed(tmp_path, caplog):
    """If checking the key file fails unexpectedly, all keys are rejected, and the log says why."""
    keys = BrokenKeyFile(tmp_path / "keys.json")
    key = await asyncio.to_thread(keys.add, "one")
    async with running_gateway() as other:
        async with Gateway(keys, upstream=other.upstream.url, credentials=UPSTREAM_CREDENTIALS) as gateway:
            first, other.gateway = other.gateway, gateway
            assert (await other.exchange_one(build_request(key=key))).status == 200
            await wait_for_keys(gateway)
            assert (await other.exchange_one(build_request(key=key))).error_code == "UNAUTHORIZED_KEY"
            ready = await other.exchange_one(build_request("/readyz", b"", method="GET", content_type=None))
            assert ready.status == 503
            keys.checks = 0  # it can be read again, but changes of it are no longer noticed
            with pytest.raises(ConfigurationError):
                await gateway.reload()
            assert (await other.exchange_one(build_request(key=key))).error_code == "UNAUTHORIZED_KEY"
            other.gateway = first
    assert "checking the key file failed with ZeroDivisionError" in caplog.text
