"""The tables of version 1 of the journal, and what its processes execute, for the tests of migrations."""

from __future__ import annotations

_ENTRIES = """
CREATE TABLE relay_entries (
    id {id} NOT NULL, run_id BIGINT NOT NULL, pair TEXT NOT NULL, partner TEXT NOT NULL, state TEXT NOT NULL,
    current BOOLEAN NOT NULL, claim BOOLEAN NOT NULL, holder_id BIGINT NOT NULL, begun_at FLOAT, ended_at FLOAT,
    attempts INTEGER NOT NULL, request_id TEXT, error TEXT, error_type TEXT, error_code TEXT, status INTEGER,
    token TEXT, token_digest TEXT, PRIMARY KEY (id)
);
CREATE UNIQUE INDEX relay_entries_current ON relay_entries (run_id, pair) WHERE current = {true};
CREATE INDEX relay_entries_token ON relay_entries (token_digest) WHERE token_digest IS NOT NULL;
CREATE UNIQUE INDEX relay_entries_claim ON relay_entries (pair) WHERE claim = {true};
CREATE INDEX relay_entries_heirs ON relay_entries (pair) WHERE claim = {false} AND begun_at IS NOT NULL;
CREATE INDEX relay_entries_run ON relay_entries (run_id, id);
INSERT INTO relay_journal (id, version, pair_key) VALUES (1, 1, 'clear:{pair_key}');
INSERT INTO relay_runs (name, started_at) VALUES ('x', 1764500000.5);
INSERT INTO relay_holders (run_id, ended, request_seconds) VALUES (1, {true}, 300.0);
"""
_TABLES = """
CREATE TABLE relay_journal (
    id INTEGER NOT NULL, version INTEGER NOT NULL, pair_key TEXT NOT NULL, PRIMARY KEY (id)
);
CREATE TABLE relay_runs ({runs_id}, name TEXT NOT NULL, started_at FLOAT NOT NULL, UNIQUE (name));
CREATE TABLE relay_holders (
    {holders_id}, run_id BIGINT NOT NULL, lock TEXT, expires_at FLOAT, ended BOOLEAN NOT NULL,
    request_seconds FLOAT NOT NULL
);
"""
PAIR_KEY = "5a" * 32
INSERT_INTENT = """
INSERT INTO relay_entries
    (id, run_id, pair, partner, state, current, claim, holder_id, begun_at, attempts)
VALUES (:id, 1, :pair, :partner, 'begun', true, true, 1, 1764500001.25, 0)
"""
UPDATE_OUTCOME = """
UPDATE relay_entries SET state = :state, token = :token, ended_at = 1764500002.5, attempts = 1
WHERE id = :id AND holder_id = 1 AND state IN ('begun', 'unknown')
"""
SELECT_PAIR = """
SELECT id, run_id, pair, partner, state, current, claim, holder_id, begun_at, ended_at, attempts, request_id,
    error, error_type, error_code, status, token, token_digest
FROM relay_entries WHERE pair = :pair AND claim = true
"""


def tables(kind: str) -> list[str]:
    """Return the statements that create an unencrypted journal with a run and a worker that has ended."""
    names = {"true": "true", "false": "false", "pair_key": PAIR_KEY, "id": "BIGINT"}
    names |= dict.fromkeys(("runs_id", "holders_id"), "id BIGSERIAL NOT NULL PRIMARY KEY")
    if kind == "sqlite":
        names |= {"true": "1", "false": "0", "id": "INTEGER", "runs_id": "id INTEGER NOT NULL PRIMARY KEY"}
        names["holders_id"] = "id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT"
    return [each for each in (_TABLES + _ENTRIES).format(**names).split(";\n") if each.strip()]
