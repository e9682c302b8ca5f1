-- Version 3 of the tables in PostgreSQL: a commit says whether what it continues is still there.
--
-- What belongs here: what version 3 adds. By this a replica learns that the server has lost responses,
-- for example because it was restored from a backup, and stores the whole conversation once more.

-- As in version 2, which does the work. ``missing``: a response that one of these continues is not
-- stored.
CREATE FUNCTION bridgecore_commit_3(
    p_replica text, p_incarnation text, p_conversation bytea, p_epoch bigint,
    p_keys bytea[], p_parents bytea[], p_payloads bytea[], p_names bytea[], p_named bytea[],
    p_contexts bytea[], OUT epoch bigint, OUT missing boolean
) LANGUAGE plpgsql AS $$
BEGIN
    epoch := bridgecore_commit_2(
        p_replica, p_incarnation, p_conversation, p_epoch, p_keys, p_parents, p_payloads, p_names,
        p_named, p_contexts
    );
    missing := epoch > 0 AND EXISTS (
        SELECT FROM unnest(p_parents) AS p (parent)
        WHERE p.parent IS NOT NULL
            AND NOT EXISTS (SELECT FROM bridgecore_response AS r WHERE r.key = p.parent)
    );
END $$;
