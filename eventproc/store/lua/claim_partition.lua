-- Take ownership of a partition, or learn who has it (CONTRACT section 6: fence, start, one owner). A death
-- is recorded with it, once: what ran then is a suspect from now on. Suspects run alone, so one that ran is
-- charged with the death (CONTRACT 4.9). Those below the position are forgotten. The last deaths are kept by
-- token, for a claim may be long under way, and be carried out when its sender has died, too.
--
-- KEYS
--   1  partition:<topic>:<p>
-- ARGV
--   1  owner     token of the claimant
--   2  claim     token of this call: the same call again answers the same and takes nothing anew
--   3  lease     how long another owner's silence is respected, ms
--   4  may_take  owner that may be superseded although its lease runs ('' = none)
--   5  force     '1': take it from anyone
--   6  offset    position to store if Redis holds none (-1 = none)
--   7  baseline  baseline to store with that position (-1 = none)
--   8  above     last epoch of the claimant (0 = none): the new one is above it even if Redis has lost that,
--                else a late call from before the loss would pass for one of the new claim
--   9  death     token of the death of the worker before, without spaces ('' = none, or nothing ran)
--   10 cause     what it died of
--   11.. offset of each record that ran then
-- Returns
--   {'ok', epoch, rev, offset, baseline, ...}  the partition is ours; offset and baseline are -1 when unknown;
--                                          then of each suspect its offset and '<deaths> <cause>'
--   {'held', owner, age_ms}                another owner's lease runs; nothing was written, unless it was last
--                                          seen in the future: then that was now
--   error FOREIGN                          the key is no hash of ours
--   error SCHEMA                           the key was written by a newer eventproc
local key = KEYS[1]
local owner, claim = ARGV[1], ARGV[2]
local schema = 1
local deaths_kept = 8

local stored = redis.pcall('HMGET', key, 'epoch', 'owner', 'rev', 'offset', 'baseline', 'seen_ms', 'schema', 'claim',
  'death')
if stored.err then
  if string.find(stored.err, 'WRONGTYPE', 1, true) then
    return redis.error_reply('FOREIGN key ' .. key .. ' is no hash: remove it, or set key_prefix')
  end
  return stored
end
if stored[7] and (tonumber(stored[7]) or 0) > schema then
  return redis.error_reply('SCHEMA ' .. stored[7] .. ' of key ' .. key .. ' is newer than ' .. schema ..
    ', which this version writes: upgrade eventproc, or set key_prefix')
end
for name, f in pairs({epoch = 1, rev = 3, offset = 4, baseline = 5}) do
  if stored[f] and not string.find(stored[f], '^%-?%d+$') then
    return redis.error_reply('FOREIGN key ' .. key .. ' has ' .. name .. ' ' .. stored[f] ..
      ', which is no number: remove it, or set key_prefix')
  end
end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local epoch = tonumber(stored[1])
local rev, offset, baseline = stored[3] or '0', stored[4] or '-1', stored[5] or '-1'

-- Appends the offset and what is known of each suspect.
local function append_suspects(list)
  local fields = redis.call('HGETALL', key)
  for f = 1, #fields, 2 do
    local at = string.match(fields[f], '^suspect:(%d+)$')
    if at then
      list[#list + 1], list[#list + 2] = at, fields[f + 1]
    end
  end
  return list
end

if epoch and stored[2] == owner and stored[8] == claim then
  local reply = {'ok', stored[1], rev, offset, baseline}
  return append_suspects(reply)
end
if epoch and ARGV[5] ~= '1' and stored[2] ~= owner and stored[2] ~= ARGV[4] then
  local age_ms = now_ms - (tonumber(stored[6]) or 0)
  if age_ms < 0 then -- the clock was set back: the lease runs from now, not until that time comes again
    redis.call('HSET', key, 'seen_ms', string.format('%.0f', now_ms))
    age_ms = 0
  end
  if age_ms < tonumber(ARGV[3]) then
    return {'held', stored[2] or '', string.format('%.0f', age_ms)}
  end
end

local floor, known = tonumber(offset), append_suspects({})
for s = 1, #known, 2 do
  if tonumber(known[s]) < floor then
    redis.call('HDEL', key, 'suspect:' .. known[s])
  else
    known[known[s]] = known[s + 1]
  end
end
local deaths = stored[9] or ''
if ARGV[9] ~= '' and not string.find(' ' .. deaths .. ' ', ' ' .. ARGV[9] .. ' ', 1, true) then
  local alone = {} -- what ran while nothing else did
  for a = 11, #ARGV do
    local before, deaths_alone = known[ARGV[a]], nil
    if not before and tonumber(ARGV[a]) >= floor then
      deaths_alone = 0
    elseif before and #ARGV == 11 then
      deaths_alone = tonumber(string.match(before, '^%d+')) + 1
    end
    if deaths_alone and #ARGV == 11 then
      alone = {'suspect:' .. ARGV[a], deaths_alone .. ' ' .. ARGV[10]}
    elseif deaths_alone then
      redis.call('HSET', key, 'suspect:' .. ARGV[a], '0 ' .. ARGV[10])
    end
  end
  local kept = {ARGV[9]}
  for death in string.gmatch(deaths, '%S+') do
    if #kept < deaths_kept then
      kept[#kept + 1] = death
    end
  end
  -- one write: were the script cut off between two, its repetition would charge twice
  redis.call('HSET', key, 'death', table.concat(kept, ' '), unpack(alone))
end

epoch = string.format('%.0f', math.max((epoch or 0) + 1, ARGV[8] + 1, now_ms))
local seen_ms = string.format('%.0f', now_ms)
-- one write: were the script cut off between two, its repetition would find the claim made, without a position
local position = {}
if not stored[4] and ARGV[6] ~= '-1' then
  offset, baseline = ARGV[6], ARGV[7]
  position = {'offset', offset}
  if baseline ~= '-1' then
    position[3], position[4] = 'baseline', baseline
  end
end
redis.call('HSET', key, 'epoch', epoch, 'owner', owner, 'claim', claim, 'rev', rev, 'seen_ms', seen_ms,
  'schema', schema, unpack(position))
redis.call('HDEL', key, 'started')
local reply = {'ok', epoch, rev, offset, baseline}
return append_suspects(reply)
