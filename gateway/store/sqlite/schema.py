"""The tables of the SQLite store, their version, and the check that a file is one of ours (docs/decisions/0002-sqlite-store.md)."""

from __future__ import annotations

import sqlite3

from gateway.ports import StoreError

VERSION = 1
APPLICATION_ID = 0x4D515253  # "MQRS", in the file's header: tells our files from other SQLite databases

GONE, CLEAN, PERSISTENT = 0, 1, 2  # client.kind: no session (the row keeps the clock), cleanSession = true, cleanSession = false

TABLES = """
CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counter VALUES ('position', 0);

-- time, seq: of the last lifecycle event. node: the owner, NULL when there is no connection. left_at: since when.
CREATE TABLE client (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    epoch INTEGER NOT NULL,
    time INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    node TEXT,
    channel_id TEXT NOT NULL,
    client_ip TEXT NOT NULL,
    left_at INTEGER NOT NULL,
    will BLOB
);
CREATE INDEX client_left ON client (kind, left_at) WHERE node IS NULL;

CREATE TABLE subscription (
    client INTEGER NOT NULL, filter TEXT NOT NULL, qos INTEGER NOT NULL, since INTEGER NOT NULL,
    PRIMARY KEY (client, filter)
) WITHOUT ROWID;

CREATE TABLE inbound (
    client INTEGER NOT NULL, packet_id INTEGER NOT NULL, unique_key TEXT NOT NULL, stored INTEGER NOT NULL,
    PRIMARY KEY (client, packet_id)
) WITHOUT ROWID;

CREATE TABLE body (
    id INTEGER PRIMARY KEY, unique_key TEXT NOT NULL, topic TEXT NOT NULL, stored_at INTEGER NOT NULL, payload BLOB NOT NULL,
    UNIQUE (unique_key, topic)
);
CREATE INDEX body_stored ON body (stored_at);

-- sent: grows with each packet that was sent, 0 in phase WAITING. source: JSON, for QoS 2.
CREATE TABLE waiting (
    position INTEGER PRIMARY KEY,
    client INTEGER NOT NULL,
    body INTEGER NOT NULL,
    qos INTEGER NOT NULL,
    packet_id INTEGER NOT NULL,
    phase INTEGER NOT NULL,
    sent INTEGER NOT NULL,
    retain INTEGER NOT NULL,
    source TEXT
);
CREATE INDEX waiting_client ON waiting (client, phase);
CREATE UNIQUE INDEX waiting_body ON waiting (body, client);
-- The rows of waiting are the reference count; a body goes with the last one, whatever statement removed it.
CREATE TRIGGER waiting_gone AFTER DELETE ON waiting BEGIN
    DELETE FROM body WHERE id = old.body AND NOT EXISTS (SELECT 1 FROM waiting WHERE body = old.body);
END;

CREATE TABLE remembered (
    unique_key TEXT NOT NULL, client INTEGER NOT NULL, source TEXT NOT NULL,
    PRIMARY KEY (unique_key, client)
) WITHOUT ROWID;
CREATE INDEX remembered_client ON remembered (client);

CREATE TABLE retained (
    topic TEXT NOT NULL UNIQUE, qos INTEGER NOT NULL, id TEXT NOT NULL, stored_at INTEGER NOT NULL, payload BLOB NOT NULL
);

CREATE TABLE outbox (position INTEGER PRIMARY KEY, client_id TEXT NOT NULL, event TEXT, will BLOB);

CREATE TABLE mark (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


def prepare(db: sqlite3.Connection, path: str) -> None:
    """Make the tables in an empty file, or check that they are there in this version. Raises StoreError with the cure."""
    application, version, objects = (
        int(db.execute(question).fetchone()[0])
        for question in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
    )
    if not objects and not application:
        db.executescript(f"BEGIN IMMEDIATE; {TABLES} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}; COMMIT;")
    elif application != APPLICATION_ID:
        raise StoreError(f"{path} is an SQLite file of another program; set store.url to a path of the gateway's own")
    elif version != VERSION:
        raise StoreError(
            f"{path} has the tables of version {version}, this gateway reads version {VERSION}; "
            "run the gateway that wrote it, or move the file away to begin with an empty store"
        )
