-- Write down what came of a request with an Idempotency-Key. An attempt that was overtaken writes nothing.
--
-- KEYS
--   1  idempotency:<digest of API key, route and Idempotency-Key>
-- ARGV
--   1  token   of the attempt
--   2  how     done (this is the answer from now on), open (the next attempt may begin at once), drop (forget it)
--   3  states  a letter for each event
-- Returns
--   {'ok'}
--   {'lost'}  another attempt has the key, or it has run out
local key = KEYS[1]
if redis.call('HMGET', key, 'token')[1] ~= ARGV[1] then
  return {'lost'}
end
if ARGV[2] == 'drop' then
  redis.call('DEL', key)
elseif ARGV[2] == 'done' then
  redis.call('HSET', key, 'states', ARGV[3], 'done', 1)
  redis.call('HDEL', key, 'lease', 'token')
else
  redis.call('HSET', key, 'states', ARGV[3], 'lease', 0)
end
return {'ok'}
