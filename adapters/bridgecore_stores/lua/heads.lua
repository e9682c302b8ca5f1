-- how many bytes a head has, then keys of responses. Returns key, head and size of the payload of
-- each that is stored.
local answer = {}
for n = 2, #ARGV do
    local payload = redis.call('HGET', key_of('response', ARGV[n]), 'd')
    if payload then
        answer[#answer + 1] = ARGV[n]
        answer[#answer + 1] = payload:sub(1, tonumber(ARGV[1]))
        answer[#answer + 1] = #payload
    end
end
return answer
