-- A database as version 2 left it: half a life, driven over HTTP (see tests/half_a_life.rs for what was said).
PRAGMA foreign_keys = off;
PRAGMA application_id = 1936746852;
PRAGMA user_version = 2;
BEGIN TRANSACTION;
CREATE TABLE act (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  at     INTEGER NOT NULL,
  who    TEXT NOT NULL,
  act    TEXT NOT NULL,
  target TEXT NOT NULL,
  why    TEXT NOT NULL
) STRICT;
CREATE TABLE attempt (
  job      INTEGER NOT NULL REFERENCES job(number),
  attempt  INTEGER NOT NULL,
  ended_at INTEGER NOT NULL,
  ending   TEXT NOT NULL,
  note     TEXT NOT NULL,
  PRIMARY KEY (job, attempt, ended_at)
) STRICT, WITHOUT ROWID;
INSERT INTO "attempt" VALUES(15,1,1796057719579,'retry','the hook exited with code 75');
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
INSERT INTO "callback" VALUES(1,'ali','ali','current',X'36F482574BB243AACC6F46B5CD7AC3FF',1,1,0,0,NULL,NULL,1796057717477,1796057717477,1,120,1796057717486,'{"action":"create","action_name":"createInstance","subject":{"order_biz_id":"biz-up"},"order_id":"order-of-biz-up","buyer":"10001","product":"cmgj000001","sku":"basic","trial":false,"expires_on":{"raw":"2030-01-01 00:00:00","at":"2030-01-01T00:00:00Z"},"parameters":{"action":"createInstance","aliUid":"10001","expiredOn":"2030-01-01 00:00:00","orderBizId":"biz-up","orderId":"order-of-biz-up","productCode":"cmgj000001","skuId":"basic","trial":"false"}}');
INSERT INTO "callback" VALUES(2,'ali','ali','current',X'0AA169FEF0A3E6D9DA15DEAF34CBE408',1,2,3,0,NULL,NULL,1796057717489,1796057717489,1,120,NULL,'{"action":"upgrade","action_name":"upgradeInstance","subject":{"instance_id":"biz-up"},"buyer":"10001","sku":"b","parameters":{"action":"upgradeInstance","aliUid":"10001","instanceId":"biz-up","skuId":"b"}}');
INSERT INTO "callback" VALUES(3,'ali','ali','current',X'19CACF81D47A2EACB6706A4F67D40BE9',1,3,3,0,NULL,NULL,1796057719392,1796057719392,1,120,1796057719400,'{"action":"upgrade","action_name":"upgradeInstance","subject":{"instance_id":"biz-up"},"buyer":"10001","sku":"s","parameters":{"action":"upgradeInstance","aliUid":"10001","instanceId":"biz-up","skuId":"s"}}');
INSERT INTO "callback" VALUES(4,'ali','ali','current',X'18B8A9431E99279E478B22E528B577CE',2,4,0,0,NULL,NULL,1796057719402,1796057719402,1,120,1796057719409,'{"action":"create","action_name":"createInstance","subject":{"order_biz_id":"biz-trial"},"order_id":"order-of-biz-trial","buyer":"10001","product":"cmgj000001","sku":"basic","trial":true,"expires_on":{"raw":"2029-01-08 00:00:00","at":"2029-01-08T00:00:00Z"},"parameters":{"action":"createInstance","aliUid":"10001","expiredOn":"2029-01-08 00:00:00","orderBizId":"biz-trial","orderId":"order-of-biz-trial","productCode":"cmgj000001","skuId":"basic","trial":"true"}}');
INSERT INTO "callback" VALUES(5,'ali','ali','current',X'DE5D187C0B4A459B4C752F4B1CA56EC2',2,NULL,0,1,'conflicting-create','the same orderBizId was created before with another order, SKU, trial flag or expiry',1796057719411,1796057719411,1,120,NULL,'{"action":"create","action_name":"createInstance","subject":{"order_biz_id":"biz-trial"},"order_id":"paid","buyer":"10001","product":"cmgj000001","sku":"basic","trial":false,"expires_on":{"raw":"2031-01-01 00:00:00","at":"2031-01-01T00:00:00Z"},"parameters":{"action":"createInstance","aliUid":"10001","expiredOn":"2031-01-01 00:00:00","orderBizId":"biz-trial","orderId":"paid","productCode":"cmgj000001","skuId":"basic","trial":"false"}}');
INSERT INTO "callback" VALUES(6,'ali','ali','current',X'00015A9601ABA294EF0827B5E38DF02A',3,5,0,0,NULL,NULL,1796057719414,1796057719414,1,120,NULL,'{"action":"create","action_name":"createInstance","subject":{"order_biz_id":"biz-refused"},"order_id":"order-of-biz-refused","buyer":"10001","product":"cmgj000001","sku":"basic","trial":false,"expires_on":{"raw":"2030-01-01 00:00:00","at":"2030-01-01T00:00:00Z"},"parameters":{"action":"createInstance","aliUid":"10001","expiredOn":"2030-01-01 00:00:00","orderBizId":"biz-refused","orderId":"order-of-biz-refused","productCode":"cmgj000001","skuId":"basic","trial":"false"}}');
INSERT INTO "callback" VALUES(7,'ali','ali','current',X'AA39F399C8F01F8B26A53F3F1F21BBE2',4,6,0,0,NULL,NULL,1796057719427,1796057719427,1,120,1796057719439,'{"action":"create","action_name":"createInstance","subject":{"order_biz_id":"biz-renew"},"order_id":"order-of-biz-renew","buyer":"10001","product":"cmgj000001","sku":"basic","trial":false,"expires_on":{"raw":"2030-01-01 00:00:00","at":"2030-01-01T00:00:00Z"},"parameters":{"action":"createInstance","aliUid":"10001","expiredOn":"2030-01-01 00:00:00","orderBizId":"biz-renew","orderId":"order-of-biz-renew","productCode":"cmgj000001","skuId":"basic","trial":"false"}}');
INSERT INTO "callback" VALUES(8,'ali','ali','current',X'B1BE4ED5D9382B323ED7664EA914CE9F',4,7,1,0,NULL,NULL,1796057719441,1796057719441,1,120,1796057719451,'{"action":"renew","action_name":"renewInstance","subject":{"instance_id":"biz-renew"},"order_id":"r1","buyer":"10001","expires_on":{"raw":"2031-01-01 00:00:00","at":"2031-01-01T00:00:00Z"},"parameters":{"action":"renewInstance","aliUid":"10001","expiredOn":"2031-01-01 00:00:00","instanceId":"biz-renew","orderId":"r1"}}');
INSERT INTO "callback" VALUES(9,'ali','ali','current',X'7129A24CF5D7D218710911FE8EADB0A2',4,8,2,0,NULL,NULL,1796057719453,1796057719453,1,120,1796057719469,'{"action":"refund-renew","action_name":"refundRenewInstance","subject":{"instance_id":"biz-renew"},"buyer":"10001","expires_on":{"raw":"2030-01-01 00:00:00","at":"2030-01-01T00:00:00Z"},"parameters":{"action":"refundRenewInstance","aliUid":"10001","expiredOn":"2030-01-01 00:00:00","instanceId":"biz-renew"}}');
INSERT INTO "callback" VALUES(10,'ali','ali','current',X'FA23554FD2EA9CC6DAC67280CFD12976',5,9,0,0,NULL,NULL,1796057719472,1796057719472,1,120,1796057719481,'{"action":"create","action_name":"createInstance","subject":{"order_biz_id":"biz-gone"},"order_id":"order-of-biz-gone","buyer":"10001","product":"cmgj000001","sku":"basic","trial":false,"expires_on":{"raw":"2030-01-01 00:00:00","at":"2030-01-01T00:00:00Z"},"parameters":{"action":"createInstance","aliUid":"10001","expiredOn":"2030-01-01 00:00:00","orderBizId":"biz-gone","orderId":"order-of-biz-gone","productCode":"cmgj000001","skuId":"basic","trial":"false"}}');
INSERT INTO "callback" VALUES(11,'ali','ali','current',X'FE05C6180276E4ECABFBFC685F41AD88',5,10,5,0,NULL,NULL,1796057719483,1796057719483,1,120,1796057719492,'{"action":"release","action_name":"releaseInstance","subject":{"instance_id":"biz-gone"},"buyer":"10001","parameters":{"action":"releaseInstance","aliUid":"10001","instanceId":"biz-gone"}}');
INSERT INTO "callback" VALUES(12,'ali','ali','current',X'9EFD64421EFC1F2308D3A9F28FE818CF',6,11,0,0,NULL,NULL,1796057719494,1796057719494,1,120,1796057719502,'{"action":"create","action_name":"createInstance","subject":{"order_biz_id":"biz-expired"},"order_id":"order-of-biz-expired","buyer":"10001","product":"cmgj000001","sku":"basic","trial":false,"expires_on":{"raw":"2030-01-01 00:00:00","at":"2030-01-01T00:00:00Z"},"parameters":{"action":"createInstance","aliUid":"10001","expiredOn":"2030-01-01 00:00:00","orderBizId":"biz-expired","orderId":"order-of-biz-expired","productCode":"cmgj000001","skuId":"basic","trial":"false"}}');
INSERT INTO "callback" VALUES(13,'ali','ali','current',X'385117271322B491D54868DDFDE6B212',6,12,4,0,NULL,NULL,1796057719504,1796057719504,1,120,1796057719512,'{"action":"expire","action_name":"expiredInstance","subject":{"instance_id":"biz-expired"},"buyer":"10001","parameters":{"action":"expiredInstance","aliUid":"10001","instanceId":"biz-expired"}}');
INSERT INTO "callback" VALUES(14,'koo','koo','current',X'40C4E03E76301D375309A29A1809A36D',7,13,0,0,NULL,NULL,1796057719536,1796057719536,1,3,1796057719553,'{"action":"create","action_name":"newInstance","subject":{"order_biz_id":"CS1/CS1-000001/p-1"},"order_id":"CS1","product":"p-1","sent_at":"2026-11-30T16:55:19.535Z","public_id":"koo-1","parameters":{"activity":"newInstance","businessId":"koo-1","orderId":"CS1","orderLineId":"CS1-000001","productId":"p-1"}}');
INSERT INTO "callback" VALUES(15,'koo','koo','current',X'92E750DBC55FAA2739989D3C654D6D38',7,14,1,0,NULL,NULL,1796057719563,1796057719563,1,3,1796057719572,'{"action":"renew","action_name":"refreshInstance","subject":{"instance_id":"koo-1"},"order_id":"CS2","expires_on":{"raw":"20310101000000","at":"2031-01-01T00:00:00Z"},"sent_at":"2026-11-30T16:55:19.563Z","parameters":{"activity":"refreshInstance","expireTime":"20310101000000","instanceId":"koo-1","orderId":"CS2","productId":"p-2","scene":"RENEWAL_CHANGE"}}');
INSERT INTO "callback" VALUES(16,'koo','koo','current',X'95123E95D3112FE590CA5EA5FB8B0353',7,15,3,0,NULL,NULL,1796057719565,1796057719565,1,3,NULL,'{"action":"upgrade","action_name":"refreshInstance","subject":{"instance_id":"koo-1"},"order_id":"CS2","product":"p-2","sent_at":"2026-11-30T16:55:19.563Z","parameters":{"activity":"refreshInstance","expireTime":"20310101000000","instanceId":"koo-1","orderId":"CS2","productId":"p-2","scene":"RENEWAL_CHANGE"}}');
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
, claimed_at INTEGER, tenant TEXT, public_id TEXT) STRICT;
INSERT INTO "instance" VALUES(1,'biz-up','biz-up',1,'ali','ali','10001','cmgj000001','s','order-of-biz-up',0,1893456000000,'2030-01-01 00:00:00',NULL,1,0,0,1,1796057717477,1796057719400,NULL,NULL,NULL);
INSERT INTO "instance" VALUES(2,'biz-trial','biz-trial',1,'ali','ali','10001','cmgj000001','basic','order-of-biz-trial',1,1862524800000,'2029-01-08 00:00:00',NULL,1,0,0,4,1796057719402,1796057719409,NULL,NULL,NULL);
INSERT INTO "instance" VALUES(3,NULL,'biz-refused',0,'ali','ali','10001','cmgj000001','basic','order-of-biz-refused',0,1893456000000,'2030-01-01 00:00:00',NULL,1,0,0,NULL,1796057719414,1796057719414,NULL,NULL,NULL);
INSERT INTO "instance" VALUES(4,'biz-renew','biz-renew',1,'ali','ali','10001','cmgj000001','basic','order-of-biz-renew',0,1893456000000,'2030-01-01 00:00:00',NULL,1,0,0,6,1796057719427,1796057719469,NULL,NULL,NULL);
INSERT INTO "instance" VALUES(5,'biz-gone','biz-gone',3,'ali','ali','10001','cmgj000001','basic','order-of-biz-gone',0,1893456000000,'2030-01-01 00:00:00',NULL,1,0,0,9,1796057719472,1796057719492,NULL,NULL,NULL);
INSERT INTO "instance" VALUES(6,'biz-expired','biz-expired',2,'ali','ali','10001','cmgj000001','basic','order-of-biz-expired',0,1893456000000,'2030-01-01 00:00:00',NULL,1,0,0,11,1796057719494,1796057719512,NULL,NULL,NULL);
INSERT INTO "instance" VALUES(7,'koo-1','CS1/CS1-000001/p-1',1,'koo','koo',NULL,'p-1',NULL,'CS1',NULL,1924992000000,'20310101000000',NULL,1,0,0,13,1796057719536,1796057719572,NULL,NULL,'koo-1');
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
INSERT INTO "job" VALUES(1,X'01A22D61DAE574B9BFA4ECD113FD339C',1,1,1,0,5,1,0,0,1796057717477,NULL,1796057717486,NULL,'{"app":{"front_end_url":"https://app.example"}}',NULL,'biz-up',1796057717477,1796057717486);
INSERT INTO "job" VALUES(2,X'01A22D61DAF1765AB68489F77A6B7179',2,1,1,3,5,1,0,0,1796057717489,NULL,1796057718500,NULL,NULL,NULL,NULL,1796057717489,1796057718500);
INSERT INTO "job" VALUES(3,X'01A22D61E2607524B0844CC23B8CBD0C',3,1,1,3,5,1,0,0,1796057719392,NULL,1796057719400,NULL,NULL,NULL,NULL,1796057719392,1796057719400);
INSERT INTO "job" VALUES(4,X'01A22D61E26A7CD392D42A123C248DCD',4,2,1,0,5,1,0,0,1796057719402,NULL,1796057719409,NULL,'{"app":{"front_end_url":"https://app.example"}}',NULL,'biz-trial',1796057719402,1796057719409);
INSERT INTO "job" VALUES(5,X'01A22D61E2767511830BE8722CD2FEFF',6,3,1,0,6,1,0,0,1796057719414,NULL,1796057719425,'not to this buyer',NULL,NULL,NULL,1796057719414,1796057719425);
INSERT INTO "job" VALUES(6,X'01A22D61E28372149F6C473853D5407B',7,4,1,0,5,1,0,0,1796057719427,NULL,1796057719439,NULL,'{"app":{"front_end_url":"https://app.example"}}',NULL,'biz-renew',1796057719427,1796057719439);
INSERT INTO "job" VALUES(7,X'01A22D61E2917CED90A5BE8C4229547F',8,4,1,1,5,1,0,0,1796057719441,NULL,1796057719451,NULL,NULL,NULL,NULL,1796057719441,1796057719451);
INSERT INTO "job" VALUES(8,X'01A22D61E29C7F6B967A19FFB81DCDAE',9,4,1,2,5,1,0,0,1796057719453,NULL,1796057719469,NULL,NULL,NULL,NULL,1796057719453,1796057719469);
INSERT INTO "job" VALUES(9,X'01A22D61E2AF7C2BA4B7FB820A656E4C',10,5,1,0,5,1,0,0,1796057719472,NULL,1796057719481,NULL,'{"app":{"front_end_url":"https://app.example"}}',NULL,'biz-gone',1796057719472,1796057719481);
INSERT INTO "job" VALUES(10,X'01A22D61E2BB72C98B4878F05F261A63',11,5,1,5,5,1,0,0,1796057719483,NULL,1796057719492,NULL,NULL,NULL,NULL,1796057719483,1796057719492);
INSERT INTO "job" VALUES(11,X'01A22D61E2C672A781EDF0C7EA87B5A3',12,6,1,0,5,1,0,0,1796057719494,NULL,1796057719502,NULL,'{"app":{"front_end_url":"https://app.example"}}',NULL,'biz-expired',1796057719494,1796057719502);
INSERT INTO "job" VALUES(12,X'01A22D61E2D070CC90511AA6187EC395',13,6,1,4,5,1,0,0,1796057719504,NULL,1796057719512,NULL,NULL,NULL,NULL,1796057719504,1796057719512);
INSERT INTO "job" VALUES(13,X'01A22D61E2F0753F9A11A625AD556EB3',14,7,1,0,5,1,0,0,1796057719536,NULL,1796057719553,NULL,'{"app":{"front_end_url":"https://app.example"}}',NULL,'koo-1',1796057719536,1796057719553);
INSERT INTO "job" VALUES(14,X'01A22D61E30B748AA46396F5B33F3CE9',15,7,1,1,5,1,0,0,1796057719563,NULL,1796057719572,NULL,NULL,NULL,NULL,1796057719563,1796057719572);
INSERT INTO "job" VALUES(15,X'01A22D61E30D71CD85EFB39EFD991D61',16,7,1,3,0,1,1,0,1796057724600,NULL,1796057719579,'the hook exited with code 75',NULL,NULL,NULL,1796057719565,NULL);
CREATE TABLE key_use (
  endpoint TEXT NOT NULL,
  label    TEXT NOT NULL,
  mark     BLOB NOT NULL,
  since    INTEGER NOT NULL,
  used_at  INTEGER,
  PRIMARY KEY (endpoint, label)
) STRICT, WITHOUT ROWID;
INSERT INTO "key_use" VALUES('ali','current',X'9677',1796057715856,1796057717477);
INSERT INTO "key_use" VALUES('koo','current',X'C615',1796057715856,1796057719536);
CREATE TABLE name (
  account  TEXT NOT NULL,
  name     TEXT NOT NULL,
  instance INTEGER NOT NULL REFERENCES instance(number),
  PRIMARY KEY (account, name)
) STRICT, WITHOUT ROWID;
INSERT INTO "name" VALUES('ali','biz-expired',6);
INSERT INTO "name" VALUES('ali','biz-gone',5);
INSERT INTO "name" VALUES('ali','biz-refused',3);
INSERT INTO "name" VALUES('ali','biz-renew',4);
INSERT INTO "name" VALUES('ali','biz-trial',2);
INSERT INTO "name" VALUES('ali','biz-up',1);
INSERT INTO "name" VALUES('koo','CS1/CS1-000001/p-1',7);
INSERT INTO "name" VALUES('koo','koo-1',7);
CREATE TABLE once (
  account TEXT NOT NULL,
  mark    BLOB NOT NULL,
  until   INTEGER NOT NULL,
  PRIMARY KEY (account, mark)
) STRICT, WITHOUT ROWID;
INSERT INTO "once" VALUES('koo',X'390BF9B395F6414B1622C02B80F325DE',1796057779535);
INSERT INTO "once" VALUES('koo',X'BB44D222F37838E3266EB8609ECA6369',1796057779563);
CREATE TABLE purchase (
  account  TEXT NOT NULL,
  order_id TEXT NOT NULL,
  instance INTEGER NOT NULL REFERENCES instance(number),
  PRIMARY KEY (account, order_id, instance)
) STRICT, WITHOUT ROWID;
INSERT INTO "purchase" VALUES('ali','order-of-biz-expired',6);
INSERT INTO "purchase" VALUES('ali','order-of-biz-gone',5);
INSERT INTO "purchase" VALUES('ali','order-of-biz-refused',3);
INSERT INTO "purchase" VALUES('ali','order-of-biz-renew',4);
INSERT INTO "purchase" VALUES('ali','order-of-biz-trial',2);
INSERT INTO "purchase" VALUES('ali','order-of-biz-up',1);
INSERT INTO "purchase" VALUES('ali','r1',4);
INSERT INTO "purchase" VALUES('koo','CS1',7);
INSERT INTO "purchase" VALUES('koo','CS2',7);
CREATE INDEX instance_state ON instance (state);
CREATE INDEX callback_occurrence ON callback (occurrence);
CREATE INDEX callback_instance ON callback (instance);
CREATE INDEX callback_held ON callback (number) WHERE disposition = 1;
CREATE INDEX callback_untold ON callback (number) WHERE told_at IS NULL;
CREATE UNIQUE INDEX job_id ON job (id);
CREATE INDEX job_instance ON job (instance);
CREATE INDEX job_live ON job (instance, number) WHERE state < 5;
CREATE INDEX job_due ON job (due_at) WHERE state = 0;
CREATE INDEX job_running ON job (number) WHERE state = 1;
CREATE INDEX once_until ON once (until);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('instance',7);
INSERT INTO "sqlite_sequence" VALUES('callback',16);
INSERT INTO "sqlite_sequence" VALUES('job',15);
COMMIT;
