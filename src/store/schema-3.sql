-- Version 3: what a marketplace needs that names its instances itself and marks its requests.
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
