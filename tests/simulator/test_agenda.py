"""The agenda: what runs when, and what is removed."""

import pytest

from plaid_relay_async.simulator.agenda import Agenda


@pytest.fixture
def agenda():
    return Agenda()


def test_order(agenda):
    """Actions run in the order of their moments, and those of one moment in the order in which they were added."""
    done = []
    for moment, name in ((2, "c"), (1, "a"), (1, "b"), (3, "d")):
        agenda.add(moment, lambda name=name: done.append(name))
    assert agenda.next_moment() == 1
    while agenda.run_next(2):
        pass
    assert done == ["a", "b", "c"]
    assert agenda.next_moment() == 3


def test_an_added_action_is_announced(agenda):
    """A function is called after each action that is added."""
    added = []
    agenda.on_add = lambda: added.append(len(agenda))
    agenda.add(1, lambda: None)
    agenda.add(1, lambda: None)
    assert added == [1, 2]


def test_cancelled_actions_do_not_run(agenda):
    """A cancelled action doesn't run, and doesn't determine the next moment."""
    done = []
    entries = [agenda.add(moment, lambda moment=moment: done.append(moment)) for moment in range(5)]
    agenda.cancel(entries[0])
    agenda.cancel(entries[1])
    assert agenda.next_moment() == 2
    while agenda.run_next(10):
        pass
    assert done == [2, 3, 4]
    assert agenda.next_moment() is None
    assert not agenda.run_next(10)


def test_cancelled_actions_are_removed(agenda):
    """Cancelled actions never make up more than half of the agenda."""
    for _ in range(100):
        agenda.cancel(agenda.add(5, lambda: None))
    assert len(agenda) == 0
