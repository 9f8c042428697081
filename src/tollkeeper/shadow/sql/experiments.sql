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
    e.experiment_no, e.experiment_id, e.tenant_id, e.definition, e.state, e.version, e.created_at, e.started_at,
    e.ended_at, e.deployed_no, e.begun_at, e.weights
FROM experiments_in_whole AS e
WHERE e.experiment_id = $1

-- experiments_by_number --
-- Those of these numbers.
SELECT
    e.experiment_no, e.experiment_id, e.tenant_id, e.definition, e.state, e.version, e.created_at, e.started_at,
    e.ended_at, e.deployed_no, e.begun_at, e.weights
FROM experiments_in_whole AS e
WHERE e.experiment_no = any($1::integer[])

-- experiments --
-- A page of them, oldest first; of a tenant, in a state, or all.
SELECT
    e.experiment_no, e.experiment_id, e.tenant_id, e.definition, e.state, e.version, e.created_at, e.started_at,
    e.ended_at, e.deployed_no, e.begun_at, e.weights
FROM experiments_in_whole AS e
WHERE
    e.experiment_no > $1 AND ($2::text IS NULL OR e.tenant_id = $2) AND ($3::text IS NULL OR e.state = $3)
ORDER BY e.experiment_no
LIMIT $4

-- experiments_of_interest --
-- Those that units are assigned by: running, paused, or deployed.
SELECT
    e.experiment_no, e.experiment_id, e.tenant_id, e.definition, e.state, e.version, e.created_at, e.started_at,
    e.ended_at, e.deployed_no, e.begun_at, e.weights
FROM experiments_in_whole AS e
WHERE e.state IN ('running', 'paused') OR e.deployed_no IS NOT NULL
ORDER BY e.experiment_no
LIMIT $1

-- experiment_counts --
-- How many there are in each state.
SELECT e.state, count(*) AS experiments
FROM experiments AS e
GROUP BY e.state
