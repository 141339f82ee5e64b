from __future__ import annotations

import copy

import pytest


@pytest.fixture(scope="module")
def document(openapi):
    """A copy of Plaid's document that a module may change."""
    return copy.deepcopy(openapi.document)
