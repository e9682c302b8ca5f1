-- keys of responses. Returns, for each of their names that is one of a context: key, name, and what
-- it is a digest of (sealed).
local answer = {}
for _, key in ipairs(ARGV) do
    local response = key_of('response', key)
    local names = redis.call('HGET', response, 'm') or ''
    for first = 1, #names, NAME_SIZE do
        local name = names:sub(first, first + NAME_SIZE - 1)
        local sealed = redis.call('HGET', response, name)
        if sealed then
            answer[#answer + 1] = key
            answer[#answer + 1] = name
            answer[#answer + 1] = sealed
        end
    end
end
return answer
