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

-- What a daemon of version 1 wrote: an instance that was bought and upgraded and whose renewal is pending, and
-- an order whose create has failed once.
INSERT INTO instance VALUES(1,'tenant-1','biz-1',1,'alibaba-cn','alibaba-cn','10001','cmgj000001','pro','order-1',0,1893427200000,'2030-01-01 00:00:00','{"seats":"9"}',1,0,0,1,1795250129857,1795250129942);
INSERT INTO instance VALUES(2,NULL,'biz-2',0,'alibaba-cn','alibaba-cn','10002','cmgj000001','basic','order-3',NULL,NULL,NULL,NULL,1,0,0,NULL,1795250129979,1795250129979);
INSERT INTO name VALUES('alibaba-cn','biz-1',1);
INSERT INTO name VALUES('alibaba-cn','biz-2',2);
INSERT INTO name VALUES('alibaba-cn','tenant-1',1);
INSERT INTO purchase VALUES('alibaba-cn','order-1',1);
INSERT INTO purchase VALUES('alibaba-cn','order-2',1);
INSERT INTO purchase VALUES('alibaba-cn','order-3',2);
INSERT INTO callback VALUES(1,'alibaba-cn','alibaba-cn','current',X'FF2F1186FA2D28933DE1B48559AC863D',1,1,0,0,NULL,NULL,1795250129857,1795250129857,1,120,1795250129865,'{"action":"create","action_name":"createInstance","subject":{"order_biz_id":"biz-1"},"order_id":"order-1","buyer":"10001","product":"cmgj000001","sku":"basic","trial":false,"expires_on":{"raw":"2030-01-01 00:00:00","at":"2029-12-31T16:00:00Z"},"items":{"seats":"5"},"parameters":{"action":"createInstance","aliUid":"10001","expiredOn":"2030-01-01 00:00:00","orderBizId":"biz-1","orderId":"order-1","productCode":"cmgj000001","seats":"5","skuId":"basic","trial":"false"}}');
INSERT INTO callback VALUES(2,'alibaba-cn','alibaba-cn','current',X'A90DA3CCDDB787B582FAB8DB554EAD0C',1,2,3,0,NULL,NULL,1795250129902,1795250129902,1,120,1795250129911,'{"action":"upgrade","action_name":"upgradeInstance","subject":{"instance_id":"tenant-1"},"buyer":"10001","sku":"pro","items":{"seats":"9"},"parameters":{"action":"upgradeInstance","aliUid":"10001","instanceId":"tenant-1","seats":"9","skuId":"pro"}}');
INSERT INTO callback VALUES(3,'alibaba-cn','alibaba-cn','current',X'8DAE8961ECCA10058A6B2EF5C3228E40',1,3,1,0,NULL,NULL,1795250129942,1795250129942,1,120,NULL,'{"action":"renew","action_name":"renewInstance","subject":{"instance_id":"tenant-1"},"order_id":"order-2","buyer":"10001","expires_on":{"raw":"2031-01-01 00:00:00","at":"2030-12-31T16:00:00Z"},"parameters":{"action":"renewInstance","aliUid":"10001","expiredOn":"2031-01-01 00:00:00","instanceId":"tenant-1","orderId":"order-2"}}');
INSERT INTO callback VALUES(4,'alibaba-cn','alibaba-cn','current',X'5847A3B0F08CEEDDCE5373F305D4CC45',2,4,0,0,NULL,NULL,1795250129979,1795250129979,1,120,NULL,'{"action":"create","action_name":"createInstance","subject":{"order_biz_id":"biz-2"},"order_id":"order-3","buyer":"10002","product":"cmgj000001","sku":"basic","parameters":{"action":"createInstance","aliUid":"10002","orderBizId":"biz-2","orderId":"order-3","productCode":"cmgj000001","skuId":"basic"}}');
INSERT INTO job VALUES(1,X'01A1FD3F0BC17F3AB746D9AB89C7E27C',1,1,1,0,5,1,0,0,1795250129857,NULL,1795250129865,NULL,'{"instance_id":"tenant-1","app":{"front_end_url":"https://a.example"}}',X'B0601DD56BC01784FC668B7E17DCD6D0CAA1F49A8B224BDA6B65979B4F8F65762FA63702DFB40F06E068BD5C0FDE15207762BC3625D5316B9C1684FD5416C6DA94D1B654FBDEA4B1F3F412DC','tenant-1',1795250129857,1795250129865);
INSERT INTO job VALUES(2,X'01A1FD3F0BEE78EB896D399C85CD18C9',2,1,1,3,5,1,0,0,1795250129902,NULL,1795250129911,NULL,NULL,NULL,NULL,1795250129902,1795250129911);
INSERT INTO job VALUES(3,X'01A1FD3F0C167762A1330AD65A7C7B4D',3,1,1,1,2,1,0,0,1795250129942,NULL,1795250129953,'waits',NULL,NULL,NULL,1795250129942,NULL);
INSERT INTO job VALUES(4,X'01A1FD3F0C3B7364A4087B5C6C389AB4',4,2,1,0,0,1,1,0,1795250135345,NULL,1795250129990,'the hook exited with code 75',NULL,NULL,NULL,1795250129979,NULL);
INSERT INTO attempt VALUES(4,1,1795250129990,'retry','the hook exited with code 75');
PRAGMA application_id = 1936746852;
PRAGMA user_version = 1;
