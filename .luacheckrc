-- The scripts run inside Redis: Lua 5.1, with what Redis adds.
std = "lua51"
max_line_length = 120
files["eventproc/store/lua"] = {read_globals = {"redis", "KEYS", "ARGV"}}
