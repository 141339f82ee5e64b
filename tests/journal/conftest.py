"""Fixtures for the tests of the journal: a report, and the URL of a journal in either kind of database."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request, tmp_path):
    if request.param == "sqlite":
        return str(tmp_path / "relay.db")
    server = request.getfixturevalue("postgres")
    await server.reset()
    return server.url


@pytest.fixture
def report(plaid):
    return plaid.add_report()
