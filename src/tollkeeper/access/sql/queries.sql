-- keys_version --
-- The version of the keys: it moves with every change of any key.
SELECT version FROM api_keys_version;

-- valid_keys --
-- Every key that was not revoked and has not expired before $1, with the version at which this is true: one
-- statement, one snapshot. Without any key there is one row, and its key_id is null.
SELECT v.version, k.key_id, k.name, k.token_hash, k.scopes, k.tenant_id, k.created_at, k.expires_at, k.replaced_by
FROM api_keys_version AS v
LEFT JOIN api_keys AS k ON k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > $1);

-- is_valid_key --
-- $1 token_hash, $2 now.
SELECT EXISTS (
    SELECT FROM api_keys
    WHERE token_hash = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)
);

-- act_as --
-- Who does what follows in this unit of work: $1 actor, for the events.
SELECT set_config('tollkeeper.actor', $1, true);

-- insert_key --
-- $1 key_id, $2 name, $3 token_hash, $4 scopes, $5 tenant_id, $6 created_at, $7 expires_at.
INSERT INTO api_keys (key_id, name, token_hash, scopes, tenant_id, created_at, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7);

-- lock_key --
-- One key, so that nobody else ends it meanwhile: $1 key_id, $2 tenant_id (null: any).
SELECT key_id, name, token_hash, scopes, tenant_id, created_at, expires_at, revoked_at, replaced_by,
    (SELECT u.last_used_at FROM api_key_uses AS u WHERE u.key_id = api_keys.key_id) AS last_used_at
FROM api_keys
WHERE key_id = $1 AND ($2::text IS NULL OR tenant_id = $2)
FOR UPDATE;

-- replace_key --
-- End a key in favour of another: $1 key_id, $2 replaced_by, $3 expires_at.
UPDATE api_keys SET replaced_by = $2, expires_at = $3 WHERE key_id = $1;

-- revoke_key --
-- $1 key_id, $2 revoked_at.
UPDATE api_keys SET revoked_at = $2 WHERE key_id = $1;

-- has_other_admin --
-- Whether a key other than $1 can administer all keys at $2, and not only until the end of a grace.
SELECT EXISTS (
    SELECT FROM api_keys
    WHERE key_id <> $1 AND tenant_id IS NULL AND 'admin' = ANY(scopes)
        AND revoked_at IS NULL AND replaced_by IS NULL AND (expires_at IS NULL OR expires_at > $2)
);

-- list_keys --
-- A page by id: $1 after (null: from the start), $2 tenant_id (null: all), $3 limit.
SELECT k.key_id, k.name, k.token_hash, k.scopes, k.tenant_id, k.created_at, k.expires_at, k.revoked_at, k.replaced_by,
    u.last_used_at
FROM api_keys AS k
LEFT JOIN api_key_uses AS u ON u.key_id = k.key_id
WHERE ($1::uuid IS NULL OR k.key_id > $1) AND ($2::text IS NULL OR k.tenant_id = $2)
ORDER BY k.key_id
LIMIT $3;

-- list_events --
-- A page in their order: $1 after, $2 tenant_id (null: all), $3 limit.
SELECT sequence, created_at, kind, actor, key_id, name, scopes, tenant_id, expires_at, replaced_by
FROM api_key_events
WHERE sequence > $1 AND ($2::text IS NULL OR tenant_id = $2)
ORDER BY sequence
LIMIT $3;

-- record_uses --
-- $1 key_ids, $2 when each was last used. Never goes back; in order, so that two services cannot deadlock.
INSERT INTO api_key_uses AS u (key_id, last_used_at)
SELECT f.key_id, f.used_at
FROM unnest($1::uuid[], $2::timestamptz[]) AS f (key_id, used_at)
ORDER BY f.key_id
ON CONFLICT (key_id) DO UPDATE SET last_used_at = excluded.last_used_at
WHERE u.last_used_at < excluded.last_used_at;
