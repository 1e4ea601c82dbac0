-- The scene by net.box of Tarantool itself: HOST PORT USER_ID [NAME TOKEN] as arguments, the outcome on standard output.
local net_box = require('net.box')
local json = require('json')

local host, port, user, name, token = arg[1], arg[2], arg[3], arg[4], arg[5]
local connection = net_box.connect(host .. ':' .. port, { user = name, password = token, wait_connected = 60 })
if not connection:is_connected() then
  io.stderr:write(tostring(connection.error), '\n')
  os.exit(1)
end
local function call(...)
  return connection:call(...)
end

local seen = {
  topped_up = call('top_up', { user, '5' }).balance_nanos,
  rate = call('set_rate', { user, 3600, { per = 'hour', resource = 'vm' } }).rate_nanos_per_hour,
  debited = call('debit', { user, 2000000000 }).debited_nanos,
  routed = call('vshard.router.callrw', { 1, 'get_account', { user } }).state,
}
local fine, refusal = pcall(call, 'debit', { user, '9' })
seen.refused = fine and 'it was carried out' or tostring(refusal)
local other = user .. '-coins'
seen.increased = setmetatable({ call('increase_balance', { other, 750 }) }, { __serialize = 'seq' })
seen.decreased = {}
for _, coins in ipairs({ 200, 500, 200, 50 }) do
  table.insert(seen.decreased, (call('decrease_balance', { other, coins })))
end
seen.pinged = connection:ping()
print(json.encode(seen))
os.exit(0)
