// The scene by npm's tarantool-driver: HOST PORT USER_ID [NAME TOKEN] as arguments, the outcome on standard output.
// It calls by CALL_16, so that each value that is no array comes in an array of its own.
const Tarantool = require('tarantool-driver');

const [host, port, user, username, password] = process.argv.slice(2);
const connection = new Tarantool({ host, port: Number(port), ...(username ? { username, password } : {}) });
const value = (rows) => rows[0][0];

async function main() {
  const call = (name, ...args) => connection.call(name, ...args);
  const seen = {
    topped_up: value(await call('top_up', user, '5')).balance_nanos,
    rate: value(await call('set_rate', user, 3600, { per: 'hour', resource: 'vm' })).rate_nanos_per_hour,
    debited: value(await call('debit', user, '2')).debited_nanos,
    routed: value(await call('vshard.router.callrw', 1, 'get_account', [user])).state,
  };
  try {
    seen.refused = JSON.stringify(await call('debit', user, '9'));
  } catch (error) {
    seen.refused = error.message;
  }
  const other = user + '-coins';
  seen.increased = await call('increase_balance', other, 750);
  seen.decreased = [];
  for (const coins of [200, 500, 200, 50]) seen.decreased.push(value(await call('decrease_balance', other, coins)));
  seen.pinged = await connection.ping();
  const large = value(await call('top_up', user + '-large', 3000000000));
  if (Number(large.balance_nanos) !== 3000000000) throw new Error('3000000000 nanos became ' + large.balance_nanos);
  process.stdout.write(JSON.stringify(seen), () => process.exit(0));
}

main().catch((error) => { console.error(error); process.exit(1); });
