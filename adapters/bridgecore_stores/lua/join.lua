-- replica, incarnation, ttl (ms), the incarnation before or '', URL or nothing. Returns 0, or for how
-- long (ms) the name is taken.
local lease = key_of('lease', ARGV[1])
local held = redis.call('HGET', lease, 'i')
if held and held ~= ARGV[2] and held ~= ARGV[4] then return math.max(1, redis.call('PTTL', lease)) end
redis.call('DEL', lease)
redis.call('HSET', lease, 'i', ARGV[2])
if ARGV[5] then redis.call('HSET', lease, 'a', ARGV[5]) end
redis.call('PEXPIRE', lease, ARGV[3])
return 0
