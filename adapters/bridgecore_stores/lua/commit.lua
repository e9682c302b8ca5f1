-- replica, incarnation, conversation, epoch, for how long notices are kept (microseconds), how many
-- there are; for each notice: key of its response, and it; then for each response: key, what it
-- continues (empty: nothing), payload, names together, and what the last name, that of a context, is
-- a digest of (sealed; empty: it is an id).
-- Returns the epoch, or a list with it if one that they continue is not stored;
-- minus the epoch, less one, if another has claimed the conversation.
local replica, incarnation, conversation = ARGV[1], ARGV[2], ARGV[3]
local place, given = key_of('conversation', conversation), tonumber(ARGV[4])
local wanted = given == 0 and 1 or given
local held = redis.call('HMGET', place, 'e', 'r', 'i')
if not held[1] then
    if given ~= 0 then return -1 end
    redis.call('HSET', place, 'e', 1, 'r', replica, 'i', incarnation, 'n', 0)
elseif tonumber(held[1]) ~= wanted or held[2] ~= replica or held[3] ~= incarnation then
    return -1 - tonumber(held[1])
end
local time = whole(now())
local notices = tonumber(ARGV[6])
for n = 7, 5 + 2 * notices, 2 do
    redis.call('ZADD', NOTICED, time, ARGV[n])
    redis.call('HSET', NOTICES, ARGV[n], ARGV[n + 1])
end
if notices > 0 then
    -- Renewals have returned these to each replica.
    local before = whole(time - ARGV[5])
    for _, key in ipairs(redis.call('ZRANGEBYSCORE', NOTICED, '-inf', before)) do
        redis.call('HDEL', NOTICES, key)
        redis.call('ZREM', NOTICED, key)
    end
end
local FIRST = 7 + 2 * notices
for n = FIRST, #ARGV, 5 do
    local key, parent, payload, names = ARGV[n], ARGV[n + 1], ARGV[n + 2], ARGV[n + 3]
    local response = key_of('response', key)
    local known = redis.call('HGET', response, 'm')
    if not known then
        redis.call('HSET', response, 'c', conversation, 'e', whole(wanted), 'd', payload)
        if parent ~= '' then
            redis.call('HSET', response, 'p', parent)
            redis.call('INCR', key_of('kids', parent))
        end
        redis.call('ZADD', USED, time, key)
        redis.call('HINCRBY', place, 'n', 1)
    end
    local all = known or ''
    for first = 1, #names, NAME_SIZE do
        local name = names:sub(first, first + NAME_SIZE - 1)
        redis.call('SET', key_of('name', name), key)
        -- A match that begins within another name is only a name too many, or too few to delete.
        if not all:find(name, 1, true) then all = all .. name end
    end
    if ARGV[n + 4] ~= '' then redis.call('HSET', response, names:sub(-NAME_SIZE), ARGV[n + 4]) end
    if all ~= known then redis.call('HSET', response, 'm', all) end
end
if redis.call('HGET', place, 'n') == '0' then no_responses(conversation) end
for n = FIRST + 1, #ARGV, 5 do
    local parent = ARGV[n]
    if parent ~= '' and redis.call('EXISTS', key_of('response', parent)) == 0 then
        return { wanted }
    end
end
return wanted
