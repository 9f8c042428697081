-- up
-- Experiments, what is counted in them, the decisions of the gate, and deployments that none walks around.
--
-- The service's role counts; what an experiment is, what was decided and what is deployed it changes through
-- functions only, and none of them lets a variant through without a decision that holds at that moment.
--
-- An experiment's number is half of the key of an advisory lock, so 32 bits; epochs and looks are few.
-- squawk-ignore-file prefer-bigint-over-int

SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '60s';

CREATE TABLE experiments (
    experiment_no integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz,
    ended_at timestamptz,
    state text COLLATE "C" NOT NULL DEFAULT 'draft',
    experiment_id text COLLATE "C" NOT NULL,
    tenant_id text COLLATE "C" NOT NULL,
    definition jsonb NOT NULL,
    CONSTRAINT experiments_id UNIQUE (experiment_id),
    CONSTRAINT experiments_ids CHECK (
        octet_length(experiment_id) BETWEEN 1 AND 128 AND octet_length(tenant_id) BETWEEN 1 AND 128
    ),
    CONSTRAINT experiments_state CHECK (state IN ('draft', 'running', 'paused', 'ended')),
    CONSTRAINT experiments_times CHECK (
        (state = 'draft') <= (started_at IS NULL) AND (state IN ('running', 'paused')) <= (started_at IS NOT NULL)
        AND (state = 'ended') = (ended_at IS NOT NULL)
    )
);

COMMENT ON TABLE experiments IS 'what is compared, and how far it is';
COMMENT ON COLUMN experiments.version IS 'moves with every change, new weights and deployments included';

CREATE INDEX experiments_by_tenant ON experiments (tenant_id, experiment_no);
CREATE INDEX experiments_going_on ON experiments (experiment_no) WHERE state IN ('running', 'paused');

CREATE TABLE epochs (
    experiment_no integer NOT NULL REFERENCES experiments,
    epoch integer NOT NULL,
    begun_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    weights double precision [] NOT NULL,
    PRIMARY KEY (experiment_no, epoch),
    CONSTRAINT epochs_first CHECK (epoch >= 1)
);

COMMENT ON TABLE epochs IS 'stretches of constant weights';

CREATE TABLE units (
    experiment_no integer NOT NULL,
    epoch integer,
    variant_no smallint,
    exposed_at timestamptz,
    probability double precision,
    unit_id text COLLATE "C" NOT NULL,
    attributes jsonb,
    PRIMARY KEY (experiment_no, unit_id),
    CONSTRAINT units_exposed CHECK (num_nulls(epoch, variant_no, exposed_at, probability) IN (0, 4)),
    CONSTRAINT units_probability CHECK (probability > 0 AND probability <= 1)
) WITH (fillfactor = 90);

COMMENT ON TABLE units IS 'the variant that a unit got, for ever; none while only outcomes of it are there';

CREATE TABLE outcomes (
    experiment_no integer NOT NULL,
    metric_no smallint NOT NULL,
    status smallint NOT NULL,
    value_micro bigint NOT NULL,
    occurred_at timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    unit_id text COLLATE "C" NOT NULL,
    outcome_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (experiment_no, unit_id, outcome_id),
    CONSTRAINT outcomes_status CHECK (status BETWEEN 0 AND 3)
);

COMMENT ON TABLE outcomes IS 'what was reported of units: append-only';
COMMENT ON COLUMN outcomes.status IS '0 waits for its exposure, 1 counted, 2 before the exposure, 3 outside the window';

-- What a unit is worth in a metric, from its counted outcomes.
CREATE TABLE unit_values (
    experiment_no integer NOT NULL,
    metric_no smallint NOT NULL,
    outcomes integer NOT NULL,
    total_micro numeric NOT NULL,
    value_micro numeric NOT NULL,
    unit_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (experiment_no, unit_id, metric_no)
) WITH (fillfactor = 80);

-- Counters, kept by the same commit as what they count. A bucket is a stretch of time of exposures.
CREATE TABLE arm_exposures (
    experiment_no integer NOT NULL,
    epoch integer NOT NULL,
    variant_no smallint NOT NULL,
    bucket timestamptz NOT NULL,
    units bigint NOT NULL,
    PRIMARY KEY (experiment_no, epoch, variant_no, bucket)
) WITH (fillfactor = 50);

CREATE TABLE arm_statistics (
    experiment_no integer NOT NULL,
    epoch integer NOT NULL,
    variant_no smallint NOT NULL,
    metric_no smallint NOT NULL,
    bucket timestamptz NOT NULL,
    last_received_at timestamptz NOT NULL,
    units bigint NOT NULL,
    total numeric NOT NULL,
    squares numeric NOT NULL,
    PRIMARY KEY (experiment_no, epoch, variant_no, metric_no, bucket)
) WITH (fillfactor = 50);

COMMENT ON TABLE arm_statistics IS 'sums over the units of an arm; total in micro-units, squares in their squares';

CREATE TABLE decisions (
    decision_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    experiment_no integer NOT NULL REFERENCES experiments,
    sequence integer NOT NULL,
    look integer NOT NULL,
    decided_at timestamptz NOT NULL,
    as_of timestamptz NOT NULL,
    expires_at timestamptz,
    seed bigint NOT NULL,
    variant_no smallint,
    kind text COLLATE "C" NOT NULL,
    verdict text COLLATE "C" NOT NULL,
    input_digest bytea NOT NULL,
    prev_hash bytea NOT NULL,
    hash bytea NOT NULL,
    code text NOT NULL,
    inputs text NOT NULL,
    document text NOT NULL,
    CONSTRAINT decisions_chain UNIQUE (experiment_no, sequence),
    CONSTRAINT decisions_proof UNIQUE (decision_no, experiment_no, variant_no, input_digest, verdict),
    CONSTRAINT decisions_kind CHECK (kind IN ('look', 'confirmation')),
    CONSTRAINT decisions_verdict CHECK (verdict IN ('deploy', 'hold', 'reject')),
    CONSTRAINT decisions_deploy CHECK (
        (verdict = 'deploy') <= (variant_no IS NOT NULL AND expires_at IS NOT NULL)
    ),
    CONSTRAINT decisions_digest CHECK (input_digest = sha256(convert_to(inputs, 'UTF8'))),
    CONSTRAINT decisions_look CHECK (look >= 0)
);

CREATE UNIQUE INDEX decisions_looks ON decisions (experiment_no, look) WHERE kind = 'look';

COMMENT ON TABLE decisions IS 'what the gate said, of which inputs: append-only, each hash over the one before';

CREATE TABLE deployments (
    deployment_id uuid PRIMARY KEY,
    experiment_no integer NOT NULL REFERENCES experiments,
    decision_no bigint NOT NULL,
    deployed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    rolled_back_at timestamptz,
    variant_no smallint NOT NULL,
    verdict text COLLATE "C" NOT NULL DEFAULT 'deploy',
    input_digest bytea NOT NULL,
    deployed_by text NOT NULL,
    rolled_back_by text,
    reason text,
    CONSTRAINT deployments_verdict CHECK (verdict = 'deploy'),
    CONSTRAINT deployments_decision UNIQUE (decision_no),
    CONSTRAINT deployments_proof FOREIGN KEY (decision_no, experiment_no, variant_no, input_digest, verdict)
    REFERENCES decisions (decision_no, experiment_no, variant_no, input_digest, verdict),
    CONSTRAINT deployments_rollback CHECK ((rolled_back_at IS NULL) = (rolled_back_by IS NULL))
);

CREATE UNIQUE INDEX deployments_standing ON deployments (experiment_no) WHERE rolled_back_at IS NULL;
CREATE INDEX deployments_by_experiment ON deployments (experiment_no, deployed_at);

COMMENT ON TABLE deployments IS 'variants that everybody gets; each stands on a decision';

-- An experiment with its epochs and what is deployed of it, as everybody reads it.
CREATE VIEW experiments_in_whole AS
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
FROM experiments AS e;

-- Whoever counts shares an experiment, whoever decides or changes it has it alone; until the commit.
CREATE FUNCTION share_experiment(which integer) RETURNS void
LANGUAGE sql AS $$ SELECT pg_advisory_xact_lock_shared(5005, which) $$;

-- An older snapshot would show its owner what others have changed since: a lock is no use with it.
CREATE FUNCTION own_experiment(which integer) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'an experiment is owned in read committed only' USING ERRCODE = 'invalid_transaction_state';
    END IF;
    PERFORM pg_advisory_xact_lock(5005, which);
END
$$;

CREATE FUNCTION micros(moment timestamptz) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE
AS $$ SELECT (extract(EPOCH FROM moment) * 1000000)::bigint $$;

-- What every arm of an experiment has at a moment, by epoch and metric. `units`, `total` and `squares` are what
-- counts; `mature` units had their whole window, and `answered` of them have an outcome.
CREATE FUNCTION experiment_arms(which integer, moment timestamptz)
RETURNS TABLE (
    epoch integer, variant_no smallint, metric_no smallint, exposed bigint, mature bigint, answered bigint,
    units bigint, total numeric, squares numeric, last_received_at timestamptz
)
LANGUAGE sql STABLE
SET search_path = public, pg_temp AS $$
    WITH metric AS (
        SELECT
            (m.place - 1)::smallint AS metric_no,
            m.definition ->> 'missing' IS NOT DISTINCT FROM 'zero' AS is_zero,
            make_interval(secs => coalesce((m.definition ->> 'window_s')::integer, 3600)) AS "window",
            make_interval(secs => greatest(1, min(coalesce((m.definition ->> 'window_s')::integer, 3600)) OVER () / 50))
            AS width
        FROM experiments AS e
        CROSS JOIN LATERAL jsonb_array_elements(e.definition -> 'metrics') WITH ORDINALITY AS m (definition, place)
        WHERE e.experiment_no = which
    ),
    exposure AS (
        SELECT
            x.epoch, x.variant_no, m.metric_no, m.is_zero, sum(x.units) AS exposed,
            coalesce(sum(x.units) FILTER (WHERE x.bucket + m.width + m.window <= moment), 0) AS mature
        FROM arm_exposures AS x
        CROSS JOIN metric AS m
        WHERE x.experiment_no = which
        GROUP BY x.epoch, x.variant_no, m.metric_no, m.is_zero
    ),
    outcome AS (
        SELECT
            s.epoch, s.variant_no, s.metric_no,
            coalesce(sum(s.units) FILTER (WHERE s.bucket + m.width + m.window <= moment), 0) AS answered,
            sum(s.units) FILTER (WHERE NOT m.is_zero) AS units,
            sum(s.total) FILTER (WHERE NOT m.is_zero OR s.bucket + m.width + m.window <= moment) AS total,
            sum(s.squares) FILTER (WHERE NOT m.is_zero OR s.bucket + m.width + m.window <= moment) AS squares,
            max(s.last_received_at) AS last_received_at
        FROM arm_statistics AS s
        INNER JOIN metric AS m ON m.metric_no = s.metric_no
        WHERE s.experiment_no = which
        GROUP BY s.epoch, s.variant_no, s.metric_no
    )
    SELECT
        x.epoch, x.variant_no, x.metric_no, x.exposed::bigint, x.mature::bigint, coalesce(o.answered, 0)::bigint,
        CASE WHEN x.is_zero THEN x.mature ELSE coalesce(o.units, 0) END::bigint,
        coalesce(o.total, 0), coalesce(o.squares, 0), o.last_received_at
    FROM exposure AS x
    LEFT JOIN outcome AS o ON o.epoch = x.epoch AND o.variant_no = x.variant_no AND o.metric_no = x.metric_no
$$;

-- Everything that a decision depends on, always written alike: its SHA-256 is the digest of the inputs.
CREATE FUNCTION experiment_inputs(which integer, moment timestamptz) RETURNS text
LANGUAGE sql STABLE
SET search_path = public, pg_temp AS $$
    SELECT jsonb_build_object(
        'format', 1,
        'experiment_id', e.experiment_id,
        'tenant_id', e.tenant_id,
        'definition', e.definition,
        'started_at', micros(e.started_at),
        'as_of', micros(moment),
        'epochs', (
            SELECT coalesce(jsonb_agg(
                jsonb_build_object('epoch', p.epoch, 'begun_at', micros(p.begun_at), 'weights', to_jsonb(p.weights))
                ORDER BY p.epoch
            ), '[]')
            FROM epochs AS p
            WHERE p.experiment_no = e.experiment_no
        ),
        'arms', (
            SELECT coalesce(jsonb_agg(
                jsonb_build_object(
                    'epoch', a.epoch, 'variant', a.variant_no, 'metric', a.metric_no, 'exposed', a.exposed,
                    'mature', a.mature, 'answered', a.answered, 'units', a.units, 'total', a.total,
                    'squares', a.squares, 'last_received_at', micros(a.last_received_at)
                )
                ORDER BY a.epoch, a.variant_no, a.metric_no
            ), '[]')
            FROM experiment_arms(e.experiment_no, moment) AS a
        )
    )::text
    FROM experiments AS e
    WHERE e.experiment_no = which
$$;

-- Where counters and the rows they count differ: none, when all is right.
CREATE FUNCTION experiment_differences(which integer)
RETURNS TABLE (epoch integer, variant_no smallint, metric_no smallint, counted numeric [], found numeric [])
LANGUAGE sql STABLE
SET search_path = public, pg_temp AS $$
    WITH value AS (
        SELECT
            u.epoch, u.variant_no, o.metric_no, o.unit_id, count(*) AS outcomes, sum(o.value_micro) AS total,
            max(o.value_micro) AS highest
        FROM outcomes AS o
        INNER JOIN units AS u ON u.experiment_no = o.experiment_no AND u.unit_id = o.unit_id
        WHERE o.experiment_no = which AND o.status = 1
        GROUP BY u.epoch, u.variant_no, o.metric_no, o.unit_id
    ),
    found AS (
        SELECT
            v.epoch, v.variant_no, v.metric_no,
            ARRAY[count(*), sum(u.value_micro), sum(u.value_micro * u.value_micro)] AS sums
        FROM value AS v
        -- A value that its outcomes do not give is not found.
        INNER JOIN unit_values AS u
            ON
                u.experiment_no = which AND u.unit_id = v.unit_id AND u.metric_no = v.metric_no
                AND u.outcomes = v.outcomes AND u.total_micro = v.total
                AND (u.value_micro IN (v.total, v.highest) OR abs(u.value_micro * v.outcomes - v.total) <= v.outcomes)
        GROUP BY v.epoch, v.variant_no, v.metric_no
        UNION ALL
        SELECT u.epoch, u.variant_no, (-1)::smallint, ARRAY[count(*)]
        FROM units AS u
        WHERE u.experiment_no = which AND u.variant_no IS NOT NULL
        GROUP BY u.epoch, u.variant_no
    ),
    counted AS (
        SELECT s.epoch, s.variant_no, s.metric_no, ARRAY[sum(s.units), sum(s.total), sum(s.squares)] AS sums
        FROM arm_statistics AS s
        WHERE s.experiment_no = which
        GROUP BY s.epoch, s.variant_no, s.metric_no
        UNION ALL
        SELECT x.epoch, x.variant_no, (-1)::smallint, ARRAY[sum(x.units)]
        FROM arm_exposures AS x
        WHERE x.experiment_no = which
        GROUP BY x.epoch, x.variant_no
    )
    SELECT
        coalesce(c.epoch, f.epoch), coalesce(c.variant_no, f.variant_no), coalesce(c.metric_no, f.metric_no),
        c.sums, f.sums
    FROM counted AS c
    FULL JOIN found AS f ON f.epoch = c.epoch AND f.variant_no = c.variant_no AND f.metric_no = c.metric_no
    WHERE c.sums IS DISTINCT FROM f.sums
$$;

COMMENT ON FUNCTION experiment_differences(integer)
IS 'counters against a recount; metric -1 stands for exposures; a unit has its epoch and variant for ever';

CREATE FUNCTION create_experiment(id text, tenant text, wanted jsonb) RETURNS integer
LANGUAGE sql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
    INSERT INTO experiments (experiment_id, tenant_id, definition)
    VALUES (id, tenant, wanted)
    ON CONFLICT (experiment_id) DO NOTHING
    RETURNING experiment_no
$$;

-- Changes a draft; false when it is none any more, or somebody was faster.
CREATE FUNCTION define_experiment(which integer, known bigint, wanted jsonb) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM own_experiment(which);
    UPDATE experiments SET definition = wanted, version = version + 1
    WHERE experiment_no = which AND version = known AND state = 'draft';
    RETURN FOUND;
END
$$;

-- The running or paused experiment whose range of the same namespace overlaps; null: none.
CREATE FUNCTION namespace_holder(which integer) RETURNS text
LANGUAGE sql STABLE
SET search_path = public, pg_temp AS $$
    SELECT o.experiment_id
    FROM experiments AS e
    INNER JOIN experiments AS o
        ON
            o.tenant_id = e.tenant_id AND o.experiment_no <> e.experiment_no AND o.state IN ('running', 'paused')
            AND o.definition #>> '{namespace,name}' = e.definition #>> '{namespace,name}'
            AND (o.definition #>> '{namespace,start}')::double precision
            < (e.definition #>> '{namespace,end}')::double precision
            AND (e.definition #>> '{namespace,start}')::double precision
            < (o.definition #>> '{namespace,end}')::double precision
    WHERE e.experiment_no = which
    ORDER BY o.experiment_no
    LIMIT 1
$$;

-- Moves an experiment to a state; false when it is elsewhere by now, or there is no way.
CREATE FUNCTION move_experiment(which integer, known bigint, wanted text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
DECLARE
    holder text;
    moved experiments;
BEGIN
    -- Who starts is alone: ranges of a namespace are looked at and taken one after the other.
    PERFORM pg_advisory_xact_lock(5005, 0);
    PERFORM own_experiment(which);
    UPDATE experiments SET
        state = wanted,
        version = version + 1,
        started_at = CASE WHEN wanted = 'running' THEN coalesce(started_at, clock_timestamp()) ELSE started_at END,
        ended_at = CASE WHEN wanted = 'ended' THEN clock_timestamp() END
    WHERE
        experiment_no = which AND version = known
        AND (state, wanted) IN (
            ('draft', 'running'), ('running', 'paused'), ('paused', 'running'), ('running', 'ended'),
            ('paused', 'ended'), ('draft', 'ended')
        )
    RETURNING * INTO moved;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF wanted = 'running' THEN
        holder := namespace_holder(which);
        IF holder IS NOT NULL THEN
            RAISE EXCEPTION 'namespace is taken there' USING ERRCODE = 'TK002', DETAIL = holder;
        END IF;
        INSERT INTO epochs (experiment_no, epoch, weights)
        SELECT which, 1, array_agg((v.variant ->> 'weight')::double precision ORDER BY v.place)
        FROM jsonb_array_elements(moved.definition -> 'variants') WITH ORDINALITY AS v (variant, place)
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN true;
END
$$;

-- Begins the next epoch; false when another did, or the experiment does not run.
CREATE FUNCTION begin_epoch(which integer, next_epoch integer, wanted double precision []) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
DECLARE
    arms integer;
    last_epoch integer;
BEGIN
    PERFORM own_experiment(which);
    SELECT jsonb_array_length(e.definition -> 'variants') INTO arms
    FROM experiments AS e
    WHERE e.experiment_no = which AND e.state = 'running';
    SELECT max(p.epoch) INTO last_epoch FROM epochs AS p WHERE p.experiment_no = which;
    IF arms IS NULL OR last_epoch IS DISTINCT FROM next_epoch - 1 THEN
        RETURN false;
    END IF;
    IF
        cardinality(wanted) <> arms
        OR (SELECT abs(sum(w) - 1) > 1e-9 OR min(w) < 0 OR count(w) <> arms FROM unnest(wanted) AS w)
    THEN
        RAISE EXCEPTION 'weights must be one for each variant and sum to 1' USING ERRCODE = 'check_violation';
    END IF;
    INSERT INTO epochs (experiment_no, epoch, weights) VALUES (which, next_epoch, wanted);
    UPDATE experiments SET version = version + 1 WHERE experiment_no = which;
    RETURN true;
END
$$;

-- What the database itself can tell of a variant that is said to be good enough: null, or what is wrong.
-- A bound that the gate's exact figures lie well above; it is there for whoever writes verdicts by hand.
CREATE FUNCTION doubts(which integer, moment timestamptz, candidate smallint) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp AS $$
DECLARE
    control_no integer;
    direction numeric;
    margin numeric;
    least_units bigint;
    c record;
    v record;
    spread double precision;
    has_prior boolean;
    most_variance numeric;
BEGIN
    SELECT
        (x.place - 1)::integer,
        CASE WHEN e.definition #>> '{metrics,0,direction}' IS NOT DISTINCT FROM 'lower' THEN -1 ELSE 1 END,
        greatest(0.05, coalesce((e.definition ->> 'margin')::numeric, 0.05)),
        e.definition #> '{metrics,0,prior}' IS NOT NULL,
        CASE WHEN e.definition #>> '{metrics,0,kind}' = 'count' THEN 1000000 END
    INTO control_no, direction, margin, has_prior, most_variance
    FROM experiments AS e
    CROSS JOIN LATERAL jsonb_array_elements(e.definition -> 'variants') WITH ORDINALITY AS x (variant, place)
    WHERE e.experiment_no = which AND x.variant ->> 'name' = e.definition ->> 'control';
    IF candidate IS NULL OR candidate = control_no THEN
        RETURN 'the variant is the control';
    END IF;
    SELECT sum(a.units) AS n, sum(a.total) AS total, sum(a.squares) AS squares INTO c
    FROM experiment_arms(which, moment) AS a
    WHERE a.metric_no = 0 AND a.variant_no = control_no;
    SELECT sum(a.units) AS n, sum(a.total) AS total, sum(a.squares) AS squares INTO v
    FROM experiment_arms(which, moment) AS a
    WHERE a.metric_no = 0 AND a.variant_no = candidate;
    least_units := least(coalesce(c.n, 0), coalesce(v.n, 0));
    IF least_units < 100 THEN
        RETURN format('%s units in an arm, and 100 are needed', least_units);
    END IF;
    -- Whole numbers throughout: the same comparison as the gate's, without a rounding.
    IF c.total = 0 OR direction * (v.total * c.n - c.total * v.n) < margin * abs(c.total) * v.n THEN
        RETURN format('the variant is not %s better than the control', margin);
    END IF;
    -- P(best) above 95 % can be had with 0.64 standard errors, where one arm is small and counts are few; where a
    -- prior says more than the sample, with any. A count's posterior knows the variance of a Poisson law only.
    spread := sqrt(
        least(greatest(0, v.squares / v.n - (v.total / v.n) ^ 2), most_variance * v.total / v.n) / v.n
        + least(greatest(0, c.squares / c.n - (c.total / c.n) ^ 2), most_variance * c.total / c.n) / c.n
    );
    IF NOT has_prior AND (direction * (v.total / v.n - c.total / c.n))::double precision < 0.6 * spread THEN
        RETURN 'the difference is within what chance does';
    END IF;
    RETURN NULL;
END
$$;

-- The hash of a decision: over all that it says, and the hash of the one before.
CREATE FUNCTION decision_hash(d decisions) RETURNS bytea
LANGUAGE sql STABLE
SET search_path = public, pg_temp AS $$
    SELECT sha256(
        d.prev_hash || d.input_digest
        || sha256(convert_to(
            jsonb_build_array(
                d.experiment_no, d.sequence, d.kind, d.look, micros(d.decided_at), micros(d.as_of),
                micros(d.expires_at), d.verdict, d.variant_no, d.seed, d.code, d.document
            )::text, 'UTF8'
        ))
    )
$$;

-- Keeps what the gate said, if its inputs are what is here. Raises TK001 when they moved, TK003 when a look is not
-- due, TK004 when a verdict `deploy` cannot be right. Returns the number of the decision.
CREATE FUNCTION record_decision(
    which integer, what text, wanted_look integer, moment timestamptz, lifetime interval, said text,
    candidate smallint, given_inputs text, given_seed bigint, given_code text, given_document text
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
DECLARE
    e experiments;
    before record;
    planned integer;
    counted numeric;
    wrong text;
    moment_now timestamptz;
    kept decisions;
    made bigint;
BEGIN
    PERFORM own_experiment(which);
    moment_now := clock_timestamp();
    SELECT * INTO e FROM experiments WHERE experiment_no = which;
    IF e.state IS NULL OR e.state NOT IN ('running', 'paused') THEN
        RAISE EXCEPTION 'experiment does not run' USING ERRCODE = 'TK003';
    END IF;
    -- Nobody chooses the moment: which windows had closed then is part of the inputs.
    IF
        moment IS NULL OR moment NOT BETWEEN moment_now - interval '5 minutes' AND moment_now + interval '1 second'
        OR given_inputs IS DISTINCT FROM experiment_inputs(which, moment)
    THEN
        RAISE EXCEPTION 'the inputs are not what is here' USING ERRCODE = 'TK001';
    END IF;
    SELECT d.sequence, d.hash INTO before
    FROM decisions AS d
    WHERE d.experiment_no = which
    ORDER BY d.sequence DESC
    LIMIT 1;
    IF what = 'look' THEN
        planned := (e.definition ->> 'looks')::integer;
        SELECT coalesce(sum(a.units), 0) INTO counted
        FROM experiment_arms(which, moment) AS a
        WHERE a.metric_no = 0;
        IF
            wanted_look < 1
            OR wanted_look <= coalesce(
                (SELECT max(d.look) FROM decisions AS d WHERE d.experiment_no = which AND d.kind = 'look'), 0
            )
            OR wanted_look > planned OR counted * planned < wanted_look * (e.definition ->> 'units')::numeric
        THEN
            RAISE EXCEPTION 'look % is not due', wanted_look USING ERRCODE = 'TK003';
        END IF;
    END IF;
    IF said = 'deploy' THEN
        wrong := doubts(which, moment, candidate);
        IF wrong IS NOT NULL THEN
            RAISE EXCEPTION 'this verdict cannot be right: %', wrong USING ERRCODE = 'TK004';
        END IF;
    END IF;
    kept.experiment_no := which;
    kept.sequence := coalesce(before.sequence, 0) + 1;
    kept.look := wanted_look;
    kept.decided_at := moment_now;
    kept.as_of := moment;
    kept.expires_at := CASE WHEN said = 'deploy' THEN moment_now + least(lifetime, interval '7 days') END;
    kept.seed := given_seed;
    kept.variant_no := candidate;
    kept.kind := what;
    kept.verdict := said;
    kept.input_digest := sha256(convert_to(given_inputs, 'UTF8'));
    kept.prev_hash := coalesce(before.hash, '\x'::bytea);
    kept.code := given_code;
    kept.document := given_document;
    INSERT INTO decisions (
        experiment_no, sequence, look, decided_at, as_of, expires_at, seed, variant_no, kind, verdict, input_digest,
        prev_hash, hash, code, inputs, document
    )
    VALUES (
        kept.experiment_no, kept.sequence, kept.look, kept.decided_at, kept.as_of, kept.expires_at, kept.seed,
        kept.variant_no, kept.kind, kept.verdict, kept.input_digest, kept.prev_hash, decision_hash(kept), kept.code,
        given_inputs, kept.document
    )
    RETURNING decision_no INTO made;
    RETURN made;
END
$$;

-- Whether a decision holds at this moment: null, or why it does not.
CREATE FUNCTION decision_fault(made bigint) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = public, pg_temp AS $$
DECLARE
    d decisions;
    look decisions;
    e experiments;
BEGIN
    SELECT * INTO d FROM decisions WHERE decision_no = made;
    SELECT * INTO e FROM experiments WHERE experiment_no = d.experiment_no;
    SELECT * INTO look
    FROM decisions
    WHERE experiment_no = d.experiment_no AND kind = 'look'
    ORDER BY sequence DESC
    LIMIT 1;
    RETURN CASE
        WHEN d.decision_no IS NULL THEN 'there is no such decision'
        WHEN d.kind <> 'confirmation' OR d.verdict <> 'deploy' THEN 'the decision is no confirmed verdict to deploy'
        WHEN e.state NOT IN ('running', 'paused') THEN 'the experiment has ended'
        WHEN
            EXISTS (
                SELECT FROM decisions AS x WHERE x.experiment_no = d.experiment_no AND x.sequence > d.sequence
            ) THEN 'a later decision stands'
        WHEN
            look.verdict IS DISTINCT FROM 'deploy' OR look.variant_no IS DISTINCT FROM d.variant_no
            THEN 'the last look does not say so'
        WHEN look.expires_at <= clock_timestamp() OR d.expires_at <= clock_timestamp() THEN 'the verdict has expired'
        WHEN d.as_of < clock_timestamp() - interval '5 minutes' THEN 'the confirmation is not of now'
        WHEN d.inputs IS DISTINCT FROM experiment_inputs(d.experiment_no, d.as_of) THEN 'the data have moved since'
        WHEN
            EXISTS (SELECT FROM experiment_differences(d.experiment_no))
            THEN 'the counters are not what the outcomes say'
        ELSE doubts(d.experiment_no, d.as_of, d.variant_no)
    END;
END
$$;

CREATE FUNCTION check_deployment() RETURNS trigger
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
DECLARE
    fault text;
BEGIN
    PERFORM own_experiment(NEW.experiment_no);
    fault := decision_fault(NEW.decision_no);
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION 'no deployment: %', fault USING ERRCODE = 'TK005', DETAIL = fault;
    END IF;
    NEW.deployed_at := clock_timestamp();
    NEW.rolled_back_at := NULL;
    NEW.rolled_back_by := NULL;
    RETURN NEW;
END
$$;

CREATE TRIGGER deployments_checked BEFORE INSERT ON deployments
FOR EACH ROW EXECUTE FUNCTION check_deployment();

-- A deployment changes once, by its rollback, which nothing is asked for.
CREATE FUNCTION guard_deployment() RETURNS trigger
LANGUAGE plpgsql
SET search_path = public, pg_temp AS $$
BEGIN
    IF
        OLD.rolled_back_at IS NOT NULL OR NEW.rolled_back_at IS NULL
        OR (
            NEW.deployment_id, NEW.experiment_no, NEW.decision_no, NEW.deployed_at, NEW.variant_no, NEW.verdict,
            NEW.input_digest, NEW.deployed_by
        ) IS DISTINCT FROM (
            OLD.deployment_id, OLD.experiment_no, OLD.decision_no, OLD.deployed_at, OLD.variant_no, OLD.verdict,
            OLD.input_digest, OLD.deployed_by
        )
    THEN
        RAISE EXCEPTION 'a deployment can only be rolled back, once' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER deployments_guarded BEFORE UPDATE ON deployments
FOR EACH ROW EXECUTE FUNCTION guard_deployment();

CREATE FUNCTION refuse_shadow_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER decisions_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON decisions
FOR EACH STATEMENT EXECUTE FUNCTION refuse_shadow_change();
CREATE TRIGGER deployments_kept BEFORE DELETE OR TRUNCATE ON deployments
FOR EACH STATEMENT EXECUTE FUNCTION refuse_shadow_change();
CREATE TRIGGER epochs_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON epochs
FOR EACH STATEMENT EXECUTE FUNCTION refuse_shadow_change();
CREATE TRIGGER outcomes_kept BEFORE DELETE OR TRUNCATE ON outcomes
FOR EACH STATEMENT EXECUTE FUNCTION refuse_shadow_change();
CREATE TRIGGER units_kept BEFORE DELETE OR TRUNCATE ON units
FOR EACH STATEMENT EXECUTE FUNCTION refuse_shadow_change();

CREATE FUNCTION refuse_shadow_row() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a row of % that is decided stays: % refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER units_sticky BEFORE UPDATE ON units
FOR EACH ROW WHEN (
    old.variant_no IS NOT NULL AND (
        new.variant_no IS DISTINCT FROM old.variant_no OR new.epoch IS DISTINCT FROM old.epoch
        OR new.probability IS DISTINCT FROM old.probability OR new.exposed_at IS DISTINCT FROM old.exposed_at
    )
) EXECUTE FUNCTION refuse_shadow_row();
CREATE TRIGGER outcomes_settled BEFORE UPDATE ON outcomes
FOR EACH ROW WHEN (
    old.status <> 0 OR new.value_micro <> old.value_micro OR new.metric_no <> old.metric_no
    OR new.occurred_at <> old.occurred_at
) EXECUTE FUNCTION refuse_shadow_row();

-- Gives a variant to everybody, on a confirmed decision; the experiment ends with it.
CREATE FUNCTION deploy_variant(id uuid, made bigint, who text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
DECLARE
    which integer;
BEGIN
    SELECT d.experiment_no INTO which FROM decisions AS d WHERE d.decision_no = made;
    IF which IS NULL THEN
        RAISE EXCEPTION 'no deployment: there is no such decision' USING ERRCODE = 'TK005';
    END IF;
    PERFORM own_experiment(which);
    INSERT INTO deployments (deployment_id, experiment_no, decision_no, variant_no, input_digest, deployed_by)
    SELECT id, d.experiment_no, d.decision_no, d.variant_no, d.input_digest, who
    FROM decisions AS d
    WHERE d.decision_no = made;
    UPDATE experiments SET state = 'ended', ended_at = clock_timestamp(), version = version + 1
    WHERE experiment_no = which;
END
$$;

-- Takes a deployment back, always; false when it was before.
CREATE FUNCTION roll_back_deployment(id uuid, who text, why text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
DECLARE
    which integer;
BEGIN
    UPDATE deployments SET rolled_back_at = clock_timestamp(), rolled_back_by = who, reason = why
    WHERE deployment_id = id AND rolled_back_at IS NULL
    RETURNING experiment_no INTO which;
    IF which IS NULL THEN
        RETURN false;
    END IF;
    UPDATE experiments SET version = version + 1 WHERE experiment_no = which;
    RETURN true;
END
$$;

-- Deployments that do not stand on a decision, however they came to be: 0.
CREATE FUNCTION deployments_without_testing() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = public, pg_temp AS $$
    SELECT count(*)
    FROM deployments AS p
    WHERE NOT EXISTS (
        SELECT
        FROM decisions AS d
        INNER JOIN decisions AS proven
            ON
                proven.experiment_no = d.experiment_no AND proven.kind = 'look' AND proven.sequence < d.sequence
                AND proven.verdict = 'deploy' AND proven.variant_no = d.variant_no
                AND proven.expires_at > p.deployed_at
        WHERE
            d.decision_no = p.decision_no AND d.experiment_no = p.experiment_no AND d.variant_no = p.variant_no
            AND d.kind = 'confirmation' AND d.verdict = 'deploy' AND d.input_digest = p.input_digest
            AND sha256(convert_to(d.inputs, 'UTF8')) = p.input_digest
            AND p.deployed_at BETWEEN d.decided_at AND d.expires_at
            -- A decision that was edited is none: neither of both, nor what links them.
            AND d.hash = decision_hash(d) AND proven.hash = decision_hash(proven)
            AND NOT EXISTS (
                SELECT
                FROM decisions AS x
                LEFT JOIN decisions AS y ON y.experiment_no = x.experiment_no AND y.sequence = x.sequence - 1
                WHERE
                    x.experiment_no = d.experiment_no AND x.sequence > proven.sequence AND x.sequence <= d.sequence
                    AND x.prev_hash IS DISTINCT FROM y.hash
            )
            AND NOT EXISTS (
                SELECT
                FROM decisions AS x
                WHERE
                    x.experiment_no = d.experiment_no AND x.kind = 'look' AND x.sequence > proven.sequence
                    AND x.sequence < d.sequence
            )
    )
$$;

REVOKE ALL ON FUNCTION create_experiment(text, text, jsonb) FROM public;
REVOKE ALL ON FUNCTION define_experiment(integer, bigint, jsonb) FROM public;
REVOKE ALL ON FUNCTION move_experiment(integer, bigint, text) FROM public;
REVOKE ALL ON FUNCTION begin_epoch(integer, integer, double precision []) FROM public;
REVOKE ALL ON FUNCTION record_decision(
    integer, text, integer, timestamptz, interval, text, smallint, text, bigint, text, text
) FROM public;
REVOKE ALL ON FUNCTION deploy_variant(uuid, bigint, text) FROM public;
REVOKE ALL ON FUNCTION roll_back_deployment(uuid, text, text) FROM public;
REVOKE ALL ON FUNCTION deployments_without_testing() FROM public;

GRANT EXECUTE ON FUNCTION create_experiment(text, text, jsonb) TO tollkeeper_shadow;
GRANT EXECUTE ON FUNCTION define_experiment(integer, bigint, jsonb) TO tollkeeper_shadow;
GRANT EXECUTE ON FUNCTION move_experiment(integer, bigint, text) TO tollkeeper_shadow;
GRANT EXECUTE ON FUNCTION begin_epoch(integer, integer, double precision []) TO tollkeeper_shadow;
GRANT EXECUTE ON FUNCTION record_decision(
    integer, text, integer, timestamptz, interval, text, smallint, text, bigint, text, text
) TO tollkeeper_shadow;
GRANT EXECUTE ON FUNCTION deploy_variant(uuid, bigint, text) TO tollkeeper_shadow;
GRANT EXECUTE ON FUNCTION roll_back_deployment(uuid, text, text) TO tollkeeper_shadow;
GRANT EXECUTE ON FUNCTION deployments_without_testing() TO tollkeeper_shadow;

GRANT SELECT ON
experiments, experiments_in_whole, epochs, units, outcomes, unit_values, arm_exposures, arm_statistics, decisions, deployments
TO tollkeeper_shadow;
GRANT INSERT ON units, outcomes, unit_values, arm_exposures, arm_statistics TO tollkeeper_shadow;
GRANT UPDATE (epoch, variant_no, exposed_at, probability, attributes) ON units TO tollkeeper_shadow;
GRANT UPDATE (status) ON outcomes TO tollkeeper_shadow;
GRANT UPDATE (outcomes, total_micro, value_micro) ON unit_values TO tollkeeper_shadow;
GRANT UPDATE (units) ON arm_exposures TO tollkeeper_shadow;
GRANT UPDATE (units, total, squares, last_received_at) ON arm_statistics TO tollkeeper_shadow;

-- verify
SELECT NOT has_table_privilege('tollkeeper_shadow', 'deployments', 'INSERT');
SELECT NOT has_table_privilege('tollkeeper_shadow', 'decisions', 'INSERT');
SELECT NOT has_any_column_privilege('tollkeeper_shadow', 'experiments', 'UPDATE');
SELECT has_function_privilege('tollkeeper_shadow', 'deploy_variant(uuid, bigint, text)', 'EXECUTE');
SELECT deployments_without_testing() = 0;

-- down
DROP FUNCTION deployments_without_testing();
DROP FUNCTION roll_back_deployment(uuid, text, text);
DROP FUNCTION deploy_variant(uuid, bigint, text);
DROP FUNCTION decision_hash(decisions);
DROP VIEW experiments_in_whole;
DROP TABLE deployments, decisions, arm_statistics, arm_exposures, unit_values, outcomes, units, epochs;
DROP FUNCTION refuse_shadow_row();
DROP FUNCTION refuse_shadow_change();
DROP FUNCTION guard_deployment();
DROP FUNCTION check_deployment();
DROP FUNCTION decision_fault(bigint);
DROP FUNCTION record_decision(
    integer, text, integer, timestamptz, interval, text, smallint, text, bigint, text, text
);
DROP FUNCTION doubts(integer, timestamptz, smallint);
DROP FUNCTION begin_epoch(integer, integer, double precision []);
DROP FUNCTION move_experiment(integer, bigint, text);
DROP FUNCTION namespace_holder(integer);
DROP FUNCTION define_experiment(integer, bigint, jsonb);
DROP FUNCTION create_experiment(text, text, jsonb);
DROP FUNCTION experiment_differences(integer);
DROP FUNCTION experiment_inputs(integer, timestamptz);
DROP FUNCTION experiment_arms(integer, timestamptz);
DROP TABLE experiments;
DROP FUNCTION micros(timestamptz);
DROP FUNCTION own_experiment(integer);
DROP FUNCTION share_experiment(integer);
