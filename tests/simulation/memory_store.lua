-- The commands of Redis that eventproc's scripts use, on plain tables, for the simulation.
--
-- A store is {db = {key = {kind, value, expires}}, now = ms}. Strings are strings; a hash is a table by field;
-- a list is {first, last, [i] = element}. Scripts run with `redis`, KEYS and ARGV as they have them in Redis.
local unpack, floor = unpack, math.floor
local wrong_type = 'WRONGTYPE Operation against a key holding the wrong kind of value'

local db, now_ms, countdown -- of the store whose script is running
local commands = {}

local function look(key)
  local entry = db[key]
  if entry and entry.expires and now_ms > entry.expires then
    db[key] = nil
    return nil
  end
  return entry
end

local function look_for(kind, key)
  local entry = look(key)
  if entry and entry.kind ~= kind then
    error({err = wrong_type})
  end
  return entry
end

local function integer(text)
  local number = tonumber(text)
  if not number or number ~= floor(number) then
    error({err = 'ERR value is not an integer or out of range'})
  end
  return number
end

function commands.TIME()
  return {string.format('%.0f', floor(now_ms / 1000)), string.format('%.0f', now_ms % 1000 * 1000)}
end

function commands.EXISTS(...)
  local count = 0
  for i = 1, select('#', ...) do
    if look((select(i, ...))) then
      count = count + 1
    end
  end
  return count
end

function commands.TYPE(key)
  local entry = look(key)
  return {ok = entry and entry.kind or 'none'}
end

function commands.DEL(...)
  local keys, count = {...}, 0
  for i = 1, #keys do
    if look(keys[i]) then
      db[keys[i]] = nil
      count = count + 1
    end
  end
  return count
end

function commands.PEXPIREAT(key, at)
  local entry = look(key)
  if not entry then
    return 0
  end
  entry.expires = integer(at)
  look(key)
  return 1
end

function commands.GET(key)
  local entry = look_for('string', key)
  return entry and entry.value or false
end

function commands.MGET(...)
  local keys, values = {...}, {}
  for i = 1, #keys do
    local entry = look(keys[i])
    values[i] = entry and entry.kind == 'string' and entry.value or false
  end
  return values
end

function commands.SET(key, value, ...)
  local expires, only_new
  local options = {...}
  local o = 1
  while options[o] do
    if options[o] == 'NX' then
      only_new = true
    elseif options[o] == 'PXAT' then
      o = o + 1
      expires = integer(options[o])
    else
      error({err = 'ERR syntax error'})
    end
    o = o + 1
  end
  if only_new and look(key) then
    return false
  end
  db[key] = {kind = 'string', value = value, expires = expires}
  return {ok = 'OK'}
end

function commands.COPY(from, to)
  local entry = look(from)
  if not entry or look(to) then
    return 0
  end
  local value = entry.value
  if entry.kind ~= 'string' then
    value = {}
    for name, one in pairs(entry.value) do
      value[name] = one
    end
  end
  db[to] = {kind = entry.kind, value = value, expires = entry.expires}
  return 1
end

function commands.HSET(key, ...)
  local entry = look_for('hash', key)
  if not entry then
    entry = {kind = 'hash', value = {}}
    db[key] = entry
  end
  local fields, hash, added = {...}, entry.value, 0
  if #fields % 2 == 1 then
    error({err = 'ERR wrong number of arguments for \'hset\' command'})
  end
  for f = 1, #fields, 2 do
    if hash[fields[f]] == nil then
      added = added + 1
    end
    hash[fields[f]] = fields[f + 1]
  end
  return added
end

function commands.HMGET(key, ...)
  local entry = look_for('hash', key)
  local fields, values = {...}, {}
  for f = 1, #fields do
    values[f] = entry and entry.value[fields[f]] or false
  end
  return values
end

function commands.HGETALL(key)
  local entry = look_for('hash', key)
  local fields, flat = {}, {}
  for field in pairs(entry and entry.value or {}) do
    fields[#fields + 1] = field
  end
  table.sort(fields) -- Redis has no order; one that replays is of use here
  for _, field in ipairs(fields) do
    flat[#flat + 1], flat[#flat + 2] = field, entry.value[field]
  end
  return flat
end

function commands.HDEL(key, field)
  local entry = look_for('hash', key)
  if not entry or entry.value[field] == nil then
    return 0
  end
  entry.value[field] = nil
  if next(entry.value) == nil then
    db[key] = nil
  end
  return 1
end

function commands.LLEN(key)
  local entry = look_for('list', key)
  return entry and entry.value.last - entry.value.first + 1 or 0
end

function commands.LINDEX(key, index)
  local entry = look_for('list', key)
  if not entry then
    return false
  end
  local list = entry.value
  index = integer(index)
  return list[index < 0 and list.last + 1 + index or list.first + index] or false
end

function commands.RPUSH(key, ...)
  local entry = look_for('list', key)
  if not entry then
    entry = {kind = 'list', value = {first = 1, last = 0}}
    db[key] = entry
  end
  local list, elements = entry.value, {...}
  for e = 1, #elements do
    list[list.last + e] = elements[e]
  end
  list.last = list.last + #elements
  return list.last - list.first + 1
end

function commands.LPOS(key, element, _, rank, _, most)
  local entry = look_for('list', key)
  if rank ~= '-1' then
    error({err = 'ERR only the tail can be searched here'})
  end
  if entry then
    local list = entry.value
    for i = list.last, math.max(list.first, list.last - integer(most) + 1), -1 do
      if list[i] == element then
        return i - list.first
      end
    end
  end
  return false
end

function commands.LTRIM(key, from, to)
  local entry = look_for('list', key)
  if not entry then
    return {ok = 'OK'}
  end
  from, to = integer(from), integer(to)
  local list = entry.value
  if from == 0 and to < 0 then
    for _ = 1, math.min(-1 - to, list.last - list.first + 1) do
      list[list.last] = nil
      list.last = list.last - 1
    end
  elseif from < 0 and to == -1 then
    while list.last - list.first + 1 > -from do
      list[list.first] = nil
      list.first = list.first + 1
    end
  else
    error({err = 'ERR a list is trimmed at one end only here'})
  end
  if list.last < list.first then
    db[key] = nil
  end
  return {ok = 'OK'}
end

local function call(name, ...)
  if countdown then
    countdown = countdown - 1
    if countdown < 0 then
      error({err = 'ERR planted'})
    end
  end
  local command = commands[name]
  if not command then
    error({err = 'ERR unknown command ' .. tostring(name)})
  end
  for i = 1, select('#', ...) do
    if type((select(i, ...))) ~= 'string' then
      local arguments = {...}
      for a = 1, select('#', ...) do
        local kind = type(arguments[a])
        if kind == 'number' then
          arguments[a] = string.format('%.17g', arguments[a])
        elseif kind ~= 'string' then
          error({err = 'ERR Lua redis lib command arguments must be strings or integers'})
        end
      end
      return command(unpack(arguments))
    end
  end
  return command(...)
end

local function try(...)
  local ok, reply = pcall(call, ...)
  if ok then
    return reply
  end
  return type(reply) == 'table' and reply or {err = reply}
end

local redis = {
  call = call,
  pcall = try,
  error_reply = function(message) return {err = message} end,
  status_reply = function(message) return {ok = message} end,
}

local scripts = {}
local environment = setmetatable({redis = redis, KEYS = {}, ARGV = {}}, {
  __index = function(_, name)
    local value = _G[name]
    if value == nil then
      error('Script attempted to access nonexistent global variable ' .. name)
    end
    return value
  end,
  __newindex = function(_, name) error('Script attempted to create global variable ' .. name) end,
})

-- An empty array is a table; nil and false are nothing; numbers lose their fraction.
local function as_reply(value)
  local kind = type(value)
  if kind == 'number' then
    return value < 0 and math.ceil(value) or floor(value)
  elseif kind ~= 'table' then
    return value
  end
  if value.err or value.ok then
    return value
  end
  local array = {}
  for i, element in ipairs(value) do
    array[i] = as_reply(element)
  end
  return array
end

local api = {}

-- Line tracing: which lines each script has, as far as its functions were called, and which of them ran.
local traced = {}

local function note(event, line)
  local info = debug.getinfo(2, event == 'call' and 'SL' or 'S')
  local script = traced[info.source]
  if not script then
    script = {lines = {}, ran = {}, called = {}}
    traced[info.source] = script
  end
  if event ~= 'call' then
    script.ran[line] = true
  elseif not script.called[info.linedefined] then
    script.called[info.linedefined] = true
    for active in pairs(info.activelines or {}) do
      script.lines[active] = true
    end
  end
end

-- Notes nothing while a command of the store runs.
local function untraced(command)
  return function(...)
    debug.sethook()
    local reply = command(...)
    debug.sethook(note, 'cl')
    return reply
  end
end

function api.trace()
  redis.call, redis.pcall = untraced(call), untraced(try)
  local run = api.run
  api.run = function(...)
    debug.sethook(note, 'cl')
    local reply = run(...)
    debug.sethook()
    return reply
  end
end

-- The lines that did not run, and those on which a function begins that was called.
function api.traced(name)
  local script = traced['@' .. name] or {lines = {}, ran = {}, called = {}}
  local missed, called = {}, {}
  for line in pairs(script.lines) do
    if not script.ran[line] then
      missed[#missed + 1] = line
    end
  end
  for line in pairs(script.called) do
    called[#called + 1] = line
  end
  return {missed, called}
end

function api.load(name, source)
  scripts[name] = setfenv(assert(loadstring(source, '@' .. name)), environment)
end

function api.new()
  return {db = {}}
end

-- Runs a script; `fail_at` is the number of its commands that still succeed (nil = all).
function api.run(store, name, keys, arguments, now, fail_at)
  db, now_ms, countdown = store.db, now, fail_at
  rawset(environment, 'KEYS', keys)
  rawset(environment, 'ARGV', arguments)
  local ok, reply = pcall(scripts[name])
  if ok then
    return as_reply(reply)
  end
  return type(reply) == 'table' and reply or {err = 'ERR ' .. tostring(reply)}
end

-- Runs one command, as a client would.
function api.command(store, now, ...)
  db, now_ms, countdown = store.db, now, nil
  return as_reply(try(...))
end

-- The same fields of several hashes, one after the other, false for what is not there; both lists separated
-- by newlines. A client would need a call for each.
function api.hashes(store, now, keys, fields)
  db, now_ms = store.db, now
  local out, n = {}, 0
  for key in string.gmatch(keys, '[^\n]+') do
    local entry = look(key)
    local hash = entry and entry.kind == 'hash' and entry.value or {}
    for field in string.gmatch(fields, '[^\n]+') do
      n = n + 1
      out[n] = hash[field] or false
    end
  end
  return out
end

local function copy(database)
  local copied = {}
  for key, entry in pairs(database) do
    local value = entry.value
    if entry.kind ~= 'string' then
      value = {}
      for k, v in pairs(entry.value) do
        value[k] = v
      end
    end
    copied[key] = {kind = entry.kind, value = value, expires = entry.expires}
  end
  return copied
end

function api.snapshot(store)
  return copy(store.db)
end

function api.restore(store, snapshot)
  store.db = copy(snapshot)
end

function api.flush(store)
  store.db = {}
end

-- All live keys as a flat list: key, kind, expiry (-1 = none), number of elements, elements.
function api.dump(store, now)
  local out = {}
  db, now_ms = store.db, now
  local keys = {}
  for key in pairs(db) do
    keys[#keys + 1] = key
  end
  for _, key in ipairs(keys) do
    local entry = look(key)
    if entry then
      out[#out + 1] = key
      out[#out + 1] = entry.kind
      out[#out + 1] = entry.expires or -1
      local at = #out + 1
      out[at] = 0
      if entry.kind == 'string' then
        out[at + 1] = entry.value
      elseif entry.kind == 'list' then
        for i = entry.value.first, entry.value.last do
          out[#out + 1] = entry.value[i]
        end
      else
        for field, value in pairs(entry.value) do
          out[#out + 1] = field
          out[#out + 1] = value
        end
      end
      out[at] = #out - at
    end
  end
  return out
end

return api
