// An event hub for tests: AMQP 1.0 by the npm package rhea, with what Event
// Hubs add to it: claims by $cbs, $management, selector filters on a
// partition's log, epochs. Faults are injected at given rates.
//
// Commands come as JSON lines on standard input, each is answered by one JSON
// line on standard output; it ends when standard input does. eventhub.go is the
// other side and says what they mean.
'use strict';

const crypto = require('crypto');
const readline = require('readline');
const rhea = require('rhea');
const { types, message } = rhea;

const hub = {
  name: 'audit', created: 0, groups: ['$Default', 'picket'], keys: {}, tokens: {}, partitions: [],
};
let faults = {};
let seed = 1;
const stats = { attaches: 0, sent: 0, repeats: 0, detaches: 0, cuts: 0, busy: 0, expired: 0, stolen: 0, refused: 0, held: 0, puts: 0 };
const links = new Set(); // open receivers of clients
const connections = new Set();

// random returns the next of a fixed sequence of numbers from 0 to 1 (mulberry32).
function random() {
  seed = (seed + 0x6d2b79f5) | 0;
  let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
}
function chance(what) { return faults[what] > 0 && random() < faults[what]; }

function fail(link, condition, description) {
  link.close({ condition, description: description + ' TrackingId:0_G0, SystemTracker:akstest' });
}

// claim checks a token for an audience and returns until when it holds, in
// seconds since 1970, or an error's text.
function claim(audience, token) {
  const now = Date.now() / 1000;
  if (hub.tokens[token]) return hub.tokens[token] > now ? hub.tokens[token] : 'ExpiredToken';
  const m = /^SharedAccessSignature sr=([^&]*)&sig=([^&]*)&se=([^&]*)&skn=([^&]*)$/.exec(token);
  if (!m) return 'MalformedToken';
  const key = hub.keys[m[4]];
  if (!key) return 'InvalidSignature: unknown key name';
  const sig = crypto.createHmac('sha256', key).update(m[1] + '\n' + m[3]).digest('base64');
  if (sig !== decodeURIComponent(m[2])) return 'InvalidSignature: The token has an invalid signature.';
  if (!audience.toLowerCase().startsWith(decodeURIComponent(m[1]).toLowerCase())) return 'InvalidAudience';
  if (Number(m[3]) <= now) return 'ExpiredToken';
  return Number(m[3]);
}

function claimed(connection, entity) {
  for (const [audience, until] of connection.claims || []) {
    if (audience.endsWith('/' + entity) && until > Date.now() / 1000) return true;
  }
  return false;
}

const container = rhea.create_container({ id: 'akstest', enable_sasl_external: false });
container.sasl_server_mechanisms.enable_anonymous();

container.on('connection_open', (c) => {
  c.connection.claims = new Map();
  connections.add(c.connection);
});
function forget(connection) {
  connections.delete(connection);
  for (const l of links) if (l.connection === connection) links.delete(l);
}
// kill resets a connection; rhea does not tell of one that ended here.
function kill(connection) {
  forget(connection);
  connection.socket.destroy();
}
const gone = (c) => forget(c.connection);
container.on('connection_close', gone);
container.on('disconnected', gone);
container.on('connection_error', () => {});
container.on('session_error', () => {});
container.on('sender_error', () => {});
container.on('receiver_error', () => {});
container.on('error', () => {});
container.on('protocol_error', (e) => process.stderr.write('protocol error: ' + e + '\n'));

container.on('receiver_open', (c) => {
  const address = c.receiver.target && c.receiver.target.address;
  c.receiver.set_target({ address });
});

container.on('message', (c) => {
  const to = c.receiver.target.address;
  const p = c.message.application_properties || {};
  const answer = (code, description, body) => {
    let reply;
    c.session.find_sender((s) => { if (s.target && s.target.address === c.message.reply_to) reply = s; return false; });
    if (!reply) return;
    reply.send({
      correlation_id: c.message.message_id, body: body === undefined ? null : body,
      application_properties: { 'status-code': types.wrap_int(code), 'status-description': description },
    });
  };
  if (chance('mute')) return; // an answer that never comes
  if (chance('busy')) {
    stats.busy++;
    return answer(503, 'com.microsoft:server-busy: The request was terminated because the entity is being throttled.');
  }
  if (to === '$cbs') {
    stats.puts++;
    const until = claim(String(p.name), String(c.message.body));
    if (typeof until === 'string') {
      stats.refused++;
      return answer(401, until);
    }
    c.connection.claims.set(String(p.name), until);
    return answer(202, 'Accepted');
  }
  if (!claimed(c.connection, hub.name + '/$management')) return answer(401, 'Unauthorized access. \'Listen\' claim(s) are required.');
  if (p.name !== hub.name) return answer(404, 'The messaging entity could not be found.');
  if (p.type === 'com.microsoft:eventhub') {
    return answer(200, 'OK', {
      name: hub.name, type: p.type, created_at: types.wrap_timestamp(hub.created),
      partition_count: types.wrap_int(hub.partitions.length), georeplication_factor: types.wrap_int(1),
      partition_ids: types.wrap_array(hub.partitions.map((_, i) => String(i)), 0xb1),
    });
  }
  const part = hub.partitions[Number(p.partition)];
  if (!part) return answer(404, 'The specified partition is invalid.');
  const last = part.begin + part.events.length - 1;
  return answer(200, 'OK', {
    name: hub.name, type: p.type, partition: String(p.partition),
    begin_sequence_number: types.wrap_long(part.begin), last_enqueued_sequence_number: types.wrap_long(last),
    last_enqueued_offset: String(last * 100), last_enqueued_time_utc: types.wrap_timestamp(part.last),
    is_partition_empty: part.events.length === 0,
  });
});

container.on('sender_open', (c) => {
  const s = c.sender;
  const address = s.source && s.source.address;
  s.set_source({ address });
  s.set_target({ address: s.target && s.target.address });
  s.local.attach.snd_settle_mode = 1;
  if (address === '$cbs' || address === '$management') return;
  attach(c, s, address);
});

function attach(c, s, address) {
  stats.attaches++;
  const m = /^([^/]+)\/ConsumerGroups\/([^/]+)\/Partitions\/([^/]+)$/.exec(address);
  const part = m && hub.partitions[Number(m[3])];
  if (!m || m[1] !== hub.name || !hub.groups.includes(m[2])) return fail(s, 'amqp:not-found', 'The messaging entity could not be found.');
  if (!part) return fail(s, 'com.microsoft:argument-out-of-range', 'The specified partition is invalid for an EventHub.');
  if (!claimed(c.connection, address)) return fail(s, 'amqp:unauthorized-access', "Unauthorized access. 'Listen' claim(s) are required.");
  if (chance('busy')) {
    stats.busy++;
    return fail(s, 'com.microsoft:server-busy', 'The request was terminated because the entity is being throttled.');
  }
  const filter = s.source.filter && s.source.filter['apache.org:selector-filter:string'];
  const f = /^amqp\.annotation\.(x-opt-[a-z-]+) (>=?) '(.*)'$/.exec(String(filter && filter.value !== undefined ? filter.value : filter));
  if (!f) return fail(s, 'amqp:invalid-field', 'bad filter ' + filter);
  const after = f[2] === '>' ? 1 : 0;
  const last = part.begin + part.events.length - 1;
  if (f[1] === 'x-opt-sequence-number') {
    s.next = Number(f[3]) + after;
    if (s.next > last + 1) return fail(s, 'com.microsoft:argument-error', `The supplied sequence number '${f[3]}' is invalid. The last sequence number in the system is '${last}'`);
  } else if (f[1] === 'x-opt-enqueued-time') {
    const i = part.events.findIndex((e) => after ? e.time > Number(f[3]) : e.time >= Number(f[3]));
    s.next = i < 0 ? last + 1 : part.begin + i;
  } else if (f[3] === '@latest') {
    s.next = last + 1;
  } else {
    s.next = f[3] === '-1' ? part.begin : Number(f[3]) / 100 + after;
  }
  s.next = Math.max(s.next, part.begin);
  const epoch = s.properties && s.properties['com.microsoft:epoch'];
  s.epoch = epoch === undefined ? -1 : Number(epoch);
  s.group = m[2];
  s.partition = Number(m[3]);
  for (const other of links) {
    if (other.group !== s.group || other.partition !== s.partition || other.epoch < 0 && s.epoch < 0) continue;
    if (other.epoch > s.epoch) {
      stats.stolen++;
      return fail(s, 'amqp:link:stolen', 'At least one receiver for the endpoint is created with a higher epoch.');
    }
    stats.stolen++;
    links.delete(other);
    fail(other, 'amqp:link:stolen', "New receiver with higher epoch is created hence current receiver is getting disconnected.");
  }
  links.add(s);
  s.on('sendable', () => pump(s));
  s.on('sender_close', () => links.delete(s));
  s.on('session_close', () => links.delete(s));
  pump(s);
}

function encode(e, seq) {
  if (!e.wire) {
    e.wire = message.encode({
      message_annotations: {
        'x-opt-sequence-number': types.wrap_long(seq), 'x-opt-offset': String(seq * 100), 'x-opt-enqueued-time': types.wrap_timestamp(e.time),
      },
      body: message.data_section(e.body),
    });
  }
  return e.wire;
}

function pump(s) {
  const part = hub.partitions[s.partition];
  while (links.has(s) && !s.waiting && s.sendable() && s.next < part.begin + part.events.length) {
    if (part.hold || faults.delay_ms > 0 && random() < 0.05) {
      stats.held++;
      s.waiting = true;
      setTimeout(() => { s.waiting = false; pump(s); }, part.hold ? 50 : random() * faults.delay_ms);
      return;
    }
    if (chance('detach')) {
      stats.detaches++;
      links.delete(s);
      return fail(s, random() < 0.5 ? 'amqp:link:detach-forced' : 'amqp:internal-error', 'The link is force detached.');
    }
    if (chance('cut')) {
      stats.cuts++;
      return kill(s.connection);
    }
    if (chance('expire')) {
      stats.expired++;
      s.connection.claims.clear();
      links.delete(s);
      return fail(s, 'amqp:unauthorized-access', 'ExpiredToken: The token is expired.');
    }
    if (chance('repeat') && s.next > part.begin) {
      stats.repeats++;
      s.next = Math.max(part.begin, s.next - 1 - Math.floor(random() * 20));
    }
    s.next = Math.max(s.next, part.begin);
    s.send(encode(part.events[s.next - part.begin], s.next), undefined, 0).settled = true;
    s.next++;
    stats.sent++;
  }
}

const commands = {
  create(o) { // a hub, in place of what there was
    hub.created = o.created;
    hub.keys = o.keys;
    hub.partitions = [];
    for (let i = 0; i < o.partitions; i++) hub.partitions.push({ begin: 0, events: [], last: 0, hold: false });
    for (const c of connections) kill(c);
  },
  keys(o) { hub.keys = o.keys; },
  tokens(o) { hub.tokens = o.tokens; },
  add(o) {
    const part = hub.partitions[o.partition];
    for (const body of o.bodies) part.events.push({ body: Buffer.from(body || '', 'base64'), time: o.time });
    part.last = o.time;
    for (const l of links) if (l.partition === o.partition) pump(l);
  },
  forget(o) { // retention
    const part = hub.partitions[o.partition];
    const n = Math.min(o.begin - part.begin, part.events.length);
    part.events.splice(0, n);
    part.begin += n;
  },
  hold(o) { hub.partitions[o.partition].hold = o.hold; },
  faults(o) { faults = o.faults; if (o.seed) seed = o.seed; },
  cut() { for (const c of connections) kill(c); },
  expire() { // all claims
    for (const c of connections) c.claims.clear();
    for (const l of links) fail(l, 'amqp:unauthorized-access', 'ExpiredToken: The token is expired.');
    links.clear();
  },
  stats() { return Object.assign({ links: links.size, connections: connections.size }, stats); },
};

const options = { port: 0, host: '127.0.0.1', noDelay: true };
if (process.argv[2]) {
  const fs = require('fs');
  Object.assign(options, { transport: 'tls', cert: fs.readFileSync(process.argv[2]), key: fs.readFileSync(process.argv[3]) });
}
const server = container.listen(options);
server.on('listening', () => {
  process.stdout.write(JSON.stringify({ port: server.address().port }) + '\n');
  const lines = readline.createInterface({ input: process.stdin });
  lines.on('line', (line) => {
    const o = JSON.parse(line);
    process.stdout.write(JSON.stringify(commands[o.op](o) || {}) + '\n');
  });
  lines.on('close', () => process.exit(0));
});
