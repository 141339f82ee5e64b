"""The endpoint table."""

from __future__ import annotations

import pytest
from attrs import fields_dict

from plaid_relay_async.codec import ENDPOINTS, Idempotency


def test_each_operation_is_in_the_table_once():
    """Paths are unique, and no operation that creates something is marked safe."""
    assert len({endpoint.path for endpoint in ENDPOINTS}) == len(ENDPOINTS)
    creating = {e.path for e in ENDPOINTS if e.idempotency is Idempotency.NON_IDEMPOTENT}
    assert {"/credit/relay/create", "/credit/relay/refresh", "/asset_report/create"} <= creating
    assert {e.path for e in ENDPOINTS if e.idempotency is Idempotency.IDEMPOTENT} == {
        "/asset_report/remove",
        "/credit/relay/remove",
        "/item/remove",
    }


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_the_table_names_the_token_that_an_operation_issues(endpoint):
    """It is the token that the response's record hides; only a non-idempotent operation issues one."""
    response_fields = fields_dict(endpoint.response_type).items()
    hidden = [name for name, field in response_fields if name.endswith("_token") and not field.repr]
    assert hidden == ([] if endpoint.issues is None else [endpoint.issues])
    assert endpoint.issues is None or endpoint.idempotency is Idempotency.NON_IDEMPOTENT
    assert bool(endpoint.headers) == (endpoint.idempotency is Idempotency.NON_IDEMPOTENT)
