-- Take an Idempotency-Key for a request, or learn what came of the one that had it.
--
-- KEYS
--   1  idempotency:<digest of API key, route and Idempotency-Key>
-- ARGV
--   1  body   digest of the request's body
--   2  token  names this attempt
--   3  lease  for so long nobody else may try, ms
--   4  ttl    life of the key from now on, ms
--   5  ids    the ids of the request's events, to be kept if this is the first attempt
-- Returns
--   {'new'}                  taken
--   {'again', ids, states}   taken: an earlier attempt ended without an answer, or with events that failed;
--                            its ids are to be used ('' = it never told the states)
--   {'done', ids, states}    it was answered
--   {'busy', ms}             another attempt is under way, for so long at most
--   {'other'}                the key was used with another body
--   error FOREIGN  the key is no hash
local key = KEYS[1]
local held = redis.pcall('HMGET', key, 'body', 'ids', 'states', 'lease', 'done')
if held.err then
  if string.find(held.err, 'WRONGTYPE', 1, true) then
    return redis.error_reply('FOREIGN key ' .. key .. ' is no hash: remove it, or set key_prefix')
  end
  return held
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = string.format('%.0f', now + ARGV[3])
local expiry = string.format('%.0f', now + ARGV[4])
if not held[1] then
  redis.call('HSET', key, 'body', ARGV[1], 'token', ARGV[2], 'lease', lease, 'ids', ARGV[5])
  redis.call('PEXPIREAT', key, expiry)
  return {'new'}
end
if held[1] ~= ARGV[1] then
  return {'other'}
end
if held[5] then
  return {'done', held[2], held[3] or ''}
end
local left = tonumber(held[4]) - now
if left > 0 then
  return {'busy', left}
end
redis.call('HSET', key, 'token', ARGV[2], 'lease', lease)
redis.call('PEXPIREAT', key, expiry)
return {'again', held[2], held[3] or ''}
