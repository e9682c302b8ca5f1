-- for each name of a context: the response that it names, the name, another name, what that is a
-- digest of (sealed). A new name that is in use was stored later, and stays as it is.
for n = 1, #ARGV, 4 do
    local key, old, new, sealed = ARGV[n], ARGV[n + 1], ARGV[n + 2], ARGV[n + 3]
    local response = key_of('response', key)
    if redis.call('HDEL', response, old) == 1 then
        local names, kept = redis.call('HGET', response, 'm'), {}
        for first = 1, #names, NAME_SIZE do
            local name = names:sub(first, first + NAME_SIZE - 1)
            if name ~= old and name ~= new then kept[#kept + 1] = name end
        end
        -- It may name another response by now: then this one has no name of that context.
        if redis.call('GET', key_of('name', old)) == key then
            redis.call('DEL', key_of('name', old))
            redis.call('SET', key_of('name', new), key, 'NX')
        end
        if redis.call('GET', key_of('name', new)) == key then
            kept[#kept + 1] = new
            redis.call('HSET', response, new, sealed)
        end
        redis.call('HSET', response, 'm', table.concat(kept))
    end
end
return 0
