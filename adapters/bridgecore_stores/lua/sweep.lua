-- A batch of a sweep. age (us) or, from the second one on, the time before which a response must
-- have been used (negative); how many of those that old to pass over; how many to look at; then
-- responses that may have become leaves. Returns that time, how many were deleted, how many to pass
-- over next, whether there are more (1), and responses that are to be given again.
local age, offset, limit = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local before = age >= 0 and now() - age or -age
local count = 0
local leaves = {}

local function is_leaf(key)
    local used = redis.call('ZSCORE', USED, key)
    return used and tonumber(used) < before and redis.call('EXISTS', key_of('kids', key)) == 0
end

-- Deletes a leaf, and what that makes a leaf. Each one is passed over no longer.
local function delete_up(key)
    while key and is_leaf(key) do
        if count >= 5 * limit then -- a long transcript: in several batches
            leaves[#leaves + 1] = key
            return
        end
        if redis.call('ZRANK', USED, key) < offset then offset = offset - 1 end
        key = delete(key)
        count = count + 1
    end
end

for n = 4, #ARGV do delete_up(ARGV[n]) end
local batch = redis.call('ZRANGEBYSCORE', USED, '-inf', '(' .. whole(before),
                         'LIMIT', offset, limit)
for _, key in ipairs(batch) do
    if redis.call('ZSCORE', USED, key) then
        delete_up(key)
        if redis.call('ZSCORE', USED, key) then offset = offset + 1 end
    end
end
return {whole(-before), count, offset, #batch > 0 and 1 or 0, unpack(leaves)}
