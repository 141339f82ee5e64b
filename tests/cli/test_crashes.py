"""`bulk` with a journal, killed at random moments until it is done: nothing is made twice, and no token is lost."""

import asyncio
import random
import re
import signal
import subprocess
import time
from collections import Counter

import pytest
from attrs import define
from cryptography.fernet import Fernet

from plaid_relay_async.simulator import Fault

pytestmark = pytest.mark.full_size

CREATE = "/credit/relay/create"
REPORT = "assets-sandbox-1111"
PARTNERS = 60
CONCURRENCY = 5
KILLS = 6  # at most
LEASE = 1.0  # seconds
LONGEST = 10.0  # seconds for one creation, for which --retry-unknown waits as well
# Each of them may leave one pair unknown.
IN_DOUBT = (
    Fault(path=CREATE, rate=0.05, times=2, close=True, when="after"),
    Fault(path=CREATE, rate=0.05, times=2, truncate=20),
    Fault(path=CREATE, rate=0.05, times=1, status=500, when="after"),
    Fault(path=CREATE, rate=0.05, times=1, close=True),
)
REFUSED = {400, 429}
NO_DOUBT = (
    Fault(path=CREATE, rate=0.1, times=5, status=429),
    Fault(path=CREATE, rate=0.05, times=2, status=400, body={"error_type": "ITEM_ERROR"}),
)


def pytest_generate_tests(metafunc):
    if "seed" in metafunc.fixturenames:
        rounds = metafunc.config.getoption("rounds")
        slow = "postgres" in metafunc.fixturenames
        metafunc.parametrize("seed", range(1 if slow and rounds < 10 else rounds))


@define
class Story:
    """One run over all partners, in several lives."""

    plaid: object
    spawn: object
    words: tuple
    chance: random.Random
    kills: int = 0

    def settled(self):
        """The partners for whom a request has come that wasn't surely refused; there is to be no other for them."""
        requests = [each for each in self.plaid.requests if each.status not in REFUSED]
        partners = {each.secondary_client_id for each in requests}
        assert len(partners) == len(requests)
        return partners

    def life(self, *words):
        return self.spawn(*self.words, *words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def killed(self, process, longest):
        """Kill a life at a random moment, of those after its first request but for one in five."""
        before, came = self.settled(), len(self.plaid.requests)
        if self.chance.random() < 0.2:
            time.sleep(self.chance.uniform(0, 0.6))
        else:
            while len(self.plaid.requests) == came and process.poll() is None:
                time.sleep(0.001)
            time.sleep(self.chance.uniform(0, longest))
        if process.poll() is None:
            process.kill()
            self.kills += 1
        process.communicate()
        new = self.plaid.requests[came:]
        assert self.settled() - before or all(each.status in REFUSED for each in new)

    def to_the_end(self, run):
        """Let it live, and again where what failed can pass; give the status of the last one."""
        for _ in range(8):
            process = self.life()
            _, said = process.communicate()
            assert process.returncode in {0, 1, 3}, said
            if all(line["outcome"] in {"created", "unknown"} for line in run("export", "crash").lines):
                return process.returncode
        raise AssertionError(said)

    def check(self, run):
        """Hold the journal against the ledger; no more than what a kill or a fault struck is unknown."""
        self.settled()
        made = Counter(entry["secondary_client_id"] for entry in self.plaid.ledger)
        assert set(made.values()) <= {1}
        told = run("export", "crash").lines
        assert sorted(line["secondary_client_id"] for line in told) == sorted(
            f"p{n}" for n in range(PARTNERS)
        )
        assert {line["outcome"] for line in told} <= {"created", "unknown"}
        tokens = {line["secondary_client_id"]: line["relay_token"] for line in told if line["relay_token"]}
        unknown = {line["secondary_client_id"] for line in told if line["outcome"] == "unknown"}
        for entry in self.plaid.ledger:
            partner = entry["secondary_client_id"]
            assert tokens.get(partner) == entry["relay_token"] or partner in unknown
        assert len(tokens) + len(unknown) == PARTNERS
        assert len(unknown) <= self.kills * CONCURRENCY + sum(fault.times for fault in IN_DOUBT)
        return unknown

    def resumed(self, run):
        """Resume with --retry-unknown until all are created: each pair that was unknown has one more token at most."""
        unknown, made = self.check(run), Counter(each["secondary_client_id"] for each in self.plaid.ledger)
        for _ in range(8):
            process = self.life("--retry-unknown")
            process.communicate()
            if process.returncode == 0:
                break
        assert process.returncode == 0
        now = Counter(each["secondary_client_id"] for each in self.plaid.ledger)
        assert {partner for partner in now if now[partner] > made[partner]} <= unknown
        tokens = {line["secondary_client_id"]: line["relay_token"] for line in run("export", "crash").lines}
        assert tokens == {each["secondary_client_id"]: each["relay_token"] for each in self.plaid.ledger}


@pytest.fixture
def story(start, spawn, partners, monkeypatch):
    """Begin a story with a seed and a journal."""
    path = partners(PARTNERS)
    monkeypatch.setenv("PLAID_RELAY_KEY", Fernet.generate_key().decode())

    def story(seed, journal):
        monkeypatch.setenv("PLAID_RELAY_JOURNAL", str(journal))
        plaid = start(latency=0.015, seed=seed)
        plaid.fail(*IN_DOUBT, *NO_DOUBT)
        words = ("bulk", path, "--report-token", REPORT, "--run", "crash", "--concurrency", CONCURRENCY)
        limits = ("--lease", LEASE, "--timeout", LONGEST)
        return Story(plaid, spawn, (*words, *limits), random.Random(seed))

    return story


def test_killed_until_it_is_done(story, run, tmp_path, seed):
    """Each life goes on from the last; status 0, or 3 where a kill or a fault left a pair unknown."""
    told = story(seed, tmp_path / "relay.db")
    for _ in range(told.chance.randint(1, KILLS)):
        told.killed(told.life(), 0.25)
    status = told.to_the_end(run)
    assert status == (3 if told.check(run) else 0)
    told.resumed(run)


def test_killed_with_its_server(story, run, postgres, seed):
    """The same with PostgreSQL, which is killed, too, and comes back meanwhile."""
    asyncio.run(postgres.reset())
    told = story(seed, postgres.url)
    for _ in range(told.chance.randint(1, KILLS)):
        process = told.life()
        if told.chance.random() < 0.5:
            time.sleep(told.chance.uniform(0, 1))
            asyncio.run(postgres.kill())
            asyncio.run(postgres.start())
        told.killed(process, 0.25)
    status = told.to_the_end(run)
    assert status == (3 if told.check(run) else 0)
    told.resumed(run)


def test_stopped_beyond_its_lease(story, run, postgres, seed):
    """One of two on a run sleeps while its lease lapses: it begins nothing more, and what it had begun is kept."""
    asyncio.run(postgres.reset())
    told = story(seed, postgres.url)
    first = told.life()
    while not told.plaid.requests:
        assert first.poll() is None
    second = told.life()
    time.sleep(told.chance.uniform(0, 0.2))
    first.send_signal(signal.SIGSTOP)
    time.sleep(2.5 * LEASE)
    first.send_signal(signal.SIGCONT)
    assert {each.communicate() and each.returncode for each in (first, second)} <= {0, 1, 3}
    status = told.to_the_end(run)
    assert status == (3 if told.check(run) else 0)
    told.resumed(run)


@pytest.mark.timeout(900)
def test_interrupted_at_half_and_its_key_changed(start, spawn, run, partners, tmp_path, request, monkeypatch):
    """`status`, `export` and the ledger agree to the last row, whatever the size; the old key is of no use then."""
    count = request.config.getoption("partners")
    plaid = start()
    plaid.fail(*(Fault(secondary_client_id=f"p{n}", status=400) for n in (7, count - 7)))
    plaid.fail(Fault(secondary_client_id=f"p{count - 9}", close=True, when="after"))
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    monkeypatch.setenv("PLAID_RELAY_JOURNAL", str(tmp_path / "relay.db"))
    monkeypatch.setenv("PLAID_RELAY_KEY", old)
    words = ("bulk", partners(count), "--report-token", REPORT, "--run", "half", "--concurrency", 100)
    process = spawn(*words, stdout=subprocess.DEVNULL)
    while len(plaid.ledger) < count // 2:
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.communicate()
    monkeypatch.setenv("PLAID_RELAY_KEY", f"{new},{old}")
    assert run("rotate").status == 0
    monkeypatch.setenv("PLAID_RELAY_KEY", new)
    process = spawn(*words, stdout=subprocess.DEVNULL)
    process.communicate()
    assert process.returncode == 3
    told = run("export", "half").lines
    assert sorted(line["secondary_client_id"] for line in told) == sorted(f"p{n}" for n in range(count))
    status = run("status", "half")
    counts = Counter(line["outcome"] for line in told)
    assert {kind: status_count(status, kind) for kind in counts} == counts
    unknown = {line["secondary_client_id"] for line in told if line["outcome"] == "unknown"}
    assert set(re.findall(r"^unknown: (\S+) ", status.out, re.MULTILINE)) == unknown
    assert counts["failed"] == 2
    assert f"p{count - 9}" in unknown
    assert len(unknown) <= 101
    kept = {line["secondary_client_id"]: line["relay_token"] for line in told if line["relay_token"]}
    made = {entry["secondary_client_id"]: entry["relay_token"] for entry in plaid.ledger}
    assert len(made) == len(plaid.ledger)
    assert {partner: token for partner, token in made.items() if partner not in unknown} == kept
    monkeypatch.setenv("PLAID_RELAY_KEY", old)
    assert run("status", "half").status == 2


def status_count(status, kind):
    """The number beside an outcome in what `status` shows."""
    return int(re.findall(rf"^{kind} +(\d+)", status.out, re.MULTILINE)[0])
