-- hold_units --
-- Locks units of a batch in sorted order, then shares their experiments: whoever decides has to wait, or had his
-- turn. Returns the units that have a row, as they stand under the lock. The others are nobody's yet.
-- $1 the units and $2 their experiments, both sorted.
WITH held AS (
    SELECT u.experiment_no, u.unit_id, u.epoch, u.variant_no, u.exposed_at, u.probability
    FROM unnest($1::unit_place[]) AS wanted
    JOIN units AS u ON u.experiment_no = wanted.experiment_no AND u.unit_id = wanted.unit_id
    ORDER BY u.experiment_no, u.unit_id
    FOR NO KEY UPDATE OF u
),
shared AS MATERIALIZED (
    SELECT share_experiment(wanted.experiment_no) FROM unnest($2::integer[]) AS wanted (experiment_no)
)
SELECT experiment_no, unit_id, epoch, variant_no, exposed_at, probability FROM held
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL FROM shared;

-- counted --
-- What is known of a batch, in a snapshot taken under the locks: the database's clock (kind 0), versions of the
-- experiments (1), outcomes by their ids (2), outcomes that wait (3), values of units (4).
-- $1 experiments; $2 outcomes; $3 units that are to be exposed; $4 values.
SELECT
    0::smallint AS kind, NULL::integer AS experiment_no, NULL::text AS unit_id, NULL::text AS outcome_id,
    NULL::smallint AS metric_no, NULL::smallint AS status, NULL::bigint AS number, clock_timestamp() AS moment,
    NULL::text AS total, NULL::text AS value
UNION ALL
SELECT 1::smallint, e.experiment_no, NULL, NULL, NULL, NULL, e.version, NULL, NULL, NULL
FROM unnest($1::integer[]) AS wanted (experiment_no)
JOIN experiments AS e ON e.experiment_no = wanted.experiment_no
UNION ALL
SELECT
    2::smallint, o.experiment_no, o.unit_id, o.outcome_id, o.metric_no, o.status, o.value_micro, o.occurred_at, NULL,
    NULL
FROM unnest($2::outcome_place[]) AS wanted
JOIN outcomes AS o
    ON o.experiment_no = wanted.experiment_no AND o.unit_id = wanted.unit_id AND o.outcome_id = wanted.outcome_id
UNION ALL
SELECT
    3::smallint, o.experiment_no, o.unit_id, o.outcome_id, o.metric_no, o.status, o.value_micro, o.occurred_at, NULL,
    NULL
FROM unnest($3::unit_place[]) AS wanted
JOIN outcomes AS o ON o.experiment_no = wanted.experiment_no AND o.unit_id = wanted.unit_id AND o.status = 0
UNION ALL
SELECT
    4::smallint, v.experiment_no, v.unit_id, NULL, v.metric_no, NULL, v.outcomes, NULL, v.total_micro::text,
    v.value_micro::text
FROM unnest($4::value_place[]) AS wanted
JOIN unit_values AS v
    ON v.experiment_no = wanted.experiment_no AND v.unit_id = wanted.unit_id AND v.metric_no = wanted.metric_no;

-- count_outcomes --
-- Writes a plan. Returns how many units and outcomes were written: fewer than planned, and another process was
-- faster with one of them; then nothing of it may stay.
-- $1 the time; $2 units that get a row, sorted; $3 units that get their exposure; $4 outcomes; $5 outcomes that waited;
-- $6 values; $7 exposures of arms and $8 statistics of arms, both sorted: everybody changes the same of these rows,
-- and nobody may wait for another in a circle.
WITH made AS (
    INSERT INTO units (experiment_no, unit_id, epoch, variant_no, exposed_at, probability, attributes)
    SELECT n.experiment_no, n.unit_id, n.epoch, n.variant_no, n.exposed_at, n.probability, n.attributes::jsonb
    FROM unnest($2::written_unit[]) AS n
    ON CONFLICT DO NOTHING
    RETURNING 1
),
exposed AS (
    UPDATE units AS u
    SET
        epoch = n.epoch, variant_no = n.variant_no, exposed_at = n.exposed_at, probability = n.probability,
        attributes = n.attributes::jsonb
    FROM unnest($3::written_unit[]) AS n
    WHERE u.experiment_no = n.experiment_no AND u.unit_id = n.unit_id AND u.variant_no IS NULL
    RETURNING 1
),
kept AS (
    INSERT INTO outcomes (
        experiment_no, unit_id, outcome_id, metric_no, value_micro, occurred_at, status, received_at
    )
    SELECT n.experiment_no, n.unit_id, n.outcome_id, n.metric_no, n.value_micro, n.occurred_at, n.status, $1
    FROM unnest($4::written_outcome[]) AS n
    ON CONFLICT DO NOTHING
    RETURNING 1
),
settled AS (
    UPDATE outcomes AS o
    SET status = n.status
    FROM unnest($5::settled_outcome[]) AS n
    WHERE o.experiment_no = n.experiment_no AND o.unit_id = n.unit_id AND o.outcome_id = n.outcome_id
    RETURNING 1
),
valued AS (
    INSERT INTO unit_values AS v (experiment_no, unit_id, metric_no, outcomes, total_micro, value_micro)
    SELECT n.experiment_no, n.unit_id, n.metric_no, n.outcomes, n.total::numeric, n.value::numeric
    FROM unnest($6::written_value[]) AS n
    ON CONFLICT (experiment_no, unit_id, metric_no) DO UPDATE
    SET outcomes = excluded.outcomes, total_micro = excluded.total_micro, value_micro = excluded.value_micro
),
arms AS (
    INSERT INTO arm_exposures AS a (experiment_no, epoch, variant_no, bucket, units)
    SELECT n.experiment_no, n.epoch, n.variant_no, to_timestamp(n.bucket), n.units
    FROM unnest($7::added_exposures[]) AS n
    ON CONFLICT (experiment_no, epoch, variant_no, bucket) DO UPDATE SET units = a.units + excluded.units
),
summed AS (
    INSERT INTO arm_statistics AS s (
        experiment_no, epoch, variant_no, metric_no, bucket, units, total, squares, last_received_at
    )
    SELECT
        n.experiment_no, n.epoch, n.variant_no, n.metric_no, to_timestamp(n.bucket), n.units, n.total::numeric,
        n.squares::numeric, $1
    FROM unnest($8::added_statistics[]) AS n
    ON CONFLICT (experiment_no, epoch, variant_no, metric_no, bucket) DO UPDATE
    SET
        units = s.units + excluded.units, total = s.total + excluded.total, squares = s.squares + excluded.squares,
        last_received_at = greatest(s.last_received_at, excluded.last_received_at)
)
SELECT
    (SELECT count(*) FROM made) + (SELECT count(*) FROM exposed) + (SELECT count(*) FROM kept)
    + (SELECT count(*) FROM settled);
