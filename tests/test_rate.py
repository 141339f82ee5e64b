"""Near a limit that nobody told it, the client slows down by itself; told it, it is never refused."""

from __future__ import annotations

from rate import CONDITIONS, Condition, measure

# Each kind of condition once, by default; all of them, with several seeds, where more rounds are asked for.
FEW = (
    Condition("sliding", 50, 0.3, retry_after=True),
    Condition("fixed", 50, 0.02, retry_after=False),
    Condition("fixed", 50, 2.0, retry_after=True),
)


def pytest_generate_tests(metafunc):
    rounds = metafunc.config.getoption("--rounds")
    default = rounds == 3
    metafunc.parametrize("condition", FEW if default else CONDITIONS, ids=str)
    metafunc.parametrize("seed", range(1 if default else min(rounds, 5)))


def test_a_client_finds_the_limit_by_itself(condition, seed):
    """After the first minute hardly anything is refused, and nearly all that is allowed is used."""
    run = measure(condition, seed=seed)
    refused, used = (0.03, 0.9) if condition.retry_after else (0.1, 0.8)
    assert run.refused < refused
    assert run.used >= used
