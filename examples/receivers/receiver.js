// A receiver of cutoffs, restores and notices on Node's own http: switches machines off and on, and reports rate 0.
//
//     CUTOFF_SECRET=whsec_… PORT=8090 node receiver.js
//
// The daemon has cutoff.url = "http://127.0.0.1:8090/cutoff", cutoff.restore_url = "http://127.0.0.1:8090/restore" and
// notify.url = "http://127.0.0.1:8090/notices". `Receiver` needs nothing but Node: take it into your own program with
// require('./receiver.js').
'use strict';
const http = require('node:http');
const https = require('node:https');
const { createHash, createHmac, timingSafeEqual } = require('node:crypto');

const TOLERANCE_S = 300;
const EVENT_IDS_MAX = 100_000;
const BODY_BYTES_MAX = 1 << 20;
const ASK_MS = 5_000; // shorter than cutoff.timeout_s, so that the daemon is told that its call failed

class NotGenuine extends Error {}

// What billing.client.receiver does in Python: the rules are told there and in docs/receiving-cutoffs.md.
class Receiver {
  constructor(secret, places = new Map()) {
    // secret: the text of the secrets file. places: user -> { place, exhaustedAtNs } of the last call that was acted on;
    // keep it in your database.
    this.keys = secret.split('\n').map((line) => line.trim()).filter((line) => line && !line.startsWith('#'))
      .map((line) => Buffer.from(line.replace(/^whsec_/, ''), 'base64'));
    if (this.keys.length === 0) throw new Error('no secret');
    this.places = places;
    this.told = new Set(); // of notices that were acted on
  }

  // The cutoff or restore that a request is; throws NotGenuine: answer 401.
  call(target, headers, body, nowS) {
    const eventId = this.verified(headers, body || target, nowS);
    // Instants are beyond what a number of JavaScript holds, so exhaustedAtNs is a BigInt.
    const told = body ? textsOf(body) : Object.fromEntries(new URL(target, 'http://receiver').searchParams);
    const userId = told.user_id ?? decodeURIComponent(eventId.split(':')[0]); // where the path has it
    const [seq, exhaustedAtNs] = [Number(told.seq), told.exhausted_at_ns];
    if (told.event_id !== eventId || !Number.isSafeInteger(seq) || !/^\d+$/.test(exhaustedAtNs ?? '')) {
      throw new NotGenuine('this is no cutoff');
    }
    return { userId, eventId, seq, exhaustedAtNs: BigInt(exhaustedAtNs), isRestore: eventId.endsWith(':restore') };
  }

  // The notice that a POST is; throws NotGenuine: answer 401.
  notice(headers, body, nowS) {
    const eventId = this.verified(headers, body, nowS);
    return { eventId, ...JSON.parse(body) };
  }

  // Whether it is still to be acted on; one that is not is answered with 2xx, too.
  isDue(call) {
    if (call.seq === undefined) return !this.told.has(call.eventId);
    const last = this.places.get(call.userId) ?? { place: 0, exhaustedAtNs: 0n };
    return placeOf(call) > last.place || call.exhaustedAtNs > last.exhaustedAtNs;
  }

  // It was acted on.
  done(call) {
    if (call.seq !== undefined) {
      const { exhaustedAtNs } = call;
      if (this.isDue(call)) this.places.set(call.userId, { place: placeOf(call), exhaustedAtNs });
      return;
    }
    this.told.add(call.eventId);
    if (this.told.size > EVENT_IDS_MAX) this.told.delete(this.told.values().next().value);
  }

  verified(headers, content, nowS) {
    const [id, sent] = [headers['webhook-id'] ?? '', headers['webhook-timestamp'] ?? ''];
    const given = (headers['webhook-signature'] ?? '').split(' ').map((one) => Buffer.from(one));
    const isRight = (key) => {
      const expected = Buffer.from('v1,' + createHmac('sha256', key).update(`${id}.${sent}.${content}`).digest('base64'));
      return given.some((one) => one.length === expected.length && timingSafeEqual(one, expected));
    };
    if (!/^\d{1,12}$/.test(sent) || Math.abs(nowS - Number(sent)) > TOLERANCE_S || !this.keys.some(isRight)) {
      throw new NotGenuine('the signature is not right, or too old');
    }
    return id;
  }
}

// A restore lies behind its cutoff, and before the next one.
const placeOf = (call) => 2 * call.seq + (call.isRestore ? 1 : 0);

// The fields of a JSON body as texts; the instant is read as text, since JSON.parse would round it.
function textsOf(body) {
  const { user_id: userId, event_id: eventId, seq } = JSON.parse(body);
  const [, exhaustedAtNs] = body.match(/"exhausted_at_ns":\s*(\d+)/) ?? [];
  return { user_id: userId, event_id: eventId, seq, exhausted_at_ns: exhaustedAtNs };
}

module.exports = { NotGenuine, Receiver };

// -- a server with it -------------------------------------------------------------------------------------------------

// Asks the daemon's HTTP door. Not by fetch: that takes the user ids `.` and `..` for steps of the path, however they are
// encoded, and so would ask about somebody else.
function ask(billing, path, { method = 'GET', headers = {}, body = '' } = {}) {
  const token = process.env.BILLING_TOKEN; // where the daemon asks for one: with the role charge
  const { protocol, pathname } = new URL(billing);
  const options = {
    method,
    path: pathname.replace(/\/$/, '') + path,
    headers: { ...headers, 'Content-Length': Buffer.byteLength(body), ...(token && { Authorization: `Bearer ${token}` }) },
    signal: AbortSignal.timeout(ASK_MS),
  };
  return new Promise((resolve, reject) => {
    (protocol === 'https:' ? https : http).request(billing, options, async (answer) => {
      try {
        let text = '';
        for await (const part of answer.setEncoding('utf8')) text += part;
        if (answer.statusCode !== 200) throw new Error(`${answer.statusCode} from the daemon`);
        resolve(JSON.parse(text));
      } catch (error) {
        reject(error);
      }
    }).on('error', reject).end(body);
  });
}

// Stops the user's machines, then says that they cost nothing any more. Harmless to do twice.
async function switchOff(billing, user, event) {
  console.log('off', user); // here the machines are stopped
  const account = `/v1/accounts/${encodeURIComponent(user)}`;
  for (const resource of Object.keys((await ask(billing, account)).rates_nanos_per_hour)) {
    const key = createHash('sha256').update(`${event}/${resource}`).digest('hex'); // the same at each attempt
    const headers = { 'Content-Type': 'application/json', 'Idempotency-Key': key };
    const body = JSON.stringify({ rate: '0', resource });
    await ask(billing, `${account}/set_rate`, { method: 'POST', headers, body });
  }
}

// Does the work of one user's calls in turn: a call that the daemon gave up waiting for may still be at work when the next
// one comes, which may be its restore.
const turns = new Map(); // user -> the end of the newest call
async function inTurn(user, work) {
  const turn = (turns.get(user) ?? Promise.resolve()).then(work, work);
  turns.set(user, turn);
  try {
    await turn;
  } finally {
    if (turns.get(user) === turn) turns.delete(user);
  }
}

async function bodyOf(request) {
  const parts = [];
  let size = 0;
  for await (const part of request) {
    size += part.length;
    if (size > BODY_BYTES_MAX) throw new NotGenuine('the body is too long');
    parts.push(part);
  }
  return Buffer.concat(parts).toString();
}

function serve(receiver, port, billing) {
  http.createServer(async (request, response) => {
    const answer = (status) => response.writeHead(status).end();
    try {
      const [body, nowS] = [await bodyOf(request), Date.now() / 1000];
      if (request.url === '/notices') {
        const notice = receiver.notice(request.headers, body, nowS);
        if (receiver.isDue(notice)) {
          console.log('notice', notice.type, notice.data.user_id); // here the user is written to
          receiver.done(notice);
        }
        return answer(204);
      }
      const call = receiver.call(request.url, request.headers, body, nowS);
      await inTurn(call.userId, async () => {
        if (!receiver.isDue(call)) return;
        if (call.isRestore) console.log('on', call.userId); // here the machines are started, and their rates reported
        else await switchOff(billing, call.userId, call.eventId);
        receiver.done(call);
      });
      answer(204);
    } catch (error) {
      console.error(`${request.url}: ${error.message}`);
      answer(error instanceof NotGenuine ? 401 : 503); // at 503 the daemon calls again
    }
  }).listen(port, '127.0.0.1');
}

if (require.main === module) {
  serve(new Receiver(process.env.CUTOFF_SECRET), Number(process.env.PORT), process.env.BILLING ?? 'http://127.0.0.1:3312');
}
