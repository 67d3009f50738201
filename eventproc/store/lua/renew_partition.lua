-- Keep the partition and the locks of running events ours while a handler runs long. Fenced.
--
-- KEYS
--   1    partition:<topic>:<p>
--   2..  inflight:<id>
-- ARGV
--   1  epoch
--   2  owner
--   3  lock   our lock value, <topic>:<p>:<epoch>:<owner>
--   4  ttl    life of a lock from now on, ms
--   5  rev    of the last finalize call sent before ('' = none is sent meanwhile). Once a later one is applied
--             a missing lock may be one that it has dropped, and this call one that comes again
-- Returns
--   {'ok'}       seen_ms is now; our locks live for the full ttl, and those that had run out are ours again,
--                unless a later finalize call has been applied
--   {'ok', index, ...}  the same, but these locks (counted from 0) are another owner's by now
--   {'fenced'}   another owner has the partition
--   {'rewound'}  Redis has lost our claim
--   error FOREIGN  the partition key is no hash
local stored = redis.pcall('HMGET', KEYS[1], 'epoch', 'owner', 'rev')
if stored.err then
  if string.find(stored.err, 'WRONGTYPE', 1, true) then
    return redis.error_reply('FOREIGN key ' .. KEYS[1] .. ' is no hash: remove it, or set key_prefix')
  end
  return stored
end
local epoch, stored_epoch = tonumber(ARGV[1]), tonumber(stored[1])
if not stored_epoch or stored_epoch < epoch then
  return {'rewound'}
end
if stored_epoch > epoch or stored[2] ~= ARGV[2] then
  return {'fenced'}
end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local expiry = string.format('%.0f', now_ms + ARGV[4])
redis.call('HSET', KEYS[1], 'seen_ms', string.format('%.0f', now_ms))
local reply, may_take = {'ok'}, ARGV[5] == '' or ARGV[5] == stored[3]
for k = 2, #KEYS do
  if not may_take or not redis.call('SET', KEYS[k], ARGV[3], 'NX', 'PXAT', expiry) then
    local value = redis.call('MGET', KEYS[k])[1]
    if value == ARGV[3] then
      redis.call('PEXPIREAT', KEYS[k], expiry)
    elseif value or may_take then
      reply[#reply + 1] = k - 2
    end
  end
end
return reply
