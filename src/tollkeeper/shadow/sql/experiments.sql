-- create_experiment --
-- A new draft; null when the id stands for another.
SELECT create_experiment($1, $2, $3::text::jsonb)

-- define_experiment --
-- Whether the draft was changed.
SELECT define_experiment($1, $2, $3::text::jsonb)

-- move_experiment --
-- Whether it is in the state now.
SELECT move_experiment($1, $2, $3)

-- begin_epoch --
-- Whether the epoch began.
SELECT begin_epoch($1, $2, $3)

-- experiment --
-- One by its id, with its epochs and what is deployed of it.
SELECT
    e.experiment_no, e.experiment_id, e.tenant_id, e.definition::text AS definition, e.state, e.version, e.created_at,
    e.started_at, e.ended_at,
    (
        SELECT d.variant_no
        FROM deployments AS d
        WHERE d.experiment_no = e.experiment_no AND d.rolled_back_at IS NULL
    ) AS deployed_no,
    ARRAY(
        SELECT p.begun_at
        FROM epochs AS p
        WHERE p.experiment_no = e.experiment_no
        ORDER BY p.epoch
    ) AS begun_at,
    (
        SELECT array_agg(p.weights ORDER BY p.epoch)
        FROM epochs AS p
        WHERE p.experiment_no = e.experiment_no
    ) AS weights
FROM experiments AS e
WHERE e.experiment_id = $1

-- experiments_by_number --
-- Those of these numbers.
SELECT
    e.experiment_no, e.experiment_id, e.tenant_id, e.definition::text AS definition, e.state, e.version, e.created_at,
    e.started_at, e.ended_at,
    (
        SELECT d.variant_no
        FROM deployments AS d
        WHERE d.experiment_no = e.experiment_no AND d.rolled_back_at IS NULL
    ) AS deployed_no,
    ARRAY(
        SELECT p.begun_at
        FROM epochs AS p
        WHERE p.experiment_no = e.experiment_no
        ORDER BY p.epoch
    ) AS begun_at,
    (
        SELECT array_agg(p.weights ORDER BY p.epoch)
        FROM epochs AS p
        WHERE p.experiment_no = e.experiment_no
    ) AS weights
FROM unnest($1::integer[]) AS wanted (experiment_no)
INNER JOIN experiments AS e ON e.experiment_no = wanted.experiment_no

-- experiments --
-- A page of them, oldest first; of a tenant, in a state, or all.
SELECT
    e.experiment_no, e.experiment_id, e.tenant_id, e.definition::text AS definition, e.state, e.version, e.created_at,
    e.started_at, e.ended_at,
    (
        SELECT d.variant_no
        FROM deployments AS d
        WHERE d.experiment_no = e.experiment_no AND d.rolled_back_at IS NULL
    ) AS deployed_no,
    ARRAY(
        SELECT p.begun_at
        FROM epochs AS p
        WHERE p.experiment_no = e.experiment_no
        ORDER BY p.epoch
    ) AS begun_at,
    (
        SELECT array_agg(p.weights ORDER BY p.epoch)
        FROM epochs AS p
        WHERE p.experiment_no = e.experiment_no
    ) AS weights
FROM experiments AS e
WHERE
    e.experiment_no > $1 AND ($2::text IS NULL OR e.tenant_id = $2) AND ($3::text IS NULL OR e.state = $3)
ORDER BY e.experiment_no
LIMIT $4

-- experiments_of_interest --
-- Those that units are assigned by: running, paused, or deployed.
SELECT
    e.experiment_no, e.experiment_id, e.tenant_id, e.definition::text AS definition, e.state, e.version, e.created_at,
    e.started_at, e.ended_at, d.variant_no AS deployed_no,
    ARRAY(
        SELECT p.begun_at
        FROM epochs AS p
        WHERE p.experiment_no = e.experiment_no
        ORDER BY p.epoch
    ) AS begun_at,
    (
        SELECT array_agg(p.weights ORDER BY p.epoch)
        FROM epochs AS p
        WHERE p.experiment_no = e.experiment_no
    ) AS weights
FROM experiments AS e
LEFT JOIN deployments AS d ON d.experiment_no = e.experiment_no AND d.rolled_back_at IS NULL
WHERE e.state IN ('running', 'paused') OR d.variant_no IS NOT NULL
ORDER BY e.experiment_no
LIMIT $1

-- experiment_counts --
-- How many there are in each state.
SELECT e.state, count(*) AS experiments
FROM experiments AS e
GROUP BY e.state
