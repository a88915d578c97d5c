// Opens WebSockets to a server of HTTP/2 (extended CONNECT, RFC 8441) through a sidecar, as a client of HTTP/2 and as
// one of HTTP/1; prints "fine". Is its own server, which says everything again.
//
//     node websocket_to_http2.mjs PROXY:PORT AUTHORITY SERVER-ADDRESS SERVER-PORT

import assert from "node:assert/strict";
import crypto from "node:crypto";
import { once } from "node:events";
import http from "node:http";
import http2 from "node:http2";

const [proxy, authority, address, port] = process.argv.slice(2);
const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const seen = [];
const sessions = new Set();
const server = http2.createServer({ settings: { enableConnectProtocol: true }, maxSessionMemory: 100 });
server.on("session", (session) => sessions.add(session));
server.on("stream", (stream, headers) => {
  seen.push(headers);
  stream.on("error", () => {});
  if (headers[":protocol"] !== "websocket" || headers[":path"] === "/refused") {
    stream.respond({ ":status": 403 }, { endStream: true });
    return;
  }
  stream.respond({ ":status": 200, "sec-websocket-protocol": "chat" });
  stream.write("welcome");
  stream.pipe(stream);
});
server.listen(Number(port), address);
await once(server, "listening");

const collect = async (stream) => {
  let text = "";
  for await (const piece of stream) text += piece;
  return text;
};
const big = "b".repeat(1 << 20);

// Ten over HTTP/2 at once, each with a megabyte, and half-close both ways.
const session = http2.connect(`http://${proxy}`, { maxSessionMemory: 100 });
session.on("error", (error) => assert.fail(error));
await once(session, "remoteSettings");
const open = async (path) => {
  const stream = session.request({
    ":method": "CONNECT", ":protocol": "websocket", ":scheme": "http", ":path": path, ":authority": authority,
    "sec-websocket-version": "13", "sec-websocket-protocol": "chat",
  }, { endStream: false });
  const [headers] = await once(stream, "response");
  return [stream, headers];
};
await Promise.all(Array.from({ length: 10 }, async (_, n) => {
  const [stream, headers] = await open(`/chat/${n}`);
  assert.equal(headers[":status"], 200);
  assert.equal(headers["sec-websocket-protocol"], "chat");
  assert.equal(headers["sec-websocket-accept"], undefined);
  stream.end(`${n}:${big}`);
  assert.equal(await collect(stream), `welcome${n}:${big}`);
}));

// Three over HTTP/1, which is told what HTTP/1 says.
await Promise.all(Array.from({ length: 3 }, async (_, n) => {
  const key = crypto.randomBytes(16).toString("base64");
  const request = http.request({
    host: proxy.split(":")[0], port: proxy.split(":")[1], path: `/old/${n}`,
    headers: {
      host: authority, connection: "Upgrade", upgrade: "websocket",
      "sec-websocket-version": "13", "sec-websocket-key": key,
    },
  });
  request.end();
  const [answer, socket, first] = await once(request, "upgrade");
  const accept = crypto.createHash("sha1").update(key + GUID).digest("base64");
  assert.equal(answer.statusCode, 101);
  assert.equal(answer.headers["sec-websocket-accept"], accept);
  assert.equal(answer.headers["upgrade"], "websocket");
  socket.end(`${n}:${big}`);
  assert.equal(first.toString() + await collect(socket), `welcome${n}:${big}`);
}));

assert.equal(seen.length, 13);
for (const headers of seen) {
  assert.equal(headers[":method"], "CONNECT");
  assert.equal(headers[":authority"], authority);
  assert.equal(headers["sec-websocket-version"], "13");
  assert.equal(headers["sec-websocket-key"], undefined);
  assert.equal(headers["upgrade"], undefined);
}
assert.equal(sessions.size, 1, "all of them share a connection");

// Whoever does not agree says so itself.
const [refused, headers] = await open("/refused");
assert.equal(headers[":status"], 403);
refused.close();
session.destroy();
for (const open of sessions) open.destroy();
server.close();
console.log("fine");
