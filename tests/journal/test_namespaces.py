"""The namespace of a journal's pairs: the host has one spelling, and records under another one are found."""

from __future__ import annotations

import pytest
from journal_support import KEY, tokens_per_partner
from support import CREATE, OWNER, QUICK

from plaid_relay_async import (
    DuplicateRequestError,
    JournalError,
    OutcomeUnknownError,
    RelayClient,
    RelayCreateRequest,
)
from plaid_relay_async.journal import Journal
from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.may_block  # psycopg's and SQLAlchemy's own


def client_for_host(plaid, host):
    """Return a client whose base URL spells the simulator's host in this way."""
    return RelayClient(OWNER, base_url=f"http://{host}:{plaid.url.rpartition(':')[2]}", retry=QUICK)


@pytest.mark.parametrize("host", ["LOCALHOST", "LocalHost"])
async def test_each_spelling_of_a_host_is_the_same_namespace(plaid, report, url, host):
    """A pair that has a token under one spelling isn't created again under another."""
    tokens = set()
    for each in ("localhost", host):
        async with client_for_host(plaid, each) as client, Journal(url, run=each, key=KEY) as journal:
            tokens.add((await client.relay.create([report], "p", journal=journal)).relay_token)
    assert len(tokens) == len(plaid.ledger) == 1


@pytest.mark.parametrize(
    ("typed", "normal"),
    [
        ("https://Production.Plaid.com", "production.plaid.com"),
        ("https://production.plaid.com:443", "production.plaid.com"),
        ("https://production.plaid.com.", "production.plaid.com"),
        ("https://bücher.example:8443", "xn--bcher-kva.example:8443"),
        ("https://BÜCHER.example", "xn--bcher-kva.example"),
        ("http://127.0.0.1:80", "127.0.0.1"),
        ("http://[::1]:8080", "[::1]:8080"),
        ("http://127.1:8080", "127.0.0.1:8080"),
    ],
)
async def test_the_normal_spelling_of_a_host(typed, normal):
    """The normal spelling is in lower case and IDNA, without a default port or a trailing dot."""
    contexts = []

    class Asked:
        async def acquire_recorder(self, _request, context):
            contexts.append(context)
            raise JournalError("no more is needed")

    async with RelayClient(OWNER, base_url=typed) as client:
        with pytest.raises(JournalError):
            await client.relay.create(["report"], "p", journal=Asked())
    (context,) = contexts
    assert (context.host, context.legacy_host) == (normal, typed.partition("//")[2])


async def create_in_legacy_namespace(plaid, client, report, url, run, partners, **settings):
    """Create as an earlier version did, which used the host as it was typed."""
    namespace = f"LOCALHOST:{plaid.url.rpartition(':')[2]} {OWNER.client_id}"
    async with Journal(url, run=run, key=KEY, namespace=namespace, **settings) as journal:
        requests = RelayCreateRequest.fan_out([report], partners)
        return await client.relay.create_many(requests, journal=journal)


async def test_records_under_another_spelling_are_found(plaid, report, url):
    """Tokens, doubts and failures are found, and stay when the host is spelled in its normal way."""
    plaid.fail(Fault(path=CREATE, secondary_client_id="unknown", status=500, when="after"))
    plaid.fail(Fault(path=CREATE, secondary_client_id="failed", status=400))
    partners = ["made", "unknown", "failed"]
    async with client_for_host(plaid, "LOCALHOST") as client:
        first = await create_in_legacy_namespace(plaid, client, report, url, "x", partners)
        plaid.clear_faults()
        sent = len(plaid.requests)
        for host in ("LOCALHOST", "localhost"):
            async with client_for_host(plaid, host) as again, Journal(url, run="x", key=KEY) as journal:
                requests = RelayCreateRequest.fan_out([report], partners)
                result = await again.relay.create_many(requests, journal=journal)
                assert (await journal.status("x")).counts == {"created": 1, "unknown": 1, "failed": 1}
            assert result.counts == {"created": 1, "unknown": 1, "failed": 1}
            assert result.created[0].relay_token == first.created[0].relay_token
    assert len(plaid.requests) == sent


async def test_a_pair_under_another_spelling_is_unknown_again_after_removal(plaid, report, url):
    """Once the token of the retry is removed, the pair is unknown again."""
    plaid.fail(Fault(path=CREATE, status=500, when="after"))
    async with client_for_host(plaid, "LOCALHOST") as client:
        await create_in_legacy_namespace(plaid, client, report, url, "x", ["p"])
        plaid.clear_faults()
        async with Journal(url, run="y", key=KEY, retry_unknown=True) as journal:
            response = await client.relay.create([report], "p", journal=journal)
            await client.relay.remove(response.relay_token, journal=journal)
            with pytest.raises(OutcomeUnknownError):
                await client.relay.create([report], "p", journal=journal, retry_unknown=False)
    assert tokens_per_partner(plaid) == {"p": 2}


async def test_rows_under_two_spellings_leave_one_current(plaid, report, url):
    """A failure under the former spelling is replaced by the run's row under the normal one."""
    plaid.fail(Fault(path=CREATE, status=400))
    async with client_for_host(plaid, "localhost") as client, Journal(url, run="x", key=KEY) as journal:
        await client.relay.create_many([RelayCreateRequest([report], "p")], journal=journal)
        await create_in_legacy_namespace(plaid, client, report, url, "x", ["p"])
    plaid.clear_faults()
    async with client_for_host(plaid, "LOCALHOST") as client, Journal(url, run="x", key=KEY) as journal:
        await client.relay.create([report], "p", journal=journal, retry_failed=True)
        assert (await journal.status("x")).counts == {"created": 1}
    assert len(plaid.ledger) == 1


@pytest.mark.parametrize(("partner", "shown"), [("p", "p"), ("credit-relay-sandbox-mistake", "[hidden]")])
async def test_two_tokens_under_two_spellings_are_reported_and_not_merged(
    plaid, report, url, caplog, partner, shown
):
    """Each run gets its own token, and other runs are rejected until one of the two is removed."""
    async with client_for_host(plaid, "localhost") as client:
        async with Journal(url, run="x", key=KEY) as journal:
            one = await client.relay.create([report], partner, journal=journal)
        two = (await create_in_legacy_namespace(plaid, client, report, url, "y", [partner])).created[0]
    async with client_for_host(plaid, "LOCALHOST") as client:
        for run, own in (("x", one), ("y", two)):
            async with Journal(url, run=run, key=KEY) as journal:
                response = await client.relay.create([report], partner, journal=journal)
                assert response.relay_token == own.relay_token
        assert f"partner {shown}: this pair has two relay tokens" in caplog.text
        async with Journal(url, run="z", key=KEY, on_existing="create", retry_unknown=True) as journal:
            with pytest.raises(DuplicateRequestError, match="two spellings of the host"):
                await client.relay.create([report], partner, journal=journal)
            await client.relay.remove(two.relay_token, journal=journal)
        async with Journal(url, run="z", key=KEY) as journal:
            response = await client.relay.create([report], partner, journal=journal)
    assert response.relay_token == one.relay_token
    assert len(plaid.ledger) == 2
    assert one.relay_token not in caplog.text
    assert "mistake" not in caplog.text
