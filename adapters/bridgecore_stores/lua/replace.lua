-- for each response: its key, the head that its payload must have, another payload.
for n = 1, #ARGV, 3 do
    local response, head = key_of('response', ARGV[n]), ARGV[n + 1]
    local payload = redis.call('HGET', response, 'd')
    if payload and payload:sub(1, #head) == head then
        redis.call('HSET', response, 'd', ARGV[n + 2])
    end
end
return 0
