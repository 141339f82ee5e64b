"""What may be done about a pair: one table, with neither database nor server."""

from __future__ import annotations

import pytest
from attrs import evolve

from plaid_relay_async.journal.decisions import Begin, Policy, Refuse, Row, Serve, Wait, decide
from plaid_relay_async.journal.schema import State


def row(state, *, run=1, number=1, token="t", claim=True, error=None):
    return Row(
        id=number,
        run_id=run,
        pair="p",
        partner="p",
        state=state,
        current=True,
        claim=claim,
        holder_id=1,
        begun_at=None,
        ended_at=None,
        attempts=1,
        request_id=None,
        error=error,
        error_type=None,
        error_code=None,
        status=None,
        token=token if state is State.CREATED else None,
        token_digest=None,
    )


FREE = row(State.FAILED, claim=False, error="NotSentError")
OTHERS = row(State.UNKNOWN, run=2, number=2)
OWN = row(State.UNKNOWN)


@pytest.mark.parametrize(
    ("own", "claim", "retry", "alive", "late", "decision"),
    [
        (None, None, False, False, False, Begin()),
        (FREE, None, False, False, False, Begin(FREE)),
        (evolve(FREE, error="InvalidRequestError"), None, True, False, False, "serve own"),
        (evolve(OWN, claim=False), None, False, False, False, "serve own"),
        (evolve(OWN, claim=False), None, True, False, False, "retire own"),
        (row(State.ELSEWHERE, claim=False), None, False, False, False, "go on with own"),
        (row(State.CREATED, claim=False), None, False, False, False, "serve own"),
        (None, row(State.BEGUN, run=2), True, True, False, Wait()),
        (None, row(State.BEGUN, run=2), True, False, True, Wait()),
        (None, row(State.BEGUN, run=2), False, False, True, "serve claim"),
        (None, OTHERS, True, False, False, "retire claim"),
        (OWN, OWN, True, False, False, "retire claim"),
        (FREE, OTHERS, True, False, False, Begin(FREE, (OTHERS,))),
        (
            evolve(OWN, claim=False),
            OTHERS,
            True,
            False,
            False,
            Begin(retire=(OTHERS, evolve(OWN, claim=False))),
        ),
        (None, row(State.REMOVING, run=2), False, False, False, "refuse"),
        (None, row(State.REMOVING), True, False, False, "refuse"),
        (None, row(State.REMOVING, run=2), False, True, False, Wait()),
        (row(State.REMOVING, claim=False), row(State.CREATED, run=2), False, True, False, Wait()),
        (row(State.BEGUN, claim=False), None, False, False, False, "serve own"),
        (row(State.BEGUN, claim=False), None, True, False, False, "retire own"),
        (row(State.BEGUN, claim=False), row(State.REMOVING, run=2), False, False, False, "refuse"),
        (row(State.BEGUN, claim=False), row(State.CREATED, number=2), True, False, True, "serve claim"),
        (row(State.REMOVED, claim=False), None, False, False, False, "retire own"),
    ],
)
def test_what_may_be_done_about_a_pair(own, claim, retry, alive, late, decision):
    """One table says it all, for the row of the run and the one with the claim."""
    known = {
        "serve own": Serve(own),
        "serve claim": Serve(claim),
        "retire own": Begin(retire=(own,)),
        "retire claim": Begin(retire=(claim,)),
        "go on with own": Begin(own),
    }
    reached = decide(own, claim, Policy(1, "reuse", retry), alive=alive, late=late)
    if decision == "refuse":
        assert isinstance(reached, Refuse)
    else:
        assert reached == (known[decision] if isinstance(decision, str) else decision)


@pytest.mark.parametrize("own", [evolve(OWN, claim=False), row(State.BEGUN, claim=False)])
def test_a_doubt_of_ones_own_is_not_passed_over_for_another_token(own):
    """on_existing="create" is about tokens: what may have made one already isn't begun again unasked."""
    others = row(State.CREATED, run=2, number=2)
    policy = Policy(1, "create", retry_unknown=False)
    assert decide(own, others, policy, alive=False, late=False) == Serve(own)
    policy = evolve(policy, retry_unknown=True)
    assert decide(own, others, policy, alive=False, late=False) == Begin(retire=(others, own))


def decided(own, claim, on_existing="reuse", *, retry_unknown=False, retry_failed=False, late=False):
    policy = Policy(1, on_existing, retry_unknown, retry_failed)
    return decide(own, claim, policy, alive=False, late=late)


@pytest.mark.parametrize("state", [State.CREATED, State.REMOVING], ids=["forgotten", "removal unknown"])
def test_a_token_that_cannot_be_served_counts_until_its_removal_is_confirmed(state):
    """Its own run is refused in any case, and another run unless on_existing="create" is set."""
    gone, others = row(state, token=None), row(State.CREATED, run=2, number=2)
    for settings in ({}, {"retry_unknown": True, "retry_failed": True}):
        for on_existing in ("reuse", "refuse", "create"):
            assert isinstance(decided(gone, gone, on_existing, **settings), Refuse)
        assert isinstance(decided(None, evolve(gone, run_id=2), **settings), Refuse)
        assert isinstance(decided(evolve(gone, claim=False), others, "create", **settings), Refuse)
    assert decided(None, evolve(gone, run_id=2), "create") == Begin(retire=(evolve(gone, run_id=2),))
    assert decided(evolve(gone, claim=False), others) == Serve(others)


def test_a_doubt_of_the_run_that_may_be_in_flight_is_waited_for():
    """A doubt of the run is waited for even if another run's token has the claim."""
    own, others = row(State.BEGUN, claim=False), row(State.CREATED, run=2, number=2)
    assert decided(own, others, "create", retry_unknown=True, late=True) == Wait()
    assert decided(own, others, "create", retry_unknown=True) == Begin(retire=(others, own))


def test_a_failure_is_served_until_retry_failed():
    """A final failure is begun again only with retry_failed, unless the pair is in doubt."""
    failed = row(State.FAILED, error="InvalidRequestError", claim=False)
    others = row(State.CREATED, run=2, number=2)
    assert decided(failed, None) == decided(failed, others, "create") == Serve(failed)
    assert decided(failed, None, retry_failed=True) == Begin(failed)
    assert decided(failed, others, "create", retry_failed=True) == Begin(failed, retire=(others,))
    assert decided(failed, OTHERS, retry_failed=True) == Serve(OTHERS)
    assert decided(failed, OTHERS, retry_unknown=True) == Begin(failed, retire=(OTHERS,))
