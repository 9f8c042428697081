-- up
-- What a batch of outcomes is sent as (arrays of these, and not one array for each column), and what it begins with.

SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '60s';

CREATE TYPE unit_place AS (experiment_no integer, unit_id text);
CREATE TYPE outcome_place AS (experiment_no integer, unit_id text, outcome_id text);
CREATE TYPE value_place AS (experiment_no integer, unit_id text, metric_no smallint);
CREATE TYPE written_unit AS (
    experiment_no integer, unit_id text, epoch integer, variant_no smallint, exposed_at timestamptz,
    probability double precision, attributes text
);
CREATE TYPE written_outcome AS (
    experiment_no integer, unit_id text, outcome_id text, metric_no smallint, value_micro bigint,
    occurred_at timestamptz, status smallint
);
CREATE TYPE settled_outcome AS (experiment_no integer, unit_id text, outcome_id text, status smallint);
CREATE TYPE written_value AS (
    experiment_no integer, unit_id text, metric_no smallint, expected integer, outcomes integer,
    total text, value text
);
CREATE TYPE added_exposures AS (
    experiment_no integer, epoch integer, variant_no smallint, bucket bigint, units bigint
);
CREATE TYPE added_statistics AS (
    experiment_no integer, epoch integer, variant_no smallint, metric_no smallint, bucket bigint, units bigint,
    total text, squares text
);

-- Shares an experiment until the commit, and returns its version after that: whoever changes it has it alone.
-- VOLATILE on purpose: its statements see what was committed while it waited.
CREATE FUNCTION shared_version(which integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM share_experiment(which);
    RETURN (SELECT e.version FROM experiments AS e WHERE e.experiment_no = which);
END
$$;

-- verify
SELECT to_regtype('added_statistics') IS NOT NULL;

-- down
DROP FUNCTION shared_version(integer);
DROP TYPE added_statistics;
DROP TYPE added_exposures;
DROP TYPE written_value;
DROP TYPE settled_outcome;
DROP TYPE written_outcome;
DROP TYPE written_unit;
DROP TYPE value_place;
DROP TYPE outcome_place;
DROP TYPE unit_place;
