-- The end of a sweep, a batch of it: how many to look at, and the time of the first batch (nothing:
-- this is it). Deletes conversations with neither responses nor a live owner. Returns that time, and
-- whether there are more (1).
local time = ARGV[2] or whole(now())
local batch = redis.call('ZRANGEBYSCORE', EMPTY, '-inf', '(' .. time, 'LIMIT', 0, ARGV[1])
for _, conversation in ipairs(batch) do
    local place = key_of('conversation', conversation)
    local held = redis.call('HMGET', place, 'n', 'r', 'i')
    if held[1] and tonumber(held[1]) > 0 then
        redis.call('ZREM', EMPTY, conversation)
    elseif held[2] and is_live(held[2], held[3]) then
        no_responses(conversation) -- looked at again by the next sweep
    else
        redis.call('DEL', place)
        redis.call('ZREM', EMPTY, conversation)
    end
end
return {time, #batch > 0 and 1 or 0}
