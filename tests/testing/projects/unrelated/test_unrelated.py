import warnings

import pytest


@pytest.fixture(scope="module")
def numbers():
    return {1, 2}


@pytest.mark.parametrize("number", [1, 2])
def test_numbers(numbers, number):
    assert number in numbers


def test_warning():
    warnings.warn("something will change", stacklevel=1)


@pytest.mark.unknown
def test_unknown_marker(): ...
