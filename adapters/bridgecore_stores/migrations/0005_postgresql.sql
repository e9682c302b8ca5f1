-- Version 5 of the tables in PostgreSQL: how long notices are kept is said by the program.
--
-- What belongs here: what version 5 adds. The time is the same for every back end, so none of them
-- has a number of its own.

-- As in version 3, which does the work, with the notices of some of the responses. p_kept:
-- microseconds for which notices are kept.
CREATE FUNCTION bridgecore_commit_5(
    p_replica text, p_incarnation text, p_conversation bytea, p_epoch bigint,
    p_keys bytea[], p_parents bytea[], p_payloads bytea[], p_names bytea[], p_named bytea[],
    p_contexts bytea[], p_noticed bytea[], p_notices bytea[], p_kept bigint,
    OUT epoch bigint, OUT missing boolean
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT c.epoch, c.missing INTO epoch, missing FROM bridgecore_commit_3(
        p_replica, p_incarnation, p_conversation, p_epoch, p_keys, p_parents, p_payloads, p_names,
        p_named, p_contexts
    ) AS c;
    IF epoch > 0 THEN
        INSERT INTO bridgecore_notice AS n
            SELECT r.key, clock_timestamp(), r.sealed FROM unnest(p_noticed, p_notices) AS r (key, sealed)
            ON CONFLICT (key) DO UPDATE SET at = EXCLUDED.at, sealed = EXCLUDED.sealed;
        -- Renewals have returned these to each replica. A locked row is being written anew.
        DELETE FROM bridgecore_notice WHERE key IN (
            SELECT old.key FROM bridgecore_notice AS old
            WHERE old.at < clock_timestamp() - p_kept * interval '1 microsecond'
            FOR UPDATE SKIP LOCKED
        );
    END IF;
END $$;
