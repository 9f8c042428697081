-- up
-- The lives of keys: expiry, rotation, last use, and the trail of what was done to them.
--
-- Code of the version before works on this schema; it knows nothing of expiry, so hand out keys that expire
-- when every process runs the new version.

SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '60s';

ALTER TABLE api_keys ADD COLUMN expires_at timestamptz;
ALTER TABLE api_keys ADD COLUMN replaced_by uuid;

COMMENT ON COLUMN api_keys.expires_at IS 'from then on the key is refused; of a rotated key, the end of its grace';
COMMENT ON COLUMN api_keys.replaced_by IS 'key_id of the key that rotation made in its place';

-- What services write all the time stands apart from the rows that decide: a use moves no version, and
-- revoking a key never waits for the record of its uses.
CREATE TABLE api_key_uses (
    key_id uuid PRIMARY KEY,
    last_used_at timestamptz NOT NULL
);

-- Who did what to which key, and the key after it. Append-only. `sequence` is the version of the keys at which
-- it took effect: taken under that row's lock, so the order of numbers is the order of commits, and who has
-- read up to a number has missed nothing before it.
CREATE TABLE api_key_events (
    sequence bigint PRIMARY KEY,
    created_at timestamptz NOT NULL,
    kind text COLLATE "C" NOT NULL,
    actor text COLLATE "C" NOT NULL,
    key_id uuid NOT NULL,
    name text NOT NULL,
    scopes text[] NOT NULL,
    tenant_id text COLLATE "C",
    expires_at timestamptz,
    replaced_by uuid,
    CONSTRAINT api_key_events_kind CHECK (kind IN ('created', 'rotated', 'revoked', 'changed', 'deleted'))
);

CREATE INDEX api_key_events_tenant ON api_key_events (tenant_id, sequence);

COMMENT ON COLUMN api_key_events.actor IS 'key_id of the key that asked for it, or owner: by hand or on the command line';

CREATE FUNCTION refuse_event_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'api_key_events is append-only: % refused', TG_OP
        USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER api_key_events_append_only
BEFORE UPDATE OR DELETE ON api_key_events
FOR EACH ROW EXECUTE FUNCTION refuse_event_change();

CREATE TRIGGER api_key_events_no_truncate
BEFORE TRUNCATE ON api_key_events
FOR EACH STATEMENT EXECUTE FUNCTION refuse_event_change();

-- What ended a key stays: nobody who can write this table can bring a key back.
CREATE FUNCTION refuse_key_revival() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.revoked_at IS DISTINCT FROM NEW.revoked_at AND OLD.revoked_at IS NOT NULL
        OR OLD.replaced_by IS DISTINCT FROM NEW.replaced_by AND OLD.replaced_by IS NOT NULL
        OR OLD.expires_at < coalesce(NEW.expires_at, 'infinity')
    THEN
        RAISE EXCEPTION 'a key that was revoked, rotated or given an end cannot be given a longer life'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER api_keys_no_revival
BEFORE UPDATE ON api_keys
FOR EACH ROW EXECUTE FUNCTION refuse_key_revival();

-- Moves the version and records the event, for every row that changes and whoever changes it. Acts as the owner:
-- services can neither set the version nor write events.
CREATE FUNCTION record_api_key_event() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
DECLARE
    touched api_keys%ROWTYPE;
    what text;
    place bigint;
BEGIN
    IF TG_OP = 'DELETE' THEN
        touched := OLD;
        what := 'deleted';
    ELSIF TG_OP = 'INSERT' THEN
        touched := NEW;
        what := 'created';
    ELSE
        touched := NEW;
        what := CASE
            WHEN OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL THEN 'revoked'
            WHEN OLD.replaced_by IS NULL AND NEW.replaced_by IS NOT NULL THEN 'rotated'
            ELSE 'changed'
        END;
    END IF;
    UPDATE api_keys_version SET version = version + 1 RETURNING version INTO place;
    INSERT INTO api_key_events (
        sequence, created_at, kind, actor, key_id, name, scopes, tenant_id, expires_at, replaced_by
    ) VALUES (
        place, clock_timestamp(), what, coalesce(nullif(current_setting('tollkeeper.actor', true), ''), 'owner'),
        touched.key_id, touched.name, touched.scopes, touched.tenant_id, touched.expires_at, touched.replaced_by
    );
    RETURN NULL;
END
$$;

DROP TRIGGER api_keys_changed ON api_keys;

CREATE TRIGGER api_keys_recorded
AFTER INSERT OR UPDATE OR DELETE ON api_keys
FOR EACH ROW EXECUTE FUNCTION record_api_key_event();

CREATE TRIGGER api_keys_truncated
AFTER TRUNCATE ON api_keys
FOR EACH STATEMENT EXECUTE FUNCTION advance_api_keys_version();

-- Nobody else hangs this function on a table of theirs, to write events with it.
REVOKE ALL ON FUNCTION record_api_key_event() FROM public;

-- Services make, end and list keys. What a key allows cannot be changed once it is made.
GRANT INSERT (key_id, name, token_hash, scopes, tenant_id, created_at, expires_at),
    UPDATE (expires_at, revoked_at, replaced_by) ON api_keys TO tollkeeper_access;
GRANT SELECT ON api_key_events TO tollkeeper_access;
GRANT SELECT, INSERT, UPDATE (last_used_at) ON api_key_uses TO tollkeeper_access;
