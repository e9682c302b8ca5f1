-- Version 4 of the tables in PostgreSQL: notices, which the renewal of each lease returns.
--
-- What belongs here: what version 4 adds. By this a replica learns that a client has deleted a
-- response at another one, although it has the response in memory and owns its conversation.

CREATE TABLE bridgecore_notice (
    key bytea PRIMARY KEY, -- of the response
    at timestamptz NOT NULL,
    sealed bytea NOT NULL
);
CREATE INDEX bridgecore_notice_at ON bridgecore_notice (at);

-- As in version 3, which does the work, with the notices of some of the responses.
CREATE FUNCTION bridgecore_commit_4(
    p_replica text, p_incarnation text, p_conversation bytea, p_epoch bigint,
    p_keys bytea[], p_parents bytea[], p_payloads bytea[], p_names bytea[], p_named bytea[],
    p_contexts bytea[], p_noticed bytea[], p_notices bytea[], OUT epoch bigint, OUT missing boolean
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
            WHERE old.at < clock_timestamp() - interval '1 day' FOR UPDATE SKIP LOCKED
        );
    END IF;
END $$;

-- As in version 1, which does the work. Returns no row if the lease has ended; else one row of nulls,
-- and the key and the notice of each response that was stored within twice the lease.
CREATE FUNCTION bridgecore_renew_4(p_replica text, p_incarnation text, p_ttl bigint)
RETURNS TABLE (o_key bytea, o_sealed bytea) LANGUAGE plpgsql AS $$
BEGIN
    IF NOT bridgecore_renew_1(p_replica, p_incarnation, p_ttl) THEN
        RETURN;
    END IF;
    RETURN NEXT;
    RETURN QUERY SELECT n.key, n.sealed FROM bridgecore_notice AS n
        WHERE n.at > clock_timestamp() - 2 * p_ttl * interval '1 microsecond';
END $$;
