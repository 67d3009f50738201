-- Write the effects of a batch and the floor they allow, once: fenced, and guarded by the revision.
--
-- Per user (a group), atomically and in this order: gaps, then entries by seq. An id that is not final gets
-- its hash and marker; a seq beyond the list's last is appended to it if its id is (or was already) processed
-- under it; any other seq, failed or final in another way, moves the user on by the next key. A dead letter
-- is written once per record, known by its partition and offset.
--
-- The next key only ever grows, and goes once the list tells as much.
--
-- Refused entries: FINAL (1), the id is final already, under this user and seq or by its marker alone;
-- CONFLICT (2), it is final under another user or seq; FOREIGN (3), a key of the wrong type is in the way.
-- After 1 and 2 the user moves on past that seq. After 3 the group stops: what follows in it is refused
-- as FOREIGN too. A group whose order, next or gaps key is foreign is refused as a whole, unwritten.
-- The offsets of 2 and 3 hold the floor, and those of 1 unless the event is processed. The lock of every entry
-- in the call is dropped if it is ours, or an earlier owner's of this partition.
--
-- An error in mid-script keeps what was written, so the same call may come again: `started` tells that
-- this revision was begun before. What is found final under the same user and seq is then its own work, and
-- so is a marker without hash.
-- The first write can be refused for lack of memory, so a call that is refused for that has written nothing.
--
-- What is simply processed at the first attempt is copied from templates, which exist within a call only: one
-- command makes the whole hash with its expiry, and answers 0 if the key exists already.
--
-- A list is dense if it holds every seq from 1 on, as far as its owner knows. Then its length tells its last seq,
-- and RPUSH answers the length: no look-up. If the owner was wrong, since another partition has pushed for the
-- user too, what was written for the group is taken back, and done again with every check. The owner is told, also
-- when a seq was not pushed, for the list was that far already: it may have the length of a dense one by and by.
--
-- KEYS
--   1   partition:<topic>:<p>
--   2   dlq:list
--   3   partition:<topic>:<p>:event   template of a hash
--   4   partition:<topic>:<p>:dedup   template of a marker
--   5.. event:<id> of each writable (grouped or loose) entry, then dedup:<id> of each, then the locks inflight:<id>
--   then per group: order:<user>; next:<user> if the group has more to tell; gaps:<user> if it has gaps
--   then dlq:<id> of each detail with a reason
-- ARGV
--   1  epoch
--   2  owner
--   3  rev            number of this call; the stored one must be one less
--   4  floor          offset, if everything is applied
--   5  unfinalized    records at or above the floor that are not final
--   6  ours           what every lock of this partition begins with, <topic>:<p>:
--   7  event_ttl      ms
--   8  dedup_ttl      ms
--   9  dlq_ttl        ms
--   10 order_max_len  0 = unlimited
--   11 gaps_max_len
--   12 dlq_max_len
--   13 topic
--   14 partition
--   15 offsets        of all entries, separated by spaces
--   16 grouped        number of entries in groups
--   17 loose          number of entries after those that get a hash, but have no place in an order
--   18 letters        number of entries after those that get a dead letter only
--   19 locks          number of locks
--   20 held_until     up to when no lock of these can have expired, ms by Redis's clock; 0: not known
--   21 groups         number of groups
--   22 details        number of details
--   23 types          number of types
--   24 type of each writable entry, two bytes each: its number among the types, from 0, the high byte first
--   25 shape of each group, two bytes each, the high one first: four times the number of its entries, and two more
--        if its list is dense, and one more if it has more to tell
--   26 order:  what the name of a user's order list begins with
--   27 next:   the same of its next key, for a group without one in KEYS of which an entry is refused
--   28.. the types, then seq of each entry ('' = unsequenced), then user of each entry that is in no group
--   then per group that has more to tell: '1' if next:<user> may exist else '0', the number of its gaps, then
--        per gap first, last and reason
--   then per detail, for every entry that is not simply processed at the first attempt: its index (from 1),
--        status ('' = final already, it only moves its user on; then attempts is '1' if its seq belongs in
--        the order), attempts, error, offset, reason
--        ('' = no dead letter), id, raw bytes of the record
-- Returns
--   {'ok', floor}           everything is applied; this floor is stored (-1 = none)
--   {'ok', floor, refused}  the rest is; refused is a text of `<entry>:<code>,` for each refused entry,
--                           `<group>=<length>:<key>,` for the foreign key of a group and `<group>!,` for a list
--                           that is not dense, all counted from 0; entries outside the groups count as groups
--                           of their own after them. The same call again answers the same
--   {'fenced'}              another owner has the partition; nothing was written
--   {'rewound'}             Redis has lost our claim or earlier calls; nothing was written
--   error FOREIGN           the partition key is no hash
local KEYS, ARGV = KEYS, ARGV
local call, try = redis.call, redis.pcall
local sub, tonumber, type, find, format, byte = string.sub, tonumber, type, string.find, string.format, string.byte
local max_arguments = 1000 -- of one call; unpack overflows the stack a few thousand further on
local short = 64 -- bytes of a field up to which Redis keeps hashes packed, by default; longer ones leave no template
local FINAL, CONFLICT, FOREIGN = 1, 2, 3

local stored = try('HMGET', KEYS[1], 'epoch', 'owner', 'rev', 'offset', 'rejects', 'started')
if stored.err then
  if find(stored.err, 'WRONGTYPE', 1, true) then
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
local rev, stored_rev = tonumber(ARGV[3]), tonumber(stored[3]) or 0
if stored_rev >= rev then
  return {'ok', stored[4] or '-1', stored_rev == rev and stored[5] or nil}
end
if stored_rev < rev - 1 then
  return {'rewound'}
end
local again = stored[6] == ARGV[3]

local time = call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now = format('%.0f', now_ms)
local event_expiry = format('%.0f', now_ms + ARGV[7])
local dedup_expiry = format('%.0f', now_ms + ARGV[8])
local dlq_expiry = format('%.0f', now_ms + ARGV[9])
local order_max_len, gaps_max_len, dlq_max_len = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
local topic, partition = ARGV[13], ARGV[14]
local grouped, loose, letters = tonumber(ARGV[16]), tonumber(ARGV[17]), tonumber(ARGV[18])
local locks, groups, details = tonumber(ARGV[19]), tonumber(ARGV[21]), tonumber(ARGV[22])
local writable, entries = grouped + loose, grouped + loose + letters

local begun = try('HSET', KEYS[1], 'started', ARGV[3])
if type(begun) == 'table' then
  return begun
end

-- Where the columns begin: entry i is at <column> + i.
local event_keys, dedup_keys, lock_keys = 4, 4 + writable, 4 + 2 * writable
local seqs = 27 + tonumber(ARGV[23])
local users = seqs + entries - grouped -- of ungrouped entries only
local group_keys = lock_keys + locks

-- The details are last; each begins at ARGV[detail[i]].
local detail, letter_key = {}, {}
do
  local at = #ARGV - 8 * details + 1
  local with_reason = 0
  for d = 0, details - 1 do
    if ARGV[at + 8 * d + 5] ~= '' then
      with_reason = with_reason + 1
    end
  end
  local k = #KEYS - with_reason
  for _ = 1, details do
    local i = tonumber(ARGV[at])
    detail[i] = at
    if ARGV[at + 5] ~= '' then
      k = k + 1
      letter_key[i] = KEYS[k]
    end
    at = at + 8
  end
end

local refused, offsets = {}, nil
local floor = tonumber(ARGV[4])

local function refuse(i, code, status)
  refused[#refused + 1] = (i - 1) .. ':' .. code .. ','
  -- one that is final, but not processed, may be this very record, whose dead letter is still to be produced
  if code ~= FINAL or status ~= 'processed' then
    if not offsets then
      offsets = {}
      for offset in string.gmatch(ARGV[15], '%d+') do
        offsets[#offsets + 1] = tonumber(offset)
      end
    end
    if offsets[i] < floor then
      floor = offsets[i]
    end
  end
end

local function name_foreign(group, key)
  refused[#refused + 1] = group .. '=' .. #key .. ':' .. key .. ','
end

-- True for the WRONGTYPE error; any other error ends the call.
local function wrong_type(answer)
  if type(answer) ~= 'table' or not answer.err then
    return false
  end
  if not find(answer.err, 'WRONGTYPE', 1, true) then
    error(answer.err)
  end
  return true
end

-- Answers the foreign key that keeps entry i from being dead-lettered, or what dlq:<id> holds.
local dlq_list_is_ours
local function look_up_letter(i)
  if dlq_list_is_ours == nil then
    dlq_list_is_ours = not wrong_type(try('LLEN', KEYS[2]))
  end
  if not dlq_list_is_ours then
    return KEYS[2]
  end
  local found = try('HMGET', letter_key[i], 'partition', 'offset', 'topic')
  if wrong_type(found) then
    return letter_key[i]
  end
  return nil, found
end

local function write_letter(i, user, found)
  local at, key = detail[i], letter_key[i]
  if found[1] == partition and found[2] == ARGV[at + 4] and found[3] == topic then
    if again then
      call('PEXPIREAT', key, dlq_expiry)
    end
    return
  end
  local length = 0
  if not (again and call('LPOS', KEYS[2], ARGV[at + 6], 'RANK', '-1', 'MAXLEN', entries)) then
    length = call('RPUSH', KEYS[2], ARGV[at + 6])
  end
  if again or length > dlq_max_len then
    call('LTRIM', KEYS[2], -dlq_max_len, -1)
  end
  if found[1] then
    call('DEL', key)
  end
  call('HSET', key, 'eventId', ARGV[at + 6], 'attempts', ARGV[at + 2], 'error', ARGV[at + 3], 'queuedAt', now,
    'reason', ARGV[at + 5], 'userId', user, 'seq', ARGV[seqs + i], 'topic', topic, 'partition', partition,
    'offset', ARGV[at + 4], 'raw', ARGV[at + 7])
  call('PEXPIREAT', key, dlq_expiry)
end

-- The type of writable entry i.
local types = ARGV[24]
local function type_of(i)
  local high, low = byte(types, 2 * i - 1, 2 * i)
  return ARGV[28 + 256 * high + low]
end

-- Writes hash and marker of an entry, and its dead letter if it has one.
local function write_event(i, user, letter)
  local at, seq = detail[i], ARGV[seqs + i]
  local status = at and ARGV[at + 1] or 'processed'
  local fields = {'status', status, 'processedAt', now, 'attempts', at and ARGV[at + 2] or '1', 'userId', user,
    'type', type_of(i)}
  local n = #fields
  if seq ~= '' then
    fields[n + 1], fields[n + 2] = 'seq', seq
    n = n + 2
  end
  if status ~= 'processed' then
    fields[n + 1], fields[n + 2], fields[n + 3], fields[n + 4] = 'error', ARGV[at + 3], 'partition', partition
    fields[n + 5], fields[n + 6] = 'offset', ARGV[at + 4]
    if ARGV[at + 5] ~= '' then
      fields[n + 7], fields[n + 8] = 'reason', ARGV[at + 5]
    end
  end
  -- The marker comes last: were the call cut off before it and never repeated, a marker alone would pass
  -- for a final event.
  if letter then
    write_letter(i, user, letter)
  end
  call('HSET', KEYS[event_keys + i], unpack(fields))
  call('PEXPIREAT', KEYS[event_keys + i], event_expiry)
  call('SET', KEYS[dedup_keys + i], '1', 'PXAT', dedup_expiry)
  return nil, status
end

-- Applies writable entry i with every check. Answers nil or the code it is refused with; then the status
-- the id is final with ('' = only its marker tells), or the foreign key.
local function apply(i, user)
  local event_key, dedup_key, at = KEYS[event_keys + i], KEYS[dedup_keys + i], detail[i]
  local foreign, letter
  if letter_key[i] then
    foreign, letter = look_up_letter(i)
    if foreign then
      return FOREIGN, foreign
    end
  end
  if call('EXISTS', event_key, dedup_key) == 0 then
    return write_event(i, user, letter)
  end
  local found = try('HMGET', event_key, 'status', 'userId', 'seq', 'partition', 'offset')
  if wrong_type(found) then
    return FOREIGN, event_key
  end
  local status = found[1]
  if not status then
    local kind = call('TYPE', dedup_key).ok
    if kind ~= 'string' then
      return FOREIGN, kind == 'none' and event_key or dedup_key
    end
    if again and call('EXISTS', event_key) == 0 then
      return write_event(i, user, letter)
    end
    return FINAL, ''
  end
  if found[2] ~= user or (found[3] or '') ~= ARGV[seqs + i] then
    return CONFLICT, status
  end
  if status == 'processed' then
    if not again then
      return FINAL, status
    end
  elseif not at or found[4] ~= partition or found[5] ~= ARGV[at + 4] then
    return FINAL, status
  end
  if again then
    call('PEXPIREAT', event_key, event_expiry)
    call('SET', dedup_key, '1', 'PXAT', dedup_expiry)
  end
  if letter then
    write_letter(i, user, letter)
  end
  return nil, status
end

-- Appends the seqs of entries first..last to a list.
local function push(order_key, first, last)
  local length
  for from = first, last, max_arguments do
    local to = from + max_arguments - 1
    length = call('RPUSH', order_key, unpack(ARGV, seqs + from, seqs + (to < last and to or last)))
  end
  if order_max_len > 0 and length > order_max_len then
    call('LTRIM', order_key, -order_max_len, -1)
  end
end

-- Makes the templates those of an event that is simply processed.
local event_template, dedup_template = KEYS[3], KEYS[4]
local template_user, template_type
local function set_templates(user, kind, seq)
  if template_user and kind == template_type then
    if user == template_user then
      call('HSET', event_template, 'seq', seq)
    else
      call('HSET', event_template, 'seq', seq, 'userId', user)
      template_user = user
    end
    return
  end
  if template_user then
    call('HSET', event_template, 'seq', seq, 'type', kind, 'userId', user)
  else
    call('DEL', event_template, dedup_template)
    -- what changes comes first, for Redis searches from there
    call('HSET', event_template, 'seq', seq, 'type', kind, 'userId', user, 'status', 'processed',
      'processedAt', now, 'attempts', '1')
    call('PEXPIREAT', event_template, event_expiry)
    call('SET', dedup_template, '1', 'PXAT', dedup_expiry)
  end
  template_user, template_type = user, kind
end

-- Writes hash and marker of an entry that is simply processed. Answers false if either was there, and for what
-- no template is made of; nothing is written then.
local function write_copy(i, user)
  local kind, event_key = type_of(i), KEYS[event_keys + i]
  if again or #user > short or #kind > short then
    return false
  end
  set_templates(user, kind, ARGV[seqs + i])
  if call('COPY', event_template, event_key) == 0 then
    return false
  end
  if call('COPY', dedup_template, KEYS[dedup_keys + i]) == 0 then
    call('DEL', event_key)
    return false
  end
  return true
end

local function name_not_dense(group)
  refused[#refused + 1] = group .. '!,'
end

-- The number that next:<user> holds, 0 if there is none, nil if the key is foreign.
local function read_next(key)
  local value = try('GET', key)
  if wrong_type(value) then
    return nil
  end
  return value and tonumber(value) or not value and 0 or nil
end

local user_at = #ARGV[26] + 1 -- where the user begins in the name of an order list
local function apply_group(g, first, count, order_key, has_next, gaps, argument, next_key, gaps_key)
  local user = sub(order_key, user_at)
  local tail = try('LINDEX', order_key, '-1')
  local last = 0
  local foreign
  if tail then
    last = tonumber(tail)
    if not last then
      if type(tail) == 'table' then
        wrong_type(tail)
      end
      foreign = order_key
    end
  end
  local stored_next -- nil as long as it has not been needed
  if not foreign and (has_next or gaps > 0) then
    stored_next = read_next(next_key)
    foreign = not stored_next and next_key or nil
  end
  local ledger
  if not foreign and gaps > 0 then
    ledger = try('LINDEX', gaps_key, '-1')
    foreign = wrong_type(ledger) and gaps_key or nil
  end
  if foreign then
    for i = first, first + count - 1 do
      refuse(i, FOREIGN)
    end
    name_foreign(g, foreign)
    return
  end

  local ahead = 0 -- the seq that the next key has to tell, if the list does not
  if gaps > 0 then
    local covered = ledger and tonumber(string.match(ledger, '^%d+%-(%d+):')) or 0
    local length = 0
    local at = argument
    for _ = 1, gaps do
      if tonumber(ARGV[at]) > covered then
        length = call('RPUSH', gaps_key, ARGV[at] .. '-' .. ARGV[at + 1] .. ':' .. ARGV[at + 2] .. ':' .. now)
      end
      ahead = tonumber(ARGV[at + 1]) + 1
      at = at + 3
    end
    if length > gaps_max_len then
      call('LTRIM', gaps_key, -gaps_max_len, -1)
    end
  end

  local from, to = first, first - 1 -- entries to push
  local behind = false -- a seq is not pushed, for the list is that far already
  for i = first, first + count - 1 do
    local seq, at = tonumber(ARGV[seqs + i]), detail[i]
    local code, status
    if not at and write_copy(i, user) then
      status = 'processed'
    else
      if at and not stored_next and ARGV[at + 1] ~= 'processed' then
        stored_next = read_next(next_key)
        if not stored_next then
          code, status = FOREIGN, next_key
        end
      end
      if not code and at and ARGV[at + 1] == '' then
        status = ARGV[at + 2] == '1' and 'processed' or 'passed'
      elseif not code then
        code, status = apply(i, user)
        if code ~= FOREIGN and not stored_next and (code == CONFLICT or status ~= 'processed') then
          next_key = next_key or ARGV[27] .. user
          stored_next = read_next(next_key)
          if not stored_next then
            code, status = FOREIGN, next_key
          end
        end
      end
    end
    if code == FOREIGN then
      for j = i, first + count - 1 do
        refuse(j, FOREIGN)
      end
      name_foreign(g, status)
      break
    end
    if code then
      refuse(i, code, status)
    end
    if status == 'processed' and code ~= CONFLICT then
      if seq > last then
        if to < i - 1 then
          if to >= from then
            push(order_key, from, to)
          end
          from = i
        end
        to, last = i, seq
      elseif order_max_len == 0 then
        local mine = again and call('LPOS', order_key, ARGV[seqs + i], 'RANK', '-1', 'MAXLEN', entries)
        behind = behind or not mine
      end
    elseif seq >= ahead then
      ahead = seq + 1
    end
  end
  if to >= from then
    push(order_key, from, to)
  end
  if behind then
    name_not_dense(g)
  end
  if stored_next then
    if ahead > stored_next and ahead > last + 1 then
      call('SET', next_key, format('%.0f', ahead))
    elseif stored_next > 0 and stored_next <= last + 1 then
      call('DEL', next_key)
    end
  end
end

-- Takes back what was written for entries first..last of a group whose list is not dense after all. `length` is
-- what RPUSH answered, nil if nothing was pushed.
local function take_back(order_key, first, last, length)
  if type(length) == 'number' then
    call('LTRIM', order_key, 0, first - last - 2)
  elseif length then
    wrong_type(length)
  end
  for i = first, last do
    call('DEL', KEYS[event_keys + i], KEYS[dedup_keys + i])
  end
end

-- Writes group g of ordinary entries whose list is dense. Answers false if that cannot be; nothing is written then.
local function apply_dense(g, first, last, order_key)
  local user = sub(order_key, user_at)
  local i = first
  while i <= last and write_copy(i, user) do
    i = i + 1
  end
  local length
  if i > last then
    length = try('RPUSH', order_key, unpack(ARGV, seqs + first, seqs + last))
    if length == ARGV[seqs + last] + 0 then
      return true
    end
    name_not_dense(g)
  end
  take_back(order_key, first, i - 1, length)
  return false
end

local first, argument, shapes = 1, seqs + 1 + entries + loose + letters, ARGV[25]
local may_be_dense = order_max_len == 0 and not again
local single = may_be_dense and 6 -- shape of one ordinary entry of a dense list
local at_once, kinds, kinds_from, kinds_to = 100, nil, 1, 0 -- how many shapes or types are read by one call
for from = 0, groups - 1, at_once do
  local bytes = {byte(shapes, 2 * from + 1, 2 * math.min(from + at_once, groups))}
  for at = 1, #bytes, 2 do
    local shape, order_key = 256 * bytes[at] + bytes[at + 1], KEYS[group_keys + 1]
    local done, tried = false, false
    if shape == single then -- the rule; the same as apply_dense
      if first > kinds_to then
        kinds_from, kinds_to = first, first + at_once - 1
        kinds = {byte(types, 2 * kinds_from - 1, 2 * kinds_to)}
      end
      local k = 2 * (first - kinds_from)
      local user, seq, event_key = sub(order_key, user_at), ARGV[seqs + first], KEYS[event_keys + first]
      local kind = ARGV[28 + 256 * kinds[k + 1] + kinds[k + 2]]
      if #user <= short and #kind <= short then
        set_templates(user, kind, seq)
        if call('COPY', event_template, event_key) == 1 then
          if call('COPY', dedup_template, KEYS[dedup_keys + first]) == 1 then
            local length = try('RPUSH', order_key, seq)
            if length == seq + 0 then
              done = true
            else
              tried = true
              take_back(order_key, first, first, length)
              name_not_dense(from + (at - 1) / 2)
            end
          else
            call('DEL', event_key)
          end
        end
      end
    end
    if done then
      first, group_keys = first + 1, group_keys + 1
    else
      local g, flags = from + (at - 1) / 2, shape % 4
      local count = (shape - flags) / 4
      if flags % 2 == 1 then
        local gaps = tonumber(ARGV[argument + 1])
        apply_group(g, first, count, order_key, ARGV[argument] == '1', gaps, argument + 2, KEYS[group_keys + 2],
          KEYS[group_keys + 3])
        argument = argument + 2 + 3 * gaps
        group_keys = group_keys + (gaps > 0 and 3 or 2)
      else
        local may_be = flags == 2 and may_be_dense and not tried and count <= max_arguments
        if not may_be or not apply_dense(g, first, first + count - 1, order_key) then
          apply_group(g, first, count, order_key, false, 0)
        end
        group_keys = group_keys + 1
      end
      first = first + count
    end
  end
end

for i = grouped + 1, writable do
  local code, key
  if not detail[i] or ARGV[detail[i] + 1] ~= '' then
    code, key = apply(i, ARGV[users + i])
  end
  if code then
    refuse(i, code, key)
    if code == FOREIGN then
      name_foreign(groups + i - grouped - 1, key)
    end
  end
end

for i = writable + 1, entries do
  local foreign, found = look_up_letter(i)
  if foreign then
    refuse(i, FOREIGN)
    name_foreign(groups + i - grouped - 1, foreign)
  else
    write_letter(i, ARGV[users + i], found)
  end
end

-- Locks that cannot have expired are ours; others may be another owner's by now.
local held_until = tonumber(ARGV[20])
for from = 1, locks, max_arguments do
  local to = math.min(from + max_arguments - 1, locks)
  if now_ms < held_until then
    call('DEL', unpack(KEYS, lock_keys + from, lock_keys + to))
  else
    local values = call('MGET', unpack(KEYS, lock_keys + from, lock_keys + to))
    local ours = ARGV[6]
    for v = 1, to - from + 1 do
      -- also one that an earlier owner of this partition has left
      if values[v] and sub(values[v], 1, #ours) == ours then
        call('DEL', KEYS[lock_keys + from + v - 1])
      end
    end
  end
end

if template_user or again then
  call('DEL', event_template, dedup_template)
end

local text = format('%.0f', floor)
if #refused > 0 then
  refused = table.concat(refused)
  call('HSET', KEYS[1], 'rev', ARGV[3], 'offset', text, 'seen_ms', now, 'unfinalized', ARGV[5], 'rejects', refused)
  return {'ok', text, refused}
end
if stored[5] then
  call('HDEL', KEYS[1], 'rejects')
end
call('HSET', KEYS[1], 'rev', ARGV[3], 'offset', text, 'seen_ms', now, 'unfinalized', ARGV[5])
return {'ok', text}
