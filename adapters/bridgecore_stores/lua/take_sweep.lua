-- owner, ms. Returns whether it is the one that sweeps, for that long.
local sweeper = KEYS[1] .. ':sweeper'
local held = redis.call('GET', sweeper)
if held and held ~= ARGV[1] then return 0 end
redis.call('SET', sweeper, ARGV[1], 'PX', ARGV[2])
return 1
