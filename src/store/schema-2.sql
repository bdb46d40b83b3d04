-- Version 2.

-- Whether the buyer has come and taken the instance, and who that is.
ALTER TABLE instance ADD COLUMN claimed_at INTEGER;
ALTER TABLE instance ADD COLUMN tenant TEXT;

-- When each key of an endpoint signed last, to the hour: one that has not for long can go.
-- The mark tells whether a label still stands for the same key; it is too short to tell which.
CREATE TABLE key_use (
  endpoint TEXT NOT NULL,
  label    TEXT NOT NULL,
  mark     BLOB NOT NULL,
  since    INTEGER NOT NULL,
  used_at  INTEGER,
  PRIMARY KEY (endpoint, label)
) STRICT, WITHOUT ROWID;

-- The id by which the marketplace calls the instance, where that is not the hook's.
ALTER TABLE instance ADD COLUMN public_id TEXT;

-- Marks of requests that were accepted: a copy carries the same. Kept while a copy could pass for new.
CREATE TABLE once (
  account TEXT NOT NULL,
  mark    BLOB NOT NULL,
  until   INTEGER NOT NULL,
  PRIMARY KEY (account, mark)
) STRICT, WITHOUT ROWID;
CREATE INDEX once_until ON once (until);
