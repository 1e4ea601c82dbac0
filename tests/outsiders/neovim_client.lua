-- The scene by Neovim's own RPC channel: $HOST $PORT $USER_ID in the environment, the outcome goes to $OUT.
local user = vim.env.USER_ID
local channel = vim.fn.sockconnect('tcp', vim.env.HOST .. ':' .. vim.env.PORT, { rpc = true })
local function call(...)
  return vim.fn.rpcrequest(channel, ...)
end

local seen = {
  topped_up = call('top_up', user, '5').balance_nanos,
  rate = call('set_rate', user, 3600, { per = 'hour', resource = 'vm' }).rate_nanos_per_hour,
  debited = call('debit', user, 2000000000).debited_nanos,
}
local fine, refusal = pcall(call, 'debit', user, '9')
seen.refused = not fine and string.match(tostring(refusal), 'INSUFFICIENT_FUNDS.*') or 'it was carried out'
seen.state = call('get_account', user).state
vim.fn.writefile({ vim.fn.json_encode(seen) }, vim.env.OUT)
vim.cmd('qa!')
