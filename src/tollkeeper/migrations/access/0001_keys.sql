-- up
-- API keys, and the version that tells every service when to read them again.

SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '60s';

-- Roles belong to the whole server: another database, or a runner beside us, may have made it.
DO $$
BEGIN
    CREATE ROLE tollkeeper_access NOLOGIN;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;

-- Only the hash of a key is kept. A key is 256 random bits, so a plain SHA-256 is as hard to turn back as
-- the key is to guess; slow password hashes are for secrets that people choose.
CREATE TABLE api_keys (
    key_id uuid PRIMARY KEY,
    name text NOT NULL,
    token_hash bytea NOT NULL UNIQUE,
    scopes text[] NOT NULL,
    tenant_id text COLLATE "C",
    created_at timestamptz NOT NULL,
    revoked_at timestamptz,
    CONSTRAINT api_keys_name CHECK (char_length(name) BETWEEN 1 AND 100),
    CONSTRAINT api_keys_hash CHECK (octet_length(token_hash) = 32),
    CONSTRAINT api_keys_scopes CHECK (cardinality(scopes) > 0 AND array_position(scopes, NULL) IS NULL),
    CONSTRAINT api_keys_tenant CHECK (octet_length(tenant_id) BETWEEN 1 AND 128)
);

COMMENT ON TABLE api_keys IS 'a key without tenant_id acts for every tenant';
COMMENT ON COLUMN api_keys.token_hash IS 'SHA-256 of the key';

-- One row. It moves in the unit of work that changes a key, and its row lock puts those in order: who has
-- read the keys at a version has missed nothing before it. Services ask for it every other second.
CREATE TABLE api_keys_version (
    only_row boolean PRIMARY KEY DEFAULT true,
    version bigint NOT NULL,
    CONSTRAINT api_keys_version_only_row CHECK (only_row)
);

INSERT INTO api_keys_version (version) VALUES (0);

CREATE FUNCTION advance_api_keys_version() RETURNS trigger
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE api_keys_version SET version = version + 1;
    RETURN NULL;
END
$$;

CREATE TRIGGER api_keys_changed
AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON api_keys
FOR EACH STATEMENT EXECUTE FUNCTION advance_api_keys_version();

-- Services only look; keys are made by the owner of the database.
GRANT SELECT ON api_keys, api_keys_version TO tollkeeper_access;
