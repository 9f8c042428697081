-- up
-- Shared threat indicators: what tenants have seen, so that others can be warned, and nobody's values.
--
-- Neither a tenant nor a value is kept, but SHA-256 of a salt and each: the salt of tenants is secret and never
-- here, so that nobody can tell from these rows who reported; the salt of values is shared by those who compare.

SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '60s';

-- Roles belong to the whole server: another database, or a runner beside us, may have made it.
DO $$
BEGIN
    CREATE ROLE tollkeeper_cdefnet NOLOGIN;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;

CREATE TABLE threat_indicators (
    indicator_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    first_seen timestamptz NOT NULL,
    last_seen timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    sightings bigint NOT NULL DEFAULT 1,
    confidence double precision NOT NULL,
    tenant_hash bytea NOT NULL,
    value_hash bytea NOT NULL,
    type text COLLATE "C" NOT NULL,
    CONSTRAINT threat_indicators_once UNIQUE (tenant_hash, type, value_hash),
    CONSTRAINT threat_indicators_hashes CHECK (octet_length(tenant_hash) = 32 AND octet_length(value_hash) = 32),
    CONSTRAINT threat_indicators_type CHECK (
        type IN ('ip', 'domain', 'url', 'email', 'file_hash', 'user_agent', 'api_key', 'payment_card')
    ),
    -- NaN is larger than every number.
    CONSTRAINT threat_indicators_confidence CHECK (confidence BETWEEN 0 AND 1),
    CONSTRAINT threat_indicators_sightings CHECK (sightings >= 1),
    CONSTRAINT threat_indicators_times CHECK (
        first_seen <= last_seen AND last_seen < expires_at AND isfinite(first_seen) AND isfinite(expires_at)
    )
);

COMMENT ON TABLE threat_indicators IS 'what a tenant has seen of a value, by salted hashes only';
COMMENT ON COLUMN threat_indicators.tenant_hash IS 'SHA-256 of the secret salt of tenants and the tenant';
COMMENT ON COLUMN threat_indicators.value_hash IS 'SHA-256 of the shared salt of values and the value in its canonical form';
COMMENT ON COLUMN threat_indicators.confidence IS 'from 0 to 1: how sure its last reporter was';
COMMENT ON COLUMN threat_indicators.sightings IS 'how often it was reported';

-- Who else has seen it: asked for every value that is looked at.
CREATE INDEX threat_indicators_by_value ON threat_indicators (type, value_hash, expires_at);

-- What the purge looks for.
CREATE INDEX threat_indicators_by_expiry ON threat_indicators (expires_at);

-- What was done to indicators. Append-only; it outlives them, and knows no more of tenant and value than they do.
CREATE TABLE threat_indicator_audit (
    entry_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    indicator_id bigint,
    rows bigint NOT NULL,
    action text COLLATE "C" NOT NULL,
    actor text NOT NULL DEFAULT session_user,
    type text COLLATE "C",
    tenant_hash bytea,
    value_hash bytea,
    details jsonb NOT NULL DEFAULT '{}',
    CONSTRAINT threat_indicator_audit_action CHECK (action IN ('reported', 'seen_again', 'removed', 'purged'))
);

CREATE INDEX threat_indicator_audit_by_value ON threat_indicator_audit (type, value_hash, entry_id);

CREATE FUNCTION refuse_indicator_audit_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'threat_indicator_audit is append-only: % refused', TG_OP
        USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER threat_indicator_audit_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON threat_indicator_audit
FOR EACH STATEMENT EXECUTE FUNCTION refuse_indicator_audit_change();

-- Every way to change an indicator leaves its entry, in the same commit.
CREATE FUNCTION audit_indicator() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
BEGIN
    CASE TG_OP
        WHEN 'INSERT' THEN
            INSERT INTO threat_indicator_audit (indicator_id, rows, action, type, tenant_hash, value_hash, details)
            VALUES (
                NEW.indicator_id, 1, 'reported', NEW.type, NEW.tenant_hash, NEW.value_hash,
                jsonb_build_object('confidence', NEW.confidence, 'expires_at', NEW.expires_at)
            );
        WHEN 'UPDATE' THEN
            INSERT INTO threat_indicator_audit (indicator_id, rows, action, type, tenant_hash, value_hash, details)
            VALUES (
                NEW.indicator_id, 1, 'seen_again', NEW.type, NEW.tenant_hash, NEW.value_hash,
                jsonb_build_object(
                    'confidence', NEW.confidence, 'expires_at', NEW.expires_at, 'sightings', NEW.sightings
                )
            );
        ELSE
            INSERT INTO threat_indicator_audit (indicator_id, rows, action, type, tenant_hash, value_hash)
            VALUES (OLD.indicator_id, 1, 'removed', OLD.type, OLD.tenant_hash, OLD.value_hash);
    END CASE;
    RETURN NULL;
END
$$;

CREATE TRIGGER threat_indicators_audited
AFTER INSERT OR UPDATE ON threat_indicators
FOR EACH ROW EXECUTE FUNCTION audit_indicator();

CREATE TRIGGER threat_indicators_removal_audited
AFTER DELETE ON threat_indicators
FOR EACH ROW WHEN (current_setting('tollkeeper.is_purging', true) IS DISTINCT FROM 'yes')
EXECUTE FUNCTION audit_indicator();

CREATE FUNCTION refuse_indicator_truncate() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'threat_indicators are removed one by one or purged: % refused', TG_OP
        USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER threat_indicators_no_truncate BEFORE TRUNCATE ON threat_indicators
FOR EACH STATEMENT EXECUTE FUNCTION refuse_indicator_truncate();

-- Reports an indicator: the first time it is new, afterwards it was seen again. Returns its number of sightings.
-- An earlier `seen_at` than what is known is a late report: it counts, and moves neither time backwards.
CREATE FUNCTION report_indicator(
    tenant bytea, kind text, value bytea, sureness double precision, seen_at timestamptz, lifetime interval
) RETURNS bigint
LANGUAGE sql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
    INSERT INTO threat_indicators AS i (
        tenant_hash, type, value_hash, confidence, first_seen, last_seen, expires_at
    )
    VALUES (tenant, kind, value, sureness, seen_at, seen_at, seen_at + lifetime)
    ON CONFLICT (tenant_hash, type, value_hash) DO UPDATE
    SET
        confidence = CASE WHEN excluded.last_seen >= i.last_seen THEN excluded.confidence ELSE i.confidence END,
        first_seen = least(i.first_seen, excluded.first_seen),
        last_seen = greatest(i.last_seen, excluded.last_seen),
        expires_at = greatest(i.expires_at, excluded.expires_at),
        sightings = i.sightings + 1
    RETURNING i.sightings
$$;

-- Removes up to `most` indicators whose time is over at `moment`, the oldest first, with one entry in the audit;
-- returns how many. Those that somebody is just reporting again are left: their time is not over.
CREATE FUNCTION purge_indicators(moment timestamptz, most bigint DEFAULT 10000) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
DECLARE
    purged bigint;
BEGIN
    PERFORM set_config('tollkeeper.is_purging', 'yes', true);
    DELETE FROM threat_indicators
    WHERE indicator_id IN (
        SELECT i.indicator_id
        FROM threat_indicators AS i
        WHERE i.expires_at <= moment
        ORDER BY i.expires_at
        LIMIT most
        FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS purged = ROW_COUNT;
    PERFORM set_config('tollkeeper.is_purging', '', true);
    IF purged > 0 THEN
        INSERT INTO threat_indicator_audit (rows, action, details)
        VALUES (purged, 'purged', jsonb_build_object('moment', moment));
    END IF;
    RETURN purged;
END
$$;

CREATE TABLE health_probe (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    probed_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 10);

COMMENT ON TABLE health_probe IS 'one row, written by every health check';

INSERT INTO health_probe DEFAULT VALUES;

REVOKE ALL ON FUNCTION report_indicator(bytea, text, bytea, double precision, timestamptz, interval) FROM public;
REVOKE ALL ON FUNCTION purge_indicators(timestamptz, bigint) FROM public;
GRANT EXECUTE ON FUNCTION report_indicator(bytea, text, bytea, double precision, timestamptz, interval)
TO tollkeeper_cdefnet;
GRANT SELECT ON threat_indicators, threat_indicator_audit TO tollkeeper_cdefnet;
GRANT SELECT, UPDATE (probed_at) ON health_probe TO tollkeeper_cdefnet;

-- verify
SELECT count(*) = 1 FROM health_probe;
SELECT NOT has_table_privilege('tollkeeper_cdefnet', 'threat_indicators', 'INSERT');
SELECT has_function_privilege(
    'tollkeeper_cdefnet', 'report_indicator(bytea, text, bytea, double precision, timestamptz, interval)', 'EXECUTE'
);

-- down derived:health_probe
DROP FUNCTION purge_indicators(timestamptz, bigint);
DROP FUNCTION report_indicator(bytea, text, bytea, double precision, timestamptz, interval);
DROP TABLE threat_indicators, threat_indicator_audit, health_probe;
DROP FUNCTION refuse_indicator_truncate();
DROP FUNCTION audit_indicator();
DROP FUNCTION refuse_indicator_audit_change();
