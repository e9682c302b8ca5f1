-- replica, incarnation, then conversation and epoch of each.
for n = 3, #ARGV, 2 do
    local place = key_of('conversation', ARGV[n])
    local held = redis.call('HMGET', place, 'e', 'r', 'i')
    if held[1] == ARGV[n + 1] and held[2] == ARGV[1] and held[3] == ARGV[2] then
        redis.call('HDEL', place, 'r', 'i')
    end
end
return 0
