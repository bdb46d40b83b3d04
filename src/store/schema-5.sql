-- Version 5. Jobs of several kinds; numbers, stamp and totals in one row, which each commit writes once; fewer indexes.

-- The highest number that a row of each table has had, the stamp of the last commit, and the number of instances in
-- each state.
CREATE TABLE head (
  id       INTEGER PRIMARY KEY CHECK (id = 1),
  stamp    INTEGER,
  instance INTEGER NOT NULL,
  callback INTEGER NOT NULL,
  job      INTEGER NOT NULL,
  pending  INTEGER NOT NULL,
  active   INTEGER NOT NULL,
  frozen   INTEGER NOT NULL,
  released INTEGER NOT NULL
) STRICT;
INSERT INTO head SELECT 1,
  (SELECT seq FROM sqlite_sequence WHERE name = 'last commit of the daemon' AND typeof(seq) = 'integer'),
  coalesce((SELECT max(seq) FROM sqlite_sequence WHERE name = 'instance' AND typeof(seq) = 'integer'
    AND seq BETWEEN 0 AND 9007199254740990), 0),
  coalesce((SELECT max(seq) FROM sqlite_sequence WHERE name = 'callback' AND typeof(seq) = 'integer'
    AND seq BETWEEN 0 AND 9007199254740990), 0),
  coalesce((SELECT max(seq) FROM sqlite_sequence WHERE name = 'job' AND typeof(seq) = 'integer'
    AND seq BETWEEN 0 AND 9007199254740990), 0),
  (SELECT count(*) FROM instance WHERE state = 0),
  (SELECT count(*) FROM instance WHERE state = 1),
  (SELECT count(*) FROM instance WHERE state = 2),
  (SELECT count(*) FROM instance WHERE state = 3);
DELETE FROM sqlite_sequence WHERE name IN ('last commit of the daemon', 'instance', 'callback', 'job');

CREATE TABLE new_instance (
  number         INTEGER PRIMARY KEY,
  id             TEXT,
  order_biz_id   TEXT,
  state          INTEGER NOT NULL,
  account        TEXT NOT NULL,
  endpoint       TEXT NOT NULL,
  buyer          TEXT,
  product        TEXT,
  sku            TEXT,
  order_id       TEXT,
  trial          INTEGER,
  expires_on     INTEGER,
  expires_on_raw TEXT,
  items          TEXT,
  began          INTEGER NOT NULL,
  tombstone      INTEGER NOT NULL,
  adopted        INTEGER NOT NULL,
  created_by     INTEGER,
  created_at     INTEGER NOT NULL,
  updated_at     INTEGER NOT NULL,
  claimed_at     INTEGER,
  tenant         TEXT,
  public_id      TEXT,
  converted      INTEGER NOT NULL DEFAULT 0,
  -- A name of an instance that has neither an id nor an orderBizId.
  known_as       TEXT
) STRICT;
INSERT INTO new_instance SELECT number, id, order_biz_id, state, account, endpoint, buyer, product, sku, order_id, trial,
  expires_on, expires_on_raw, items, began, tombstone, adopted, created_by, created_at, updated_at, claimed_at, tenant,
  public_id, converted, CASE WHEN id IS NULL AND order_biz_id IS NULL THEN
    (SELECT name FROM name WHERE name.instance = instance.number ORDER BY name LIMIT 1) END
  FROM instance ORDER BY number;
DROP TABLE instance;
ALTER TABLE new_instance RENAME TO instance;
-- The seller's application asks which instances a buyer or a tenant has.
CREATE INDEX instance_buyer ON instance (buyer) WHERE buyer IS NOT NULL;
CREATE INDEX instance_tenant ON instance (tenant) WHERE tenant IS NOT NULL;
-- An operator asks which instances are frozen: few of many. Lists of the other states read the table.
CREATE INDEX instance_frozen ON instance (number) WHERE state = 2;

CREATE TABLE new_callback (
  number           INTEGER PRIMARY KEY,
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
  dismissed_at     INTEGER,
  body             TEXT NOT NULL
) STRICT;
INSERT INTO new_callback SELECT number, account, endpoint, key_label, occurrence, instance, job, action, disposition,
  reason_code, reason, received_at, last_received_at, deliveries, budget, told_at, dismissed_at, body
  FROM callback ORDER BY number;
DROP TABLE callback;
ALTER TABLE new_callback RENAME TO callback;
-- Each callback: was it delivered before?
CREATE INDEX callback_occurrence ON callback (occurrence);
-- The history of an instance.
CREATE INDEX callback_instance ON callback (instance);
-- The attention list.
CREATE INDEX callback_held ON callback (number) WHERE disposition = 1;
CREATE INDEX callback_untold ON callback (number) WHERE told_at IS NULL;
CREATE INDEX callback_noticed ON callback (number) WHERE reason_code = 'create-repeated-with-other-values';
-- A payment that was fetched: was the same order paid for under another request id?
CREATE INDEX callback_payment ON callback (CASE WHEN json_valid(body) THEN json_extract(body, '$.order_id') END)
  WHERE action = 7;

CREATE TABLE new_job (
  number       INTEGER PRIMARY KEY,
  id           BLOB NOT NULL,
  -- What the job is: a hook call (0), or a call of a marketplace's API.
  kind         INTEGER NOT NULL DEFAULT 0,
  -- At most one live job of a kind has this key.
  key          TEXT,
  callback     INTEGER REFERENCES callback(number),
  instance     INTEGER REFERENCES instance(number),
  in_lane      INTEGER NOT NULL,
  action       INTEGER,
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
  ended_at     INTEGER,
  blocked      INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO new_job SELECT number, id, 0, NULL, callback, instance, in_lane, action, state, attempts, step, extra,
  due_at, lease_until, attempted_at, note, answer, sealed, proposed_id, created_at, ended_at, blocked
  FROM job ORDER BY number;
DROP TABLE job;
ALTER TABLE new_job RENAME TO job;
CREATE UNIQUE INDEX job_id ON job (id);
CREATE UNIQUE INDEX job_key ON job (kind, key) WHERE key IS NOT NULL AND state < 5;
-- The history of an instance, and its queue.
CREATE INDEX job_instance ON job (instance);
CREATE INDEX job_live ON job (instance, number) WHERE state < 5;
-- Jobs that are due, and jobs that run. Those behind another job of their queue are not here, so the cost of a look does
-- not grow with their number.
CREATE INDEX job_active ON job (state, kind, due_at) WHERE state < 2 AND blocked = 0;
-- A payment is told before its hook runs, so a refusal of it is found by its job.
CREATE INDEX job_payment_refused ON job (callback) WHERE action = 7 AND state = 6;

-- Only a search and the release of an unknown instance ask for the names of an instance; both may read the table.
DROP INDEX name_instance;
