-- Version 1 of the tables in PostgreSQL, and a function for each question.
--
-- What belongs here: everything that one question needs, so that it is one statement and one round
-- trip. A later version adds functions with its own number and leaves these as they are, because
-- replicas of the earlier version may still call them.
--
-- Times are those of clock_timestamp(), because now() is the start of the transaction: after a wait
-- for a lock it is in the past. Locks are those of rows: a connection pool such as PgBouncer gives
-- each transaction another session, so that session locks would be lost.

CREATE TABLE bridgecore_lease (
    replica text PRIMARY KEY,
    incarnation text NOT NULL,
    advertise text,
    until timestamptz NOT NULL
);

CREATE TABLE bridgecore_conversation (
    id bytea PRIMARY KEY,
    epoch bigint NOT NULL,
    replica text,
    incarnation text
);

CREATE TABLE bridgecore_response (
    key bytea PRIMARY KEY,
    conversation bytea NOT NULL,
    epoch bigint NOT NULL, -- that wrote it
    parent bytea,
    used timestamptz NOT NULL,
    payload bytea NOT NULL
);
-- It is compressed and encrypted: trying to compress it again would be wasted.
ALTER TABLE bridgecore_response ALTER COLUMN payload SET STORAGE EXTERNAL;
CREATE INDEX bridgecore_response_parent ON bridgecore_response (parent) WHERE parent IS NOT NULL;
CREATE INDEX bridgecore_response_conversation ON bridgecore_response (conversation);
CREATE INDEX bridgecore_response_used ON bridgecore_response (used, key);

-- Ids and contexts alike: the digest by which a response is found.
CREATE TABLE bridgecore_name (
    name bytea PRIMARY KEY,
    response bytea NOT NULL
);
CREATE INDEX bridgecore_name_response ON bridgecore_name (response);

-- One row: who sweeps, and until when.
CREATE TABLE bridgecore_sweeper (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    replica text NOT NULL,
    incarnation text NOT NULL,
    until timestamptz NOT NULL
);

-- ns until a time.
CREATE FUNCTION bridgecore_left_1(until timestamptz) RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT (extract(epoch FROM until - clock_timestamp()) * 1000000000)::bigint
$$;

-- Begins a lease of p_ttl microseconds. Returns 0, or how long (ns) another has the name.
CREATE FUNCTION bridgecore_join_1(
    p_replica text, p_incarnation text, p_advertise text, p_ttl bigint
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    held bridgecore_lease;
    remaining bigint;
BEGIN
    INSERT INTO bridgecore_lease VALUES (p_replica, p_incarnation, p_advertise, '-infinity')
        ON CONFLICT (replica) DO NOTHING;
    SELECT * INTO STRICT held FROM bridgecore_lease WHERE replica = p_replica FOR UPDATE;
    IF held.incarnation <> p_incarnation THEN
        remaining := CASE WHEN isfinite(held.until) THEN bridgecore_left_1(held.until) ELSE 0 END;
        IF remaining > 0 THEN
            RETURN remaining;
        END IF;
    END IF;
    UPDATE bridgecore_lease
        SET incarnation = p_incarnation, advertise = p_advertise,
            until = clock_timestamp() + p_ttl * interval '1 microsecond'
        WHERE replica = p_replica;
    RETURN 0;
END $$;

-- Returns whether the lease is extended. It is not if it has ended. A claim that has found it ended
-- has locked its row, so that this sees the same: not both can succeed.
CREATE FUNCTION bridgecore_renew_1(p_replica text, p_incarnation text, p_ttl bigint)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    UPDATE bridgecore_lease SET until = clock_timestamp() + p_ttl * interval '1 microsecond'
        WHERE replica = p_replica AND incarnation = p_incarnation AND until > clock_timestamp();
    RETURN FOUND;
END $$;

CREATE FUNCTION bridgecore_leave_1(p_replica text, p_incarnation text)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM bridgecore_lease WHERE replica = p_replica AND incarnation = p_incarnation;
    RETURN FOUND;
END $$;

-- Looks up the response that the first known one of p_names names, and claims its conversation.
-- Returns one row, or for 'claimed' a row for each response of the path, the first one first.
-- o_taken: whether the conversation was not the owner's before.
CREATE FUNCTION bridgecore_resume_1(
    p_replica text, p_incarnation text, p_names bytea[], p_floor bigint, p_load boolean
) RETURNS TABLE (
    o_outcome text, o_conversation bytea, o_epoch bigint, o_replica text, o_incarnation text,
    o_advertise text, o_remaining bigint, o_taken boolean, o_key bytea, o_parent bytea,
    o_payload bytea
) LANGUAGE plpgsql AS $$
DECLARE
    found_key bytea;
    held bridgecore_conversation;
    lease bridgecore_lease;
BEGIN
    -- Not locked: if it ends in the meantime, whoever claims the conversation then does so after
    -- this, with a higher epoch.
    PERFORM 1 FROM bridgecore_lease
        WHERE replica = p_replica AND incarnation = p_incarnation AND until > clock_timestamp();
    IF NOT FOUND THEN
        o_outcome := 'ended';
        RETURN NEXT;
        RETURN;
    END IF;
    o_outcome := 'missing';
    SELECT n.response INTO found_key
        FROM unnest(p_names) WITH ORDINALITY AS asked (name, place)
        JOIN bridgecore_name n ON n.name = asked.name ORDER BY asked.place LIMIT 1;
    SELECT c.* INTO held FROM bridgecore_response r
        JOIN bridgecore_conversation c ON c.id = r.conversation
        WHERE r.key = found_key FOR UPDATE OF c;
    IF NOT FOUND THEN
        RETURN NEXT;
        RETURN;
    END IF;
    o_conversation := held.id;
    o_taken := held.replica IS DISTINCT FROM p_replica
        OR held.incarnation IS DISTINCT FROM p_incarnation;
    IF o_taken AND held.replica IS NOT NULL THEN
        -- Locked, so that its owner does not extend it while this takes it for ended.
        SELECT * INTO lease FROM bridgecore_lease
            WHERE replica = held.replica AND incarnation = held.incarnation FOR SHARE;
        IF FOUND THEN
            o_remaining := bridgecore_left_1(lease.until);
        END IF;
        IF o_remaining > 0 THEN
            o_outcome := 'elsewhere';
            o_epoch := held.epoch;
            o_replica := held.replica;
            o_incarnation := held.incarnation;
            o_advertise := lease.advertise;
            RETURN NEXT;
            RETURN;
        END IF;
    END IF;
    -- This also locks it: from here on a sweep deletes neither it nor what it continues.
    UPDATE bridgecore_response SET used = clock_timestamp() WHERE key = found_key;
    IF NOT FOUND THEN
        RETURN NEXT;
        RETURN;
    END IF;
    o_epoch := held.epoch;
    IF o_taken OR held.epoch <= p_floor THEN
        o_epoch := greatest(held.epoch, p_floor) + 1;
        UPDATE bridgecore_conversation
            SET epoch = o_epoch, replica = p_replica, incarnation = p_incarnation
            WHERE id = held.id;
    END IF;
    o_outcome := 'claimed';
    FOR o_key, o_parent, o_payload IN
        WITH RECURSIVE path (key, parent, payload, depth) AS (
            SELECT r.key, r.parent, r.payload, 0 FROM bridgecore_response r WHERE r.key = found_key
            UNION ALL
            SELECT next.key, next.parent, next.payload, path.depth + 1
            FROM path JOIN bridgecore_response next ON next.key = path.parent
            -- A path is as long as its transcript. More can only be a circle.
            WHERE p_load AND path.depth < 1000000
        )
        SELECT path.key, path.parent, path.payload FROM path ORDER BY path.depth DESC
    LOOP
        RETURN NEXT;
        -- Once is enough.
        o_conversation := NULL;
    END LOOP;
END $$;

-- Stores responses. Returns the epoch of the conversation if they are stored; minus it, less one,
-- if another owner has claimed it.
CREATE FUNCTION bridgecore_commit_1(
    p_replica text, p_incarnation text, p_conversation bytea, p_epoch bigint,
    p_keys bytea[], p_parents bytea[], p_payloads bytea[], p_names bytea[], p_named bytea[]
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
        SELECT * FROM unnest(p_names, p_named)
        ON CONFLICT (name) DO UPDATE SET response = EXCLUDED.response
        WHERE n.response <> EXCLUDED.response;
    RETURN wanted;
END $$;

CREATE FUNCTION bridgecore_release_1(
    p_replica text, p_incarnation text, p_conversations bytea[], p_epochs bigint[]
) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    UPDATE bridgecore_conversation c SET replica = NULL, incarnation = NULL
        FROM unnest(p_conversations, p_epochs) AS given (id, epoch)
        WHERE c.id = given.id AND c.epoch = given.epoch
        AND c.replica = p_replica AND c.incarnation = p_incarnation;
    RETURN FOUND;
END $$;

-- Begins a sweep, or goes on with it: returns whether the owner is the one that sweeps.
CREATE FUNCTION bridgecore_take_sweep_1(p_replica text, p_incarnation text)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    held bridgecore_sweeper;
BEGIN
    INSERT INTO bridgecore_sweeper VALUES (true, p_replica, p_incarnation, '-infinity')
        ON CONFLICT (one) DO NOTHING;
    SELECT * INTO STRICT held FROM bridgecore_sweeper FOR UPDATE;
    IF (held.replica <> p_replica OR held.incarnation <> p_incarnation)
        AND held.until > clock_timestamp()
    THEN
        RETURN false;
    END IF;
    UPDATE bridgecore_sweeper SET replica = p_replica, incarnation = p_incarnation,
        until = clock_timestamp() + interval '60 seconds';
    RETURN true;
END $$;

-- A batch of a sweep: of the p_limit responses after (p_used, p_key) that were last used before
-- p_before, deletes those that nothing continues, and then what they continued, as far as that is
-- now the same. Returns the last one that it looked at; nothing if there was none; and how many were
-- deleted. Rows that somebody has locked are in use.
CREATE FUNCTION bridgecore_sweep_1(
    p_before timestamptz, p_used timestamptz, p_key bytea, p_limit int
) RETURNS TABLE (o_used timestamptz, o_key bytea, o_count bigint) LANGUAGE plpgsql AS $$
DECLARE
    batch bytea[];
    gone bytea[];
    parents bytea[];
BEGIN
    o_count := 0;
    SELECT r.used, r.key INTO o_used, o_key FROM (
        SELECT used, key FROM bridgecore_response
        WHERE (used, key) > (p_used, p_key) AND used < p_before ORDER BY used, key LIMIT p_limit
    ) r ORDER BY r.used DESC, r.key DESC LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT array_agg(key) INTO batch FROM bridgecore_response
        WHERE (used, key) > (p_used, p_key) AND (used, key) <= (o_used, o_key);
    WHILE batch IS NOT NULL LOOP
        -- Two statements: the second one sees what was committed before the locks were had.
        SELECT array_agg(l.key) INTO batch FROM (
            SELECT key FROM bridgecore_response
            WHERE key = ANY (batch) AND used < p_before FOR UPDATE SKIP LOCKED
        ) l;
        WITH deleted AS (
            DELETE FROM bridgecore_response r WHERE r.key = ANY (batch)
            AND NOT EXISTS (SELECT 1 FROM bridgecore_response child WHERE child.parent = r.key)
            RETURNING r.key, r.parent
        )
        SELECT array_agg(d.key), array_agg(DISTINCT d.parent) FILTER (WHERE d.parent IS NOT NULL)
            INTO gone, parents FROM deleted d;
        DELETE FROM bridgecore_name WHERE response = ANY (gone);
        o_count := o_count + coalesce(cardinality(gone), 0);
        batch := parents;
    END LOOP;
    RETURN NEXT;
END $$;

-- The end of a sweep: of the p_limit conversations after p_id, deletes those with neither a response
-- nor a live owner. Returns the last one that it looked at; null if there was none.
CREATE FUNCTION bridgecore_forget_1(p_id bytea, p_limit int)
RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
    batch bytea[];
    result bytea;
BEGIN
    SELECT array_agg(c.id ORDER BY c.id) INTO batch FROM (
        SELECT id FROM bridgecore_conversation WHERE id > p_id ORDER BY id LIMIT p_limit
    ) c;
    result := batch[cardinality(batch)];
    SELECT array_agg(l.id) INTO batch FROM (
        SELECT id FROM bridgecore_conversation WHERE id = ANY (batch) FOR UPDATE SKIP LOCKED
    ) l;
    DELETE FROM bridgecore_conversation c WHERE c.id = ANY (batch)
        AND NOT EXISTS (SELECT 1 FROM bridgecore_response r WHERE r.conversation = c.id)
        AND NOT EXISTS (
            SELECT 1 FROM bridgecore_lease l WHERE l.replica = c.replica
            AND l.incarnation = c.incarnation AND l.until > clock_timestamp()
        );
    RETURN result;
END $$;

CREATE FUNCTION bridgecore_end_sweep_1(p_replica text, p_incarnation text)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    -- A replica without a name of its own has a new one after each start.
    DELETE FROM bridgecore_lease WHERE until < clock_timestamp();
    DELETE FROM bridgecore_sweeper WHERE replica = p_replica AND incarnation = p_incarnation;
    RETURN FOUND;
END $$;
