-- Version 3 of the tables in PostgreSQL: a commit says whether what it continues is still there.
--
-- What belongs here: what version 3 adds. A replica learns so that the server has lost responses, for
-- example because it was restored from a backup, and stores the whole conversation once more.

-- As in version 2. ``missing``: a response that one of these continues is not stored.
CREATE FUNCTION bridgecore_commit_3(
    p_replica text, p_incarnation text, p_conversation bytea, p_epoch bigint,
    p_keys bytea[], p_parents bytea[], p_payloads bytea[], p_names bytea[], p_named bytea[],
    p_contexts bytea[], OUT epoch bigint, OUT missing boolean
) LANGUAGE plpgsql AS $$
DECLARE
    held bridgecore_conversation;
    wanted bigint := CASE p_epoch WHEN 0 THEN 1 ELSE p_epoch END;
BEGIN
    missing := false;
    IF p_epoch = 0 THEN
        INSERT INTO bridgecore_conversation VALUES (p_conversation, 1, p_replica, p_incarnation)
            ON CONFLICT (id) DO NOTHING;
    END IF;
    -- Locked against claims, until the responses are stored.
    SELECT * INTO held FROM bridgecore_conversation WHERE id = p_conversation FOR SHARE;
    IF NOT FOUND THEN
        epoch := -1;
        RETURN;
    END IF;
    IF held.epoch <> wanted OR held.replica IS DISTINCT FROM p_replica
        OR held.incarnation IS DISTINCT FROM p_incarnation
    THEN
        epoch := -1 - held.epoch;
        RETURN;
    END IF;
    epoch := wanted;
    -- What is continued is not deleted by a sweep in the meantime.
    PERFORM 1 FROM bridgecore_response WHERE key = ANY (p_parents) FOR KEY SHARE;
    INSERT INTO bridgecore_response
        SELECT r.key, p_conversation, wanted, r.parent, clock_timestamp(), r.payload
        FROM unnest(p_keys, p_parents, p_payloads) AS r (key, parent, payload)
        ON CONFLICT (key) DO NOTHING;
    missing := EXISTS (
        SELECT FROM unnest(p_parents) AS p (parent)
        WHERE p.parent IS NOT NULL
            AND NOT EXISTS (SELECT FROM bridgecore_response AS r WHERE r.key = p.parent)
    );
    INSERT INTO bridgecore_name AS n
        SELECT * FROM unnest(p_names, p_named, p_contexts)
        ON CONFLICT (name) DO UPDATE SET response = EXCLUDED.response, context = EXCLUDED.context
        WHERE n.response <> EXCLUDED.response;
END $$;
