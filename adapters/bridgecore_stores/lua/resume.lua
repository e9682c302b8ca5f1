-- replica, incarnation, floor, whether to load the whole path (1), then names: the first known one
-- counts. Returns 'ended', or 'missing', or 'elsewhere', conversation, epoch, owner (2), URL, ms;
-- or 'claimed', conversation, epoch, whether it was not the owner's before (1), then key and payload
-- of each response, the last one first.
local replica, incarnation, floor = ARGV[1], ARGV[2], tonumber(ARGV[3])
if not is_live(replica, incarnation) then return {'ended'} end
local key = false
for n = 5, #ARGV do
    key = redis.call('GET', key_of('name', ARGV[n]))
    if key then break end
end
if not key then return {'missing'} end
local found = redis.call('HMGET', key_of('response', key), 'c', 'p', 'd')
local conversation, parent = found[1], found[2]
if not conversation then return {'missing'} end
local held = redis.call('HMGET', key_of('conversation', conversation), 'e', 'r', 'i')
if not held[1] then return {'missing'} end
local epoch, taken = tonumber(held[1]), held[2] ~= replica or held[3] ~= incarnation
if taken and held[2] and is_live(held[2], held[3]) then
    local lease = key_of('lease', held[2])
    local advertise = redis.call('HGET', lease, 'a')
    return {'elsewhere', conversation, epoch, held[2], held[3], advertise,
            redis.call('PTTL', lease)}
end
-- Before it is claimed: what was evicted or lost is missing as a whole.
local path = path_to(key, found[3], parent, ARGV[4] == '1')
if not path then return {'missing'} end
if taken or epoch <= floor then
    epoch = math.max(epoch, floor) + 1
    redis.call('HSET', key_of('conversation', conversation),
               'e', whole(epoch), 'r', replica, 'i', incarnation)
end
redis.call('ZADD', USED, whole(now()), key)
local answer = {'claimed', conversation, epoch, taken and 1 or 0}
for n = 1, #path do answer[n + 4] = path[n] end
return answer
