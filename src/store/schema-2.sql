-- Version 2: whether the buyer has come and taken the instance, and who that is.
ALTER TABLE instance ADD COLUMN claimed_at INTEGER;
ALTER TABLE instance ADD COLUMN tenant TEXT;
