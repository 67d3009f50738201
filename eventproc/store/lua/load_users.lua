-- Read the sequence state of users seen for the first time.
--
-- KEYS
--   per user: order:<user>, next:<user>
-- ARGV
--   none
-- Returns
--   a flat list, three per user: last seq of the order list ('' = none), the next key ('' = none), and '1' if the
--   list is dense, so holds every seq from 1 to the last, else '';
--   or '!', the name of the key that has the wrong type or holds no seq, and ''
local reply = {}
local at = 1

-- Whether a value is a seq, at most this one of 16 digits.
local function is_seq(value, most)
  return string.find(value, '^%d+$') and (#value < 16 or #value == 16 and value <= most)
end

for k = 1, #KEYS, 2 do
  local last = redis.pcall('LINDEX', KEYS[k], -1)
  local following = redis.pcall('GET', KEYS[k + 1])
  if type(last) == 'table' and not string.find(last.err, 'WRONGTYPE', 1, true) then
    return last
  end
  if type(following) == 'table' and not string.find(following.err, 'WRONGTYPE', 1, true) then
    return following
  end
  local foreign
  if type(last) == 'table' or (last and not is_seq(last, '9007199254740991')) then
    foreign = KEYS[k]
  elseif type(following) == 'table' or (following and not is_seq(following, '9007199254740992')) then
    foreign = KEYS[k + 1]
  end
  if foreign then
    reply[at], reply[at + 1], reply[at + 2] = '!', foreign, ''
  else
    local dense = not last or redis.call('LLEN', KEYS[k]) == tonumber(last)
    reply[at], reply[at + 1], reply[at + 2] = last or '', following or '', dense and '1' or ''
  end
  at = at + 3
end
return reply
