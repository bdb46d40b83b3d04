-- Version 1. Times are milliseconds since 1970; states and actions are numbers, their order is the
-- order of the enums' `ALL`.
CREATE TABLE instance (
  number       INTEGER PRIMARY KEY AUTOINCREMENT,
  id           TEXT,
  order_biz_id TEXT,
  state        INTEGER NOT NULL,
  account      TEXT NOT NULL,
  endpoint     TEXT NOT NULL,
  buyer        TEXT,
  product      TEXT,
  sku          TEXT,
  order_id     TEXT,
  trial        INTEGER,
  expires_on   INTEGER,
  expires_on_raw TEXT,
  items        TEXT,
  began        INTEGER NOT NULL,
  tombstone    INTEGER NOT NULL,
  adopted      INTEGER NOT NULL,
  created_by   INTEGER,
  created_at   INTEGER NOT NULL,
  updated_at   INTEGER NOT NULL
) STRICT;
-- The totals are counted at every start and every scrape.
CREATE INDEX instance_state ON instance (state);

-- Every name an instance is found by. Unique within its account; never pruned.
CREATE TABLE name (
  account  TEXT NOT NULL,
  name     TEXT NOT NULL,
  instance INTEGER NOT NULL REFERENCES instance(number),
  PRIMARY KEY (account, name)
) STRICT, WITHOUT ROWID;

-- Every order that led to an instance. Never pruned.
CREATE TABLE purchase (
  account  TEXT NOT NULL,
  order_id TEXT NOT NULL,
  instance INTEGER NOT NULL REFERENCES instance(number),
  PRIMARY KEY (account, order_id, instance)
) STRICT, WITHOUT ROWID;

-- One row an occurrence; its redeliveries are counted.
CREATE TABLE callback (
  number           INTEGER PRIMARY KEY AUTOINCREMENT,
  account          TEXT NOT NULL,
  endpoint         TEXT NOT NULL,
  key_label        TEXT NOT NULL,
  occurrence       BLOB NOT NULL,
  instance         INTEGER REFERENCES instance(number),
  job              INTEGER,
  action           INTEGER NOT NULL,
  disposition      INTEGER NOT NULL,
  reason_code      TEXT,
  reason           TEXT,
  received_at      INTEGER NOT NULL,
  last_received_at INTEGER NOT NULL,
  deliveries       INTEGER NOT NULL,
  budget           INTEGER,
  told_at          INTEGER,
  body             TEXT NOT NULL
) STRICT;
CREATE INDEX callback_occurrence ON callback (occurrence);
CREATE INDEX callback_instance ON callback (instance);
CREATE INDEX callback_held ON callback (number) WHERE disposition = 1;
CREATE INDEX callback_untold ON callback (number) WHERE told_at IS NULL;

CREATE TABLE job (
  number       INTEGER PRIMARY KEY AUTOINCREMENT,
  id           BLOB NOT NULL,
  callback     INTEGER NOT NULL REFERENCES callback(number),
  instance     INTEGER REFERENCES instance(number),
  in_lane      INTEGER NOT NULL,
  action       INTEGER NOT NULL,
  state        INTEGER NOT NULL,
  attempts     INTEGER NOT NULL,
  step         INTEGER NOT NULL,
  extra        INTEGER NOT NULL,
  due_at       INTEGER NOT NULL,
  lease_until  INTEGER,
  attempted_at INTEGER,
  note         TEXT,
  answer       TEXT,
  sealed       BLOB,
  proposed_id  TEXT,
  created_at   INTEGER NOT NULL,
  ended_at     INTEGER
) STRICT;
CREATE UNIQUE INDEX job_id ON job (id);
CREATE INDEX job_instance ON job (instance);
CREATE INDEX job_live ON job (instance, number) WHERE state < 5;
CREATE INDEX job_due ON job (due_at) WHERE state = 0;
CREATE INDEX job_running ON job (number) WHERE state = 1;

-- Attempts that did not succeed. The one that did is told by its job.
CREATE TABLE attempt (
  job      INTEGER NOT NULL REFERENCES job(number),
  attempt  INTEGER NOT NULL,
  ended_at INTEGER NOT NULL,
  ending   TEXT NOT NULL,
  note     TEXT NOT NULL,
  PRIMARY KEY (job, attempt, ended_at)
) STRICT, WITHOUT ROWID;

-- What people did by hand: who, what, to what, and why.
CREATE TABLE act (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  at     INTEGER NOT NULL,
  who    TEXT NOT NULL,
  act    TEXT NOT NULL,
  target TEXT NOT NULL,
  why    TEXT NOT NULL
) STRICT;
