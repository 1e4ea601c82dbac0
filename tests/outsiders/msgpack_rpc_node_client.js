// The scene by `@ros2jsguy/msgpack-rpc-node`: HOST PORT USER.
const { Client, TcpClient } = require('@ros2jsguy/msgpack-rpc-node');

const [host, port, user] = process.argv.slice(2);

(async () => {
  const client = new Client(TcpClient, Number(port), host);
  await client.connect();
  const seen = {
    topped_up: (await client.call('top_up', user, '5')).balance_nanos,
    rate: (await client.call('set_rate', user, 3600, { per: 'hour', resource: 'vm' })).rate_nanos_per_hour,
    debited: (await client.call('debit', user, 2000000000)).debited_nanos,
  };
  try {
    await client.call('debit', user, '9');
  } catch (error) {
    seen.refused = error.message || String(error);
  }
  seen.state = (await client.call('get_account', user)).state;
  console.log(JSON.stringify(seen));
  process.exit(0);
})();
