"""The fixture of the tests of traces and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from otel_support import Recording

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def recording() -> Iterator[Recording]:
    """Providers of OpenTelemetry; check after the test that they have received no canary."""
    providers = Recording()
    yield providers
    providers.assert_clean()
    providers.close()
