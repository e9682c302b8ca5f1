-- replica, incarnation.
if is_live(ARGV[1], ARGV[2]) then redis.call('DEL', key_of('lease', ARGV[1])) end
return 0
