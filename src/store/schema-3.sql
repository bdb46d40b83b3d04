-- Version 3.

-- Set once a trial has been bought for good: the end of the trial, announced late, must not freeze it.
ALTER TABLE instance ADD COLUMN converted INTEGER NOT NULL DEFAULT 0;

-- When an operator took the callback off the list of what needs attention.
ALTER TABLE callback ADD COLUMN dismissed_at INTEGER;
CREATE INDEX callback_noticed ON callback (number) WHERE reason_code = 'create-repeated-with-other-values';

-- Set while an earlier job of the same instance has not ended. The search for due jobs reads only the
-- others, so its cost does not grow with the number of jobs that wait behind a dead one.
ALTER TABLE job ADD COLUMN blocked INTEGER NOT NULL DEFAULT 0;
UPDATE job SET blocked = 1 WHERE state < 5 AND in_lane = 1 AND EXISTS (
  SELECT 1 FROM job AS before WHERE before.instance = job.instance AND before.in_lane = 1
  AND before.number < job.number AND before.state < 5);
DROP INDEX job_due;
CREATE INDEX job_due ON job (due_at) WHERE state = 0 AND blocked = 0;

-- An instance that has neither an id nor an orderBizId is listed by the name it is found by.
CREATE INDEX name_instance ON name (instance);

-- A payment is told before its hook runs, so a refusal of it is found by its job.
CREATE INDEX job_payment_refused ON job (callback) WHERE action = 7 AND state = 6;
