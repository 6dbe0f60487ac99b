// serve FILE PORT [WORKERS] | serve-net FILE PORT | serve-dgram FILE PORT
// get URL TIMES AT_ONCE SHA256 | net HOST:PORT TIMES AT_ONCE SHA256 | dgram HOST:PORT TIMES AT_ONCE SHA256
const fs = require('fs'), http = require('http'), net = require('net'), crypto = require('crypto');
const dgram = require('dgram');
const cluster = require('cluster');
const [what, ...rest] = process.argv.slice(2);

function serve(file, port, workers) {
  process.on('SIGTERM', () => process.exit(0));
  if (workers && cluster.isPrimary) {
    for (let i = 0; i < workers; i++) cluster.fork();
    return;
  }
  const data = fs.readFileSync(file);
  http.createServer((request, response) => {
    if (request.url === '/who') response.end(String(process.pid));
    else response.end(data);
  }).listen(port);
}

function serveNet(file, port) {
  process.on('SIGTERM', () => process.exit(0));
  const data = fs.readFileSync(file);
  net.createServer((socket) => socket.end(data)).listen(port);
}

// A datagram asks for the piece of its number; an empty piece is the end. No side repeats anything.
const PIECE = 16384;

function serveDgram(file, port) {
  process.on('SIGTERM', () => process.exit(0));
  const data = fs.readFileSync(file);
  const socket = dgram.createSocket('udp4').bind(port);
  socket.on('message', (message, from) => {
    const at = message.readUInt32BE() * PIECE;
    socket.send([message, data.subarray(at, at + PIECE)], from.port, from.address);
  });
}

function digested(stream, sha256, done, fail) {
  const digest = crypto.createHash('sha256');
  stream.on('data', (chunk) => digest.update(chunk));
  stream.on('error', fail);
  stream.on('end', () => (digest.digest('hex') === sha256 ? done() : fail(new Error('another digest'))));
}

const once = {
  get: (url, sha256) => new Promise((done, fail) =>
    http.get(url, { agent: false }, (response) => digested(response, sha256, done, fail)).on('error', fail)),
  net: (where, sha256) => new Promise((done, fail) => {
    const [host, port] = where.split(':');
    digested(net.connect({ host, port: Number(port) }), sha256, done, fail);
  }),
  dgram: (where, sha256) => new Promise((done, fail) => {
    const [host, port] = where.split(':');
    const socket = dgram.createSocket('udp4'), digest = crypto.createHash('sha256'), number = Buffer.alloc(4);
    const late = setTimeout(() => fail(new Error(`nothing came for piece ${number.readUInt32BE()}`)), 30000);
    socket.on('error', fail);
    socket.on('message', (message) => {
      if (message.compare(number, 0, 4, 0, 4)) return fail(new Error('another piece'));
      digest.update(message.subarray(4));
      number.writeUInt32BE(number.readUInt32BE() + 1);
      if (message.length > 4) return socket.send(number);
      clearTimeout(late);
      socket.close();
      return digest.digest('hex') === sha256 ? done() : fail(new Error('another digest'));
    });
    socket.connect(Number(port), host, () => socket.send(number));
  }),
};

async function many(how, where, times, atOnce, sha256) {
  let left = times;
  const one = async () => { while (left-- > 0) await how(where, sha256); };
  await Promise.all(Array.from({ length: atOnce }, one));
}

if (what === 'serve') serve(rest[0], Number(rest[1]), Number(rest[2] || 0));
else if (what === 'serve-net') serveNet(rest[0], Number(rest[1]));
else if (what === 'serve-dgram') serveDgram(rest[0], Number(rest[1]));
else many(once[what], rest[0], Number(rest[1]), Number(rest[2]), rest[3])
  .catch((error) => { console.error(String(error)); process.exit(1); });
