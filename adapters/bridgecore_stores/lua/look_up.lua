-- Whether to load the whole path (1), and a name. Returns the conversation of the response, then key
-- and payload of each response of the path, the last one first; nothing if it is not stored.
local key = redis.call('GET', key_of('name', ARGV[2]))
if not key then return {} end
local found = redis.call('HMGET', key_of('response', key), 'c', 'p', 'd')
if not found[1] then return {} end
local path = path_to(key, found[3], found[2], ARGV[1] == '1')
if not path then return {} end
redis.call('ZADD', USED, whole(now()), key)
table.insert(path, 1, found[1])
return path
