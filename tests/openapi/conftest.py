from pathlib import Path

import pytest
import yaml


@pytest.fixture(scope="session")
def specification(request):
    """Plaid's OpenAPI document, which is not part of this repository."""
    path = request.config.getoption("--specification")
    if path is None:
        pytest.skip("needs --specification PATH, the path of Plaid's OpenAPI document")
    return Path(path).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def document(specification):
    """A copy of it that a module may change."""
    return yaml.safe_load(specification)
