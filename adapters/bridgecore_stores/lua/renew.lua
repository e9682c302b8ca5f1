-- replica, incarnation, ttl (ms). Returns nothing if the lease has ended; else 1, and the key and the
-- notice of each response that was stored within twice the lease.
if not is_live(ARGV[1], ARGV[2]) then return false end
redis.call('PEXPIRE', key_of('lease', ARGV[1]), ARGV[3])
local result = {1}
for _, key in ipairs(redis.call('ZRANGEBYSCORE', NOTICED, whole(now() - 2000 * ARGV[3]), '+inf')) do
    local notice = redis.call('HGET', NOTICES, key)
    if notice then
        result[#result + 1] = key
        result[#result + 1] = notice
    end
end
return result
