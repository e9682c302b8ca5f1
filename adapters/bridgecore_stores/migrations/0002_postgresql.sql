-- Version 2 of the tables in PostgreSQL: names of contexts that can be made anew.
--
-- What belongs here: what version 2 adds. The secret that has named a context can then be removed.

-- Of a context: what its name is a digest of, sealed. Null for an id, and for contexts of version 1,
-- which are not found any more when the secret that named them is removed.
ALTER TABLE bridgecore_name ADD COLUMN context bytea;

-- As in version 1, with the third column of names.
CREATE FUNCTION bridgecore_commit_2(
    p_replica text, p_incarnation text, p_conversation bytea, p_epoch bigint,
    p_keys bytea[], p_parents bytea[], p_payloads bytea[], p_names bytea[], p_named bytea[],
    p_contexts bytea[]
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    held bridgecore_conversation;
    wanted bigint := CASE p_epoch WHEN 0 THEN 1 ELSE p_epoch END;
BEGIN
    IF p_epoch = 0 THEN
        INSERT INTO bridgecore_conversation VALUES (p_conversation, 1, p_replica, p_incarnation)
            ON CONFLICT (id) DO NOTHING;
    END IF;
    -- Locked against claims, until the responses are stored.
    SELECT * INTO held FROM bridgecore_conversation WHERE id = p_conversation FOR SHARE;
    IF NOT FOUND THEN
        RETURN -1;
    END IF;
    IF held.epoch <> wanted OR held.replica IS DISTINCT FROM p_replica
        OR held.incarnation IS DISTINCT FROM p_incarnation
    THEN
        RETURN -1 - held.epoch;
    END IF;
    -- What is continued is not deleted by a sweep in the meantime.
    PERFORM 1 FROM bridgecore_response WHERE key = ANY (p_parents) FOR KEY SHARE;
    INSERT INTO bridgecore_response
        SELECT r.key, p_conversation, wanted, r.parent, clock_timestamp(), r.payload
        FROM unnest(p_keys, p_parents, p_payloads) AS r (key, parent, payload)
        ON CONFLICT (key) DO NOTHING;
    INSERT INTO bridgecore_name AS n
        SELECT * FROM unnest(p_names, p_named, p_contexts)
        ON CONFLICT (name) DO UPDATE SET response = EXCLUDED.response, context = EXCLUDED.context
        WHERE n.response <> EXCLUDED.response;
    RETURN wanted;
END $$;
