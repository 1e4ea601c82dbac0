// The scene by `msgpack-rpc-lite`: HOST PORT USER.
const { createClient } = require('msgpack-rpc-lite');

const [host, port, user] = process.argv.slice(2);
const client = createClient(Number(port), host);
const call = async (method, ...params) => {
  const [result] = await client.request(method, ...params);
  return result;
};

(async () => {
  const seen = {
    topped_up: (await call('top_up', user, '5')).balance_nanos,
    rate: (await call('set_rate', user, 3600, { per: 'hour', resource: 'vm' })).rate_nanos_per_hour,
    debited: (await call('debit', user, 2000000000)).debited_nanos,
  };
  try {
    await call('debit', user, '9');
  } catch (error) {
    seen.refused = error.message || String(error);
  }
  seen.state = (await call('get_account', user)).state;
  console.log(JSON.stringify(seen));
  process.exit(0);
})();
