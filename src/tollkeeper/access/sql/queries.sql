-- keys_version --
-- The version of the keys: it moves with every change of any key.
SELECT version FROM api_keys_version;

-- valid_keys --
-- Every key that was not revoked, with the version at which this is true: one statement, one snapshot.
-- Without any key there is one row, and its key_id is null.
SELECT v.version, k.key_id, k.name, k.token_hash, k.scopes, k.tenant_id, k.created_at
FROM api_keys_version AS v
LEFT JOIN api_keys AS k ON k.revoked_at IS NULL;

-- is_valid_key --
-- $1 token_hash.
SELECT EXISTS (SELECT FROM api_keys WHERE token_hash = $1 AND revoked_at IS NULL);

-- insert_key --
-- $1 key_id, $2 name, $3 token_hash, $4 scopes, $5 tenant_id, $6 created_at.
INSERT INTO api_keys (key_id, name, token_hash, scopes, tenant_id, created_at)
VALUES ($1, $2, $3, $4, $5, $6);
