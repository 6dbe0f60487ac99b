// serve FILE PORT | get URL TIMES AT_ONCE SHA256: a WebSocket for each; the server answers a message with the file.
const fs = require('fs'), crypto = require('crypto');
const { WebSocket, WebSocketServer } = require('ws');
const [what, ...rest] = process.argv.slice(2);

const once = (url, sha256) => new Promise((done, fail) => {
  const socket = new WebSocket(url);
  socket.on('error', fail);
  socket.on('open', () => socket.send('send it'));
  socket.on('message', (data) => {
    socket.close();
    if (crypto.createHash('sha256').update(data).digest('hex') !== sha256) fail(new Error('another digest'));
  });
  socket.on('close', done);
});

async function many(url, times, atOnce, sha256) {
  let left = times;
  const one = async () => { while (left-- > 0) await once(url, sha256); };
  await Promise.all(Array.from({ length: atOnce }, one));
}

if (what === 'serve') {
  process.on('SIGTERM', () => process.exit(0));
  const data = fs.readFileSync(rest[0]);
  new WebSocketServer({ port: Number(rest[1]) }).on('connection', (socket) => socket.on('message', () => socket.send(data)));
} else {
  many(rest[0], Number(rest[1]), Number(rest[2]), rest[3])
    .catch((error) => { console.error(String(error)); process.exit(1); });
}
