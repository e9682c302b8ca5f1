-- owner.
local sweeper = KEYS[1] .. ':sweeper'
if redis.call('GET', sweeper) == ARGV[1] then redis.call('DEL', sweeper) end
return 0
