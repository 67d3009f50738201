-- Writes the effects of one processed event, unless its id has been processed before.
--
-- KEYS: 1 dedup:<id>, which is lock and marker; 2 event:<id>; 3 order:<userId>
-- ARGV: 1 userId; 2 type; 3 seq; 4 life of marker and hash in ms
-- Returns 1, or 0 for a duplicate.

if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[4]) then
  return 0
end
local time = redis.call('TIME')
local now_ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', KEYS[2], 'status', 'processed', 'processedAt', now_ms, 'attempts', '1', 'userId', ARGV[1],
  'type', ARGV[2], 'seq', ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
redis.call('RPUSH', KEYS[3], ARGV[3])
return 1
