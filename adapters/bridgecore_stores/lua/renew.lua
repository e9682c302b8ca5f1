-- replica, incarnation, ttl (ms). Returns whether the lease had not ended.
if not is_live(ARGV[1], ARGV[2]) then return 0 end
return redis.call('PEXPIRE', key_of('lease', ARGV[1]), ARGV[3])
