-- Drop the locks of events that will not run (drain). Fenced; only locks with our own value are touched.
--
-- KEYS
--   1    partition:<topic>:<p>
--   2..  inflight:<id>
-- ARGV
--   1  epoch
--   2  owner
--   3  lock   our lock value, <topic>:<p>:<epoch>:<owner>
-- Returns
--   {'ok'}       our locks among them are gone
--   {'fenced'}   another owner has the partition
--   {'rewound'}  Redis has lost our claim
--   error FOREIGN  the partition key is no hash
local max_arguments = 1000

local stored = redis.pcall('HMGET', KEYS[1], 'epoch', 'owner')
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

for first = 2, #KEYS, max_arguments do
  local last = math.min(first + max_arguments - 1, #KEYS)
  local values = redis.call('MGET', unpack(KEYS, first, last))
  for k = first, last do
    if values[k - first + 1] == ARGV[3] then
      redis.call('DEL', KEYS[k])
    end
  end
end
return {'ok'}
