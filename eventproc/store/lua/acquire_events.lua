-- Look up a batch of ids and lock those that are not final. Fenced, without revision.
--
-- With locks on events those that are only looked up are locked too: whoever finds its own lock on an id in
-- finalize_events knows that nobody has made it final since it was looked up here. Where ownership is the
-- lock they are not: nobody would come to take over what a dead owner has left.
--
-- KEYS
--   1    partition:<topic>:<p>
--   2    partition:<topic>:<p>:lock  template of a lock, which exists within a call only: a copy has its expiry,
--        and is made only where no key is
--   3..  per entry: event:<id>, dedup:<id>
--   then inflight:<id> of each entry
--   then gaps:<user> of each entry that is only looked up, in order
-- ARGV
--   1  epoch
--   2  owner
--   3  lock    our lock value, <topic>:<p>:<epoch>:<owner>
--   4  ours    what every lock of this partition begins with, <topic>:<p>:
--   5  ttl     life of a lock, ms
--   6  count   number of entries
--   7  looks   number of entries that are only looked up, below the expected seq
--   8  lock_looks  '1': lock these, too
--   9..  per such entry: its index (from 1, ascending) and its seq
-- Returns
--   {'ok', expiry}  every entry is granted; when the locks expire, ms by Redis's clock
--   {'ok', expiry, verdicts, ...}  one digit per entry: 0 granted, 1 final, 2 locked, 3 late, 4 stale, 5 foreign,
--                6 only looked up, and processed under this user and seq (as most that a restart reads again);
--                then for each entry that is final, in order: status, userId, seq, partition, offset,
--                attempts, error, reason as event:<id> has them ('' each where it does not, or when only
--                dedup:<id> is left);
--                and for each that is foreign, in its place in that order: the key that is in the way
--   {'fenced'}   another owner has the partition; nothing was locked
--   {'rewound'}  Redis has lost our claim; nothing was locked
--   error FOREIGN  the partition key is no hash
local KEYS, ARGV = KEYS, ARGV
local call, try = redis.call, redis.pcall
local chunk = 32 -- entries looked up by one EXISTS; one by one only where that finds something

local stored = try('HMGET', KEYS[1], 'epoch', 'owner')
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

local time = call('TIME')
local expiry = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[5])
local lock, ours = ARGV[3], ARGV[4]
local count, looks = tonumber(ARGV[6]), tonumber(ARGV[7])
local lock_looks = ARGV[8] == '1'
local seqs, with_looks = {}, {} -- by entry, and by the first entry of a chunk
for l = 9, 8 + 2 * looks, 2 do
  local i = tonumber(ARGV[l])
  seqs[i] = ARGV[l + 1]
  with_looks[i - (i - 1) % chunk] = true
end

local reply, verdicts = {'ok', expiry, ''}, {}

-- Whether the event is processed under the user of that gaps key and this seq.
local user_at = #KEYS[1] - #'partition:' - (#ours - 1) + #'gaps:' + 1 -- where the user begins in it
local function processed(event_key, gaps_key, seq)
  local fields = try('HMGET', event_key, 'status', 'seq', 'userId')
  return fields[1] == 'processed' and fields[2] == seq and fields[3] == string.sub(gaps_key, user_at)
end

local outcomes = {processed = true, failed = true, skipped = true}

-- Whether the fields that `found` has read are those of an event.
local function is_ours(fields)
  for f = 3, 6 do
    if fields[f] and not string.find(fields[f], '^%d*$') then
      return false
    end
  end
  return outcomes[fields[1]]
end

-- Answers the verdict for an entry of which a key exists, and appends its particulars to the reply.
local function found(event_key, dedup_key)
  local fields = try('HMGET', event_key, 'status', 'userId', 'seq', 'partition', 'offset', 'attempts', 'error',
    'reason')
  local foreign
  if fields.err then
    if not string.find(fields.err, 'WRONGTYPE', 1, true) then
      return nil, fields
    end
    foreign = event_key
  elseif fields[1] and not is_ours(fields) then
    foreign = event_key
  elseif not fields[1] then
    local kind = call('TYPE', dedup_key).ok
    if kind == 'none' then
      foreign = event_key
    elseif kind ~= 'string' then
      foreign = dedup_key
    end
  end
  if foreign then
    reply[#reply + 1] = foreign
    return '5'
  end
  for f = 1, 8 do
    reply[#reply + 1] = fields[1] and fields[f] or ''
  end
  return '1'
end

-- Answers '3' if the ledger covers seq, '4' if not, '5' for a foreign ledger. Its ranges ascend.
local function look(gaps_key, seq)
  local low, high = 0, try('LLEN', gaps_key)
  if type(high) == 'table' then
    if not string.find(high.err, 'WRONGTYPE', 1, true) then
      return nil, high
    end
    reply[#reply + 1] = gaps_key
    return '5'
  end
  high = high - 1
  while low <= high do
    local middle = math.floor((low + high) / 2)
    local first, last = string.match(call('LINDEX', gaps_key, middle), '^(%d+)%-(%d+):')
    if not first then
      reply[#reply + 1] = gaps_key
      return '5'
    end
    if seq < tonumber(first) then
      high = middle - 1
    elseif seq > tonumber(last) then
      low = middle + 1
    else
      return '3'
    end
  end
  return '4'
end

-- Answers the verdict for an entry whose lock exists.
local function contend(lock_key)
  local value = try('GET', lock_key)
  if type(value) == 'table' then
    if not string.find(value.err, 'WRONGTYPE', 1, true) then
      return nil, value
    end
    reply[#reply + 1] = lock_key
    return '5'
  end
  if value == lock then
    call('PEXPIREAT', lock_key, expiry)
    return '0'
  end
  if string.sub(value, 1, #ours) == ours then
    local older = tonumber(string.match(value, '^%d+', #ours + 1))
    if older and older < epoch then
      call('SET', lock_key, lock, 'PXAT', expiry)
      return '0'
    end
  end
  return '2'
end

-- Drops a lock that this partition has left on an id that is final.
local function drop(lock_key)
  local value = try('GET', lock_key)
  if type(value) == 'string' and string.sub(value, 1, #ours) == ours then
    call('DEL', lock_key)
  end
end

local template = KEYS[2]
local template_made
local function make_template()
  if not template_made then
    call('SET', template, lock, 'PXAT', expiry)
    template_made = true
  end
end

local plain = true
local locks = 2 + 2 * count
local gaps_at = locks + count

-- The last entry of the chunk that an entry is in.
local function end_of_chunk(i)
  return math.min(i - (i - 1) % chunk + chunk - 1, count)
end

-- Whether event:<id> or dedup:<id> of an entry exists. `present` are all keys from the first one asked about in a
-- chunk to its end.
local checked, present = 0, 0
local function exists(i)
  if i > checked then
    checked = end_of_chunk(i)
    present = call('EXISTS', unpack(KEYS, 2 * i + 1, 2 * checked + 2))
  end
  return present > 0 and call('EXISTS', KEYS[2 * i + 1], KEYS[2 * i + 2]) > 0
end

-- Whether an entry may have a lock.
local locks_checked, locked = 0, 0
local function may_be_locked(i)
  if i > locks_checked then
    locks_checked = end_of_chunk(i)
    locked = call('EXISTS', unpack(KEYS, locks + i, locks + locks_checked))
  end
  return locked > 0
end

-- Looks up and locks one entry with every check; answers an error that ends the call.
local function judge(i)
  local seq = seqs[i]
  local verdict, failure
  if seq then
    gaps_at = gaps_at + 1
  end
  if seq and processed(KEYS[2 * i + 1], KEYS[gaps_at], seq) then
    verdict = '6'
    if may_be_locked(i) then
      drop(KEYS[locks + i])
    end
  elseif exists(i) then
    verdict, failure = found(KEYS[2 * i + 1], KEYS[2 * i + 2])
    drop(KEYS[locks + i])
  elseif seq == '' then
    verdict = '4' -- it has no place in its user's order
  elseif seq then
    verdict, failure = look(KEYS[gaps_at], tonumber(seq))
  else
    verdict = '0'
  end
  local lockable = verdict == '0' or lock_looks and (verdict == '3' or verdict == '4')
  if lockable then
    make_template()
    if call('COPY', template, KEYS[locks + i]) == 0 then
      local held
      held, failure = contend(KEYS[locks + i])
      if held ~= '0' then
        verdict = held
      end
    end
  end
  if verdict ~= '0' then
    plain = false
  end
  verdicts[i] = verdict
  return failure
end

for first = 1, count, chunk do
  local last = end_of_chunk(first)
  local i = first
  -- the rule: no id of the chunk is known, and every lock is free
  if not with_looks[first] and not exists(first) and present == 0 then
    make_template()
    while i <= last and call('COPY', template, KEYS[locks + i]) == 1 do
      i = i + 1
    end
  end
  while i <= last do
    local failure = judge(i)
    if failure then
      return failure
    end
    i = i + 1
  end
end
if template_made then
  call('DEL', template)
end
if plain then
  return {'ok', expiry}
end
for i = 1, count do
  verdicts[i] = verdicts[i] or '0'
end
reply[3] = table.concat(verdicts)
return reply
