// Leaves HTTP over streams of HTTP/2: WebSocket by extended CONNECT (RFC 8441) and plain CONNECT; prints "fine". Is its
// own server: HTTP/1, which upgrades and says everything again.
//
//     node connect_over_http2.mjs PROXY:PORT AUTHORITY SERVER-ADDRESS SERVER-PORT

import assert from "node:assert/strict";
import crypto from "node:crypto";
import { once } from "node:events";
import http from "node:http";
import http2 from "node:http2";

const [proxy, authority, address, port] = process.argv.slice(2);
const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const seen = [];
const server = http.createServer((request, answer) => {
  if (request.url === "/refused") answer.writeHead(403).end("not you");
  else answer.end(`plain ${request.url}`);
});
server.on("upgrade", (request, socket) => {
  seen.push(request);
  const key = request.url === "/wrong" ? "another" : request.headers["sec-websocket-key"];
  const accept = crypto.createHash("sha1").update(key + GUID).digest("base64");
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n` +
    `Sec-WebSocket-Accept: ${accept}\r\nSec-WebSocket-Protocol: chat\r\n\r\nwelcome`);
  socket.pipe(socket);
});
server.listen(Number(port), address);
await once(server, "listening");

// Node itself gives up a session that holds more than 10 MB unsent.
const session = http2.connect(`http://${proxy}`, { maxSessionMemory: 100 });
session.on("error", (error) => assert.fail(error));
await once(session, "remoteSettings");
assert.ok(session.remoteSettings.enableConnectProtocol, "the sidecar announces extended CONNECT");

const open = (path, protocol = "websocket") =>
  session.request({
    ":method": "CONNECT", ":protocol": protocol, ":scheme": "http", ":path": path, ":authority": authority,
    "sec-websocket-version": "13", "sec-websocket-protocol": "chat",
  }, { endStream: false });
const head = async (stream) => (await once(stream, "response"))[0];
const collect = async (stream) => {
  let text = "";
  for await (const piece of stream) text += piece;
  return text;
};

// Twenty at once, each with a megabyte, and half-close both ways.
const big = "b".repeat(1 << 20);
await Promise.all(Array.from({ length: 20 }, async (_, n) => {
  const stream = open(`/chat/${n}`);
  const headers = await head(stream);
  assert.equal(headers[":status"], 200);
  assert.equal(headers["sec-websocket-protocol"], "chat");
  assert.equal(headers["sec-websocket-accept"], undefined);
  assert.equal(headers["upgrade"], undefined);
  stream.end(`${n}:${big}`);
  assert.equal(await collect(stream), `welcome${n}:${big}`);
}));
assert.equal(seen.length, 20);
assert.equal(seen[0].headers.host, authority);
assert.equal(Buffer.from(seen[0].headers["sec-websocket-key"], "base64").length, 16);

// Whoever does not agree, or agrees to something else, is no tunnel.
for (const [path, protocol, status] of [["/refused", "websocket", 426], ["/wrong", "websocket", 502], ["/x", "ftp", 501]]) {
  if (path === "/refused") server.removeAllListeners("upgrade"), server.on("upgrade", (request, socket) =>
    socket.end("HTTP/1.1 426 Upgrade Required\r\ncontent-length: 0\r\n\r\n"));
  else server.removeAllListeners("upgrade"), server.on("upgrade", (request, socket) =>
    socket.end("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: no\r\n\r\n"));
  const stream = open(path, protocol);
  assert.equal((await head(stream))[":status"], status, path);
  stream.close();
}

// Plain CONNECT reaches the server itself.
const tunnel = session.request({ ":method": "CONNECT", ":authority": `${authority}:80` }, { endStream: false });
assert.equal((await head(tunnel))[":status"], 200);
tunnel.write(`GET /through HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n`);
assert.match(await collect(tunnel), /^HTTP\/1.1 200 OK\r\n[^]*plain \/through/);
const outside = session.request({ ":method": "CONNECT", ":authority": "example.com:443" }, { endStream: false });
assert.equal((await head(outside))[":status"], 403);
outside.close();

// The connection itself is as good as new.
const after = session.request({ ":path": "/after", ":authority": authority });
assert.equal(await collect(after), "plain /after");
session.destroy();
server.closeAllConnections();
server.close();
console.log("fine");
