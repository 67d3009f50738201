-- Read the sequence state of users seen for the first time.
--
-- KEYS
--   per user: order:<user>, next:<user>
-- ARGV
--   none
-- Returns
--   a flat list, two per user: last seq of the order list ('' = none) and the next key ('' = none);
--   or '!' and the name of the key that has the wrong type or holds no seq
local reply = {}
for k = 1, #KEYS, 2 do
  local last = redis.pcall('LINDEX', KEYS[k], -1)
  local following = redis.pcall('GET', KEYS[k + 1])
  if type(last) == 'table' and not string.find(last.err, 'WRONGTYPE', 1, true) then
    return last
  end
  if type(following) == 'table' and not string.find(following.err, 'WRONGTYPE', 1, true) then
    return following
  end
  if type(last) == 'table' or (last and not string.find(last, '^%d+$')) then
    reply[k], reply[k + 1] = '!', KEYS[k]
  elseif type(following) == 'table' or (following and not string.find(following, '^%d+$')) then
    reply[k], reply[k + 1] = '!', KEYS[k + 1]
  else
    reply[k], reply[k + 1] = last or '', following or ''
  end
end
return reply
