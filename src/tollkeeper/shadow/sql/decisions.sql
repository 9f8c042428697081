-- own_experiment --
-- Nothing is counted, changed or decided by others until the commit.
SELECT own_experiment($1)

-- inputs --
-- Everything a decision depends on, and the moment it is of.
SELECT s.moment, experiment_inputs($1, s.moment) AS inputs
FROM (SELECT clock_timestamp() AS moment) AS s

-- standings --
-- How far experiments that go on are, all or one: counted units of the first metric, and their last look. What was
-- counted then is asked only where looks are not planned; and nothing is counted (0) where none can be due: a verdict
-- to deploy stands, or the plan is used up. Every process asks each second.
SELECT
    e.experiment_no, e.experiment_id, e.definition::text AS definition, clock_timestamp() AS moment,
    CASE
        WHEN
            l.look >= (e.definition ->> 'looks')::integer
            OR l.verdict = 'deploy' AND l.expires_at > clock_timestamp()
            THEN 0
        ELSE (
            SELECT coalesce(sum(a.units), 0)::bigint
            FROM experiment_arms(e.experiment_no, clock_timestamp()) AS a
            WHERE a.metric_no = 0
        )
    END AS counted,
    l.look, l.verdict, l.expires_at,
    (
        SELECT coalesce(sum((a.arm ->> 'units')::bigint), 0)::bigint
        FROM jsonb_array_elements(l.inputs::jsonb -> 'arms') AS a (arm)
        WHERE e.definition ->> 'looks' IS NULL AND a.arm ->> 'metric' = '0'
    ) AS counted_then
FROM experiments AS e
LEFT JOIN LATERAL (
    SELECT d.look, d.verdict, d.expires_at, d.inputs
    FROM decisions AS d
    WHERE d.experiment_no = e.experiment_no AND d.kind = 'look'
    ORDER BY d.look DESC
    LIMIT 1
) AS l ON true
WHERE e.state IN ('running', 'paused') AND ($1::integer IS NULL OR e.experiment_no = $1)
ORDER BY e.experiment_no

-- record_decision --
SELECT record_decision($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)

-- decision --
SELECT
    d.decision_no, d.experiment_no, d.sequence, d.kind, d.look, d.decided_at, d.as_of, d.expires_at, d.verdict,
    d.variant_no, d.input_digest, d.inputs, d.seed, d.code, d.document, d.prev_hash, d.hash
FROM decisions AS d
WHERE d.decision_no = $1

-- last_look --
SELECT
    d.decision_no, d.experiment_no, d.sequence, d.kind, d.look, d.decided_at, d.as_of, d.expires_at, d.verdict,
    d.variant_no, d.input_digest, d.inputs, d.seed, d.code, d.document, d.prev_hash, d.hash
FROM decisions AS d
WHERE d.experiment_no = $1 AND d.kind = 'look'
ORDER BY d.sequence DESC
LIMIT 1

-- decisions --
-- A page of an experiment's decisions, oldest first.
SELECT
    d.decision_no, d.experiment_no, d.sequence, d.kind, d.look, d.decided_at, d.as_of, d.expires_at, d.verdict,
    d.variant_no, d.input_digest, d.inputs, d.seed, d.code, d.document, d.prev_hash, d.hash
FROM decisions AS d
WHERE d.experiment_no = $1 AND d.sequence > $2
ORDER BY d.sequence
LIMIT $3

-- deploy_variant --
SELECT deploy_variant($1, $2, $3)

-- roll_back_deployment --
SELECT roll_back_deployment($1, $2, $3)

-- deployment --
SELECT
    d.deployment_id, d.experiment_no, e.experiment_id, e.tenant_id, d.variant_no, d.decision_no, d.input_digest,
    d.deployed_at, d.deployed_by, d.rolled_back_at, d.rolled_back_by, d.reason
FROM deployments AS d
INNER JOIN experiments AS e ON e.experiment_no = d.experiment_no
WHERE d.deployment_id = $1

-- deployments --
-- All of an experiment, oldest first: a rolled back one may be followed by none.
SELECT
    d.deployment_id, d.experiment_no, e.experiment_id, e.tenant_id, d.variant_no, d.decision_no, d.input_digest,
    d.deployed_at, d.deployed_by, d.rolled_back_at, d.rolled_back_by, d.reason
FROM deployments AS d
INNER JOIN experiments AS e ON e.experiment_no = d.experiment_no
WHERE d.experiment_no = $1
ORDER BY d.deployed_at, d.deployment_id

-- deployments_without_testing --
SELECT deployments_without_testing()
