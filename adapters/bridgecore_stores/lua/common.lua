-- What the scripts of all questions share; it is put before each of them.
--
-- What belongs here: the keys, and what is asked or changed by more than one question. All keys
-- begin with KEYS[1], which has a hash tag, so that a cluster keeps them in one place. A script is
-- carried out alone, so it needs no locks.
--
-- lease:REPLICA       hash: i (incarnation), a (URL, if there is one). It expires with the lease.
-- conversation:ID     hash: e (epoch), n (its responses), r and i (its owner, if there is one)
-- response:KEY        hash: c (conversation), e (epoch that wrote it), p (what it continues, if
--                     anything), d (payload), m (its names, 20 bytes each), and for each name of a
--                     context a field of that name: what it is a digest of, sealed
-- kids:KEY            how many responses continue it, if any
-- name:NAME           the key of the response that it names
-- used                sorted set: by the microsecond of its last use, each response
-- empty               sorted set: by the microsecond of the last look, each conversation without
--                     responses
-- noticed             sorted set: by the microsecond of its commit, each response with a notice
-- notices             hash: by the key of its response, each notice, sealed

local function key_of(kind, name) return KEYS[1] .. ':' .. kind .. ':' .. name end
local USED, EMPTY = KEYS[1] .. ':used', KEYS[1] .. ':empty'
local NOTICED, NOTICES = KEYS[1] .. ':noticed', KEYS[1] .. ':notices'
local NAME_SIZE = 20

-- Microseconds since 1970, as the server says. A double counts them exactly until the year 2255.
local function now()
    local time = redis.call('TIME')
    return time[1] * 1000000 + time[2]
end

local function whole(number) return string.format('%.0f', number) end

local function is_live(replica, incarnation)
    return redis.call('HGET', key_of('lease', replica), 'i') == incarnation
end

local function no_responses(conversation)
    redis.call('ZADD', EMPTY, whole(now()), conversation)
end

-- Key and payload of a response, and, if `load`, of those that it continues; the last one first.
-- Nothing if one of them is missing: half a transcript would be continued wrongly.
local function path_to(key, payload, parent, load)
    local path = {key, payload}
    while load and parent do
        local next = redis.call('HMGET', key_of('response', parent), 'p', 'd')
        if not next[2] then return nil end
        path[#path + 1] = parent
        path[#path + 1] = next[2]
        parent = next[1]
    end
    return path
end

-- Deletes a response; returns the key of what it continued, or false.
local function delete(key)
    local found = redis.call('HMGET', key_of('response', key), 'c', 'p', 'm')
    local conversation, parent, names = found[1], found[2], found[3]
    redis.call('DEL', key_of('response', key))
    redis.call('ZREM', USED, key)
    for first = 1, #names, NAME_SIZE do
        local name = key_of('name', names:sub(first, first + NAME_SIZE - 1))
        if redis.call('GET', name) == key then redis.call('DEL', name) end
    end
    if parent and redis.call('DECR', key_of('kids', parent)) <= 0 then
        redis.call('DEL', key_of('kids', parent))
    end
    if redis.call('HINCRBY', key_of('conversation', conversation), 'n', -1) <= 0 then
        no_responses(conversation)
    end
    return parent
end
