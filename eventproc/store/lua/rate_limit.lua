-- Charge events to sliding window logs: each log is a sorted set, one member an event, scored by its time in us.
--
-- KEYS
--   1..  rate:<userId> and rate:ip:<ip>, each once
-- ARGV
--   1    window    ms
--   2    user_max  events of a user in the window
--   3    ip_max    events of an address in the window
--   4    call      unlike that of any other call; the members begin with it
--   5..  per group of events, three: number of the user's key in KEYS (0 = not limited), the same of the address,
--        how many events
-- Returns
--   a flat list: now in ms; then per group, two: how many of its events are within both limits (they are charged,
--   the others leave no trace; -1 = a key has the wrong type), and when there is room again, ms (0 = all accepted)
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local window = ARGV[1] * 1000
local user_max, ip_max = tonumber(ARGV[2]), tonumber(ARGV[3])
local expiry = string.format('%.0f', math.floor((now + window) / 1000) + 1)
local score = string.format('%.0f', now)
local used, members = {}, 0

-- How many more events the log takes; nil when its key holds something else. The log is cleared of what has left
-- the window only when it seems full: it never holds more than its limit.
local function room(k, max, wanted)
  if k == 0 then
    return wanted
  end
  local count = used[k] or redis.pcall('ZCARD', KEYS[k])
  if type(count) == 'table' then
    return nil, count
  end
  if count + wanted > max then
    redis.call('ZREMRANGEBYSCORE', KEYS[k], '-inf', string.format('%.0f', now - window))
    count = redis.call('ZCARD', KEYS[k])
  end
  used[k] = count
  return max - count
end

local function charge(k, count)
  if k == 0 or count == 0 then
    return
  end
  local left = count
  while left > 0 do
    local some = {}
    for _ = 1, math.min(left, 1000) do
      members = members + 1
      some[#some + 1] = score
      some[#some + 1] = ARGV[4] .. ':' .. members
    end
    redis.call('ZADD', KEYS[k], unpack(some))
    left = left - #some / 2
  end
  redis.call('PEXPIREAT', KEYS[k], expiry)
  used[k] = used[k] + count
end

local function free_at(k)
  if k == 0 then
    return 0
  end
  local oldest = redis.call('ZRANGE', KEYS[k], 0, 0, 'WITHSCORES')[2]
  return math.ceil(((oldest or now) + window) / 1000)
end

local reply = {string.format('%.0f', math.floor(now / 1000))}
for at = 5, #ARGV, 3 do
  local user, ip, wanted = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local of_user, user_error = room(user, user_max, wanted)
  local of_ip, ip_error = room(ip, ip_max, wanted)
  local wrong = user_error or ip_error
  if wrong then
    if not string.find(wrong.err, 'WRONGTYPE', 1, true) then
      return wrong
    end
    reply[#reply + 1] = -1
    reply[#reply + 1] = 0
  else
    local accepted = math.max(0, math.min(wanted, of_user, of_ip))
    charge(user, accepted)
    charge(ip, accepted)
    local again = 0
    if accepted < wanted then
      if of_user <= accepted then
        again = free_at(user)
      end
      if of_ip <= accepted then
        again = math.max(again, free_at(ip))
      end
    end
    reply[#reply + 1] = accepted
    reply[#reply + 1] = string.format('%.0f', again)
  end
end
return reply
