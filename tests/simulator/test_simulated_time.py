"""The simulator's time and Unix time."""

import time

from plaid_relay_async.simulator.simulated_time import SimulatedTime


def test_the_time_moves_forward(clock):
    """The time is that of the clock, plus what it was moved; it is never moved back."""
    simulated = SimulatedTime(clock)
    assert simulated() == 1000
    simulated.move_to(1500)
    simulated.move_to(1200)
    assert simulated() == 1500
    clock.now += 1
    assert simulated() == 1501


def test_unix_time(clock):
    """The present is the present of Unix time, also after a move, and a moment keeps its age."""
    simulated = SimulatedTime(clock)
    first = simulated.to_unix(900)
    assert simulated.to_unix(900) == first
    assert abs(time.time() - 100 - first) < 60
    simulated.move_to(1000 + 86_400)
    assert abs(time.time() - 100 - 86_400 - simulated.to_unix(900)) < 60
