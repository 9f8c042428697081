-- up
-- Keys are looked for in all partitions from a day ago on, so that none is missed when the clock was set back:
-- there shall be no more of them ahead than are needed. Who runs behind makes the next one when it is missing.

SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '60s';

DO $$
DECLARE
    each text;
    is_empty boolean;
BEGIN
    FOR each IN
        SELECT c.relname
        FROM pg_inherits AS i
        JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'idempotency_keys'::regclass
            AND c.relname ~ '^idempotency_keys_[0-9]{8}$'
            AND to_date(right(c.relname, 8), 'YYYYMMDD') > (now() AT TIME ZONE 'UTC')::date + 1
    LOOP
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', each);
        EXECUTE format('SELECT NOT EXISTS (SELECT FROM %I)', each) INTO is_empty;
        IF is_empty THEN
            EXECUTE format('DROP TABLE %I', each);
        END IF;
    END LOOP;
END
$$;
