-- own_experiments --
-- Keeps everybody else from counting in experiments ($1, sorted) until the commit: whoever has this is not overtaken.
SELECT own_experiment(wanted.experiment_no) FROM unnest($1::integer[]) AS wanted (experiment_no);

-- share_experiments --
-- Keeps others from deciding about experiments ($1, sorted), or changing them, until the commit.
SELECT share_experiment(wanted.experiment_no) FROM unnest($1::integer[]) AS wanted (experiment_no);

-- lock_units --
-- Takes the row locks of units ($1, sorted), after the experiments are shared.
SELECT 1
FROM unnest($1::unit_place[]) AS wanted
JOIN units AS u ON u.experiment_no = wanted.experiment_no AND u.unit_id = wanted.unit_id
ORDER BY u.experiment_no, u.unit_id
FOR NO KEY UPDATE OF u;

-- known --
-- What is known of a batch: the experiments' versions (kind 0), units that are exposed (1), units that are not yet,
-- which get locked (2), outcomes by their ids (3), values of units (4), the database's clock (5).
-- Experiments are shared first, until the commit, and their versions read after that: nobody decides about them, or
-- changes them. An exposure never changes; outcomes and values are compared when they are written; what waits for an
-- exposure is read when its unit is locked. The clock is read when there is nothing more to wait for.
-- $1 experiments, sorted; $2 units, sorted; $3 outcomes; $4 values.
WITH found AS MATERIALIZED (
    SELECT u.experiment_no, u.unit_id, u.epoch, u.variant_no, u.exposed_at, u.probability
    FROM unnest($2::unit_place[]) AS wanted
    JOIN units AS u ON u.experiment_no = wanted.experiment_no AND u.unit_id = wanted.unit_id
),
held AS (
    SELECT u.experiment_no, u.unit_id
    FROM found
    JOIN units AS u ON u.experiment_no = found.experiment_no AND u.unit_id = found.unit_id
    WHERE found.variant_no IS NULL AND u.variant_no IS NULL
    ORDER BY u.experiment_no, u.unit_id
    FOR NO KEY UPDATE OF u
)
SELECT
    0::smallint AS kind, wanted.experiment_no, NULL::text AS unit_id, NULL::text AS outcome_id,
    NULL::smallint AS place, NULL::integer AS count, shared_version(wanted.experiment_no) AS number,
    NULL::timestamptz AS moment, NULL::double precision AS probability, NULL::text AS total, NULL::text AS value
FROM unnest($1::integer[]) AS wanted (experiment_no)
UNION ALL
SELECT 2::smallint, experiment_no, unit_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM held
UNION ALL
SELECT 1::smallint, experiment_no, unit_id, NULL, variant_no, epoch, NULL, exposed_at, probability, NULL, NULL
FROM found
WHERE variant_no IS NOT NULL
UNION ALL
SELECT
    3::smallint, o.experiment_no, o.unit_id, o.outcome_id, o.metric_no, o.status, o.value_micro, o.occurred_at, NULL,
    NULL, NULL
FROM unnest($3::outcome_place[]) AS wanted
JOIN outcomes AS o
    ON o.experiment_no = wanted.experiment_no AND o.unit_id = wanted.unit_id AND o.outcome_id = wanted.outcome_id
UNION ALL
SELECT
    4::smallint, v.experiment_no, v.unit_id, NULL, v.metric_no, v.outcomes, NULL, NULL, NULL, v.total_micro::text,
    v.value_micro::text
FROM unnest($4::value_place[]) AS wanted
JOIN unit_values AS v
    ON v.experiment_no = wanted.experiment_no AND v.unit_id = wanted.unit_id AND v.metric_no = wanted.metric_no
UNION ALL
SELECT 5::smallint, NULL, NULL, NULL, NULL, NULL, NULL, clock_timestamp(), NULL, NULL, NULL;

-- waiting --
-- Outcomes that wait for the exposure of units, which are locked.
SELECT o.experiment_no, o.unit_id, o.outcome_id, o.metric_no, o.status, o.value_micro, o.occurred_at
FROM unnest($1::unit_place[]) AS wanted
JOIN outcomes AS o ON o.experiment_no = wanted.experiment_no AND o.unit_id = wanted.unit_id AND o.status = 0;

-- count_outcomes --
-- Writes a plan. Returns how many units, outcomes and values were written: fewer than planned, and another process
-- was faster with one of them; then nothing of it may stay.
-- $1 the time; $2 units that get a row; $3 units that get their exposure; $4 outcomes; $5 outcomes that waited;
-- $6 first values of units; $7 values that moved; $8 exposures of arms; $9 statistics of arms. All are sorted, and
-- written in the order of the counts at the end: whoever waits for another is not waited for.
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
    WHERE
        o.experiment_no = n.experiment_no AND o.unit_id = n.unit_id AND o.outcome_id = n.outcome_id AND o.status = 0
    RETURNING 1
),
valued AS (
    INSERT INTO unit_values (experiment_no, unit_id, metric_no, outcomes, total_micro, value_micro)
    SELECT n.experiment_no, n.unit_id, n.metric_no, n.outcomes, n.total::numeric, n.value::numeric
    FROM unnest($6::written_value[]) AS n
    ON CONFLICT DO NOTHING
    RETURNING 1
),
moved AS (
    UPDATE unit_values AS v
    SET outcomes = n.outcomes, total_micro = n.total::numeric, value_micro = n.value::numeric
    FROM unnest($7::written_value[]) AS n
    WHERE
        v.experiment_no = n.experiment_no AND v.unit_id = n.unit_id AND v.metric_no = n.metric_no
        AND v.outcomes = n.expected
    RETURNING 1
),
arms AS (
    INSERT INTO arm_exposures AS a (experiment_no, epoch, variant_no, bucket, units)
    SELECT n.experiment_no, n.epoch, n.variant_no, to_timestamp(n.bucket), n.units
    FROM unnest($8::added_exposures[]) AS n
    ON CONFLICT (experiment_no, epoch, variant_no, bucket) DO UPDATE SET units = a.units + excluded.units
),
summed AS (
    INSERT INTO arm_statistics AS s (
        experiment_no, epoch, variant_no, metric_no, bucket, units, total, squares, last_received_at
    )
    SELECT
        n.experiment_no, n.epoch, n.variant_no, n.metric_no, to_timestamp(n.bucket), n.units, n.total::numeric,
        n.squares::numeric, $1
    FROM unnest($9::added_statistics[]) AS n
    ON CONFLICT (experiment_no, epoch, variant_no, metric_no, bucket) DO UPDATE
    SET
        units = s.units + excluded.units, total = s.total + excluded.total, squares = s.squares + excluded.squares,
        last_received_at = greatest(s.last_received_at, excluded.last_received_at)
)
SELECT
    (SELECT count(*) FROM made) + (SELECT count(*) FROM exposed) + (SELECT count(*) FROM kept)
    + (SELECT count(*) FROM settled) + (SELECT count(*) FROM valued) + (SELECT count(*) FROM moved);
