-- up
-- Low-balance alerts: thresholds of accounts, and what became of them.
--
-- Decided by the planner and written by the statement that commits the change, never by a trigger. No constraint
-- here is one that what the planner writes could break, so that an alert never keeps a payment from its commit.
--
-- A service of the version before knows none of this and goes on working: the columns of accounts are nullable, and
-- its commits leave them alone. The next commit of this version brings the thresholds up to date.

SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '60s';

-- Null: nobody ever set a threshold. Without an index, so that updates of the account stay in their page (HOT).
ALTER TABLE accounts
    ADD COLUMN alert_at bigint,
    ADD COLUMN alert_revision bigint;

COMMENT ON COLUMN accounts.alert_at IS
'highest threshold plus hysteresis: with as much available before and after, no threshold is crossed; null: there is none';
COMMENT ON COLUMN accounts.alert_revision IS
'counts the changes of the account''s thresholds; every commit compares it, so that none was planned with others';

GRANT UPDATE (alert_at, alert_revision) ON accounts TO tollkeeper_credits;

-- The thresholds as they are now. Not history: that is in alerts.
CREATE TABLE account_alerts (
    threshold bigint NOT NULL,
    hysteresis bigint NOT NULL,
    last_alert uuid,
    shard smallint NOT NULL,
    armed boolean NOT NULL,
    account_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (shard, account_id, threshold)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

COMMENT ON COLUMN account_alerts.armed IS 'false from when it fired until threshold plus hysteresis is available again';
COMMENT ON COLUMN account_alerts.last_alert IS 'what it fired last; when it is not armed, that one stands';

-- One row for every firing: what later deliveries read. Append-only but for re-arming and acknowledging, once each.
CREATE TABLE alerts (
    alert_id uuid NOT NULL,
    fired_at timestamptz NOT NULL,
    threshold bigint NOT NULL,
    hysteresis bigint NOT NULL,
    available bigint NOT NULL,
    sequence bigint NOT NULL,
    rearmed_at timestamptz,
    rearmed_sequence bigint,
    acknowledged_at timestamptz,
    transaction_id uuid,
    acknowledged_by uuid,
    shard smallint NOT NULL,
    account_id text COLLATE "C" NOT NULL,
    tenant_id text COLLATE "C" NOT NULL,
    note text,
    PRIMARY KEY (shard, alert_id)
);

COMMENT ON COLUMN alerts.available IS 'what was available after the transaction, or when the threshold was set';
COMMENT ON COLUMN alerts.sequence IS 'the transaction that crossed; without its id: the account''s version when it was found below';
COMMENT ON COLUMN alerts.transaction_id IS 'the transaction that crossed; null: it was below already when somebody looked';
COMMENT ON COLUMN alerts.rearmed_sequence IS 'the transaction that re-armed the threshold; null: the threshold was taken away';
COMMENT ON COLUMN alerts.acknowledged_by IS 'id of the API key';

CREATE INDEX alerts_by_account ON alerts (shard, account_id, alert_id);
CREATE INDEX alerts_by_tenant ON alerts (tenant_id, alert_id);
CREATE INDEX alerts_by_id ON alerts (alert_id);
-- As small as what somebody should look at.
CREATE INDEX alerts_standing ON alerts (alert_id) WHERE rearmed_at IS NULL;

CREATE FUNCTION refuse_alert_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF to_jsonb(NEW) - '{rearmed_at,rearmed_sequence,acknowledged_at,acknowledged_by,note}'::text[]
                = to_jsonb(OLD) - '{rearmed_at,rearmed_sequence,acknowledged_at,acknowledged_by,note}'::text[]
            AND (
                OLD.rearmed_at IS NULL
                OR (NEW.rearmed_at, NEW.rearmed_sequence) IS NOT DISTINCT FROM (OLD.rearmed_at, OLD.rearmed_sequence)
            )
            AND (
                OLD.acknowledged_at IS NULL
                OR (NEW.acknowledged_at, NEW.acknowledged_by, NEW.note)
                    IS NOT DISTINCT FROM (OLD.acknowledged_at, OLD.acknowledged_by, OLD.note)
            )
        THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'alerts are append-only, re-armed once and acknowledged once: % refused', TG_OP
        USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER alerts_append_only BEFORE UPDATE OR DELETE ON alerts
FOR EACH ROW EXECUTE FUNCTION refuse_alert_change();
CREATE TRIGGER alerts_no_truncate BEFORE TRUNCATE ON alerts
FOR EACH STATEMENT EXECUTE FUNCTION refuse_alert_change();

-- What a batch hands to its statements, beside the types of the version before.
CREATE TYPE swapped_account AS (
    shard smallint, account_id text, expected bigint, balance bigint, reserved bigint, version bigint, head_hash bytea,
    next_expiry timestamptz, alert_revision bigint
);
CREATE TYPE alert_threshold AS (
    shard smallint, account_id text, threshold bigint, hysteresis bigint, armed boolean, last_alert uuid
);
CREATE TYPE fired_alert AS (
    shard smallint, alert_id uuid, account_id text, tenant_id text, threshold bigint, hysteresis bigint,
    available bigint, transaction_id uuid, sequence bigint, rearmed_sequence bigint
);
CREATE TYPE ended_alert AS (shard smallint, alert_id uuid, account_id text, sequence bigint);

GRANT SELECT, INSERT, UPDATE, DELETE ON account_alerts TO tollkeeper_credits;
GRANT SELECT, INSERT ON alerts TO tollkeeper_credits;
GRANT UPDATE (rearmed_at, rearmed_sequence, acknowledged_at, acknowledged_by, note) ON alerts TO tollkeeper_credits;

-- verify
-- There is no way back: it would take away what people have set and what fired.
SELECT count(*) = 2 FROM information_schema.columns WHERE table_name = 'accounts' AND column_name IN ('alert_at', 'alert_revision');
SELECT has_column_privilege('tollkeeper_credits', 'alerts', 'note', 'UPDATE') AND NOT has_table_privilege('tollkeeper_credits', 'alerts', 'DELETE');
SELECT count(*) = 2 FROM pg_trigger WHERE tgrelid = 'alerts'::regclass AND NOT tgisinternal;
