-- create --
-- A draft.
SELECT create_experiment('benchmark', 'tenant', $1::text::jsonb);

-- start --
-- Sets a draft running.
SELECT move_experiment(e.experiment_no, e.version, 'running') FROM experiments AS e WHERE e.experiment_no = $1;

-- differences --
-- How many counters are not what a recount gives.
SELECT count(*) FROM experiment_differences($1);

-- outcomes --
-- How many outcomes were counted.
SELECT count(*) FROM outcomes AS o WHERE o.experiment_no = $1;

-- number --
-- The number of an experiment.
SELECT e.experiment_no FROM experiments AS e WHERE e.experiment_id = $1;
