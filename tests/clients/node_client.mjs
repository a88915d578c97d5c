// Calls http_server.py through a sidecar with fetch, node:http and node:http2; prints "fine".
//
//     node node_client.mjs PROXY:PORT AUTHORITY LISTENER-OF-THE-UPSTREAM:PORT

import assert from "node:assert/strict";
import http from "node:http";
import http2 from "node:http2";

const [proxy, authority, direct] = process.argv.slice(2);
const [host, port] = proxy.split(":");

// fetch goes to a listener of the upstream's own, where any host name does.
const answers = await Promise.all(
  Array.from({ length: 100 }, (_, n) =>
    fetch(`http://${direct}/echo?n=${n}`, { method: "POST", body: "b".repeat(n) }).then((r) => r.text())),
);
answers.forEach((text, n) => assert.equal(text.length, n));
const stream = await fetch(`http://${direct}/pieces?count=500&bytes=4000`);
let bytes = 0;
for await (const piece of stream.body) bytes += piece.length;
assert.equal(bytes, 2_000_000);
const cut = new AbortController();
const slow = fetch(`http://${direct}/slow?seconds=20`, { signal: cut.signal });
cut.abort();
await assert.rejects(slow);

// node:http, kept alive, by name.
const agent = new http.Agent({ keepAlive: true, maxSockets: 2 });
const get = (path) =>
  new Promise((done, fail) => {
    http.get({ host, port, path, agent, headers: { host: authority } }, (answer) => {
      let text = "";
      answer.on("data", (piece) => (text += piece)).on("end", () => done([answer.statusCode, text]));
    }).on("error", fail);
  });
for (let n = 0; n < 50; n++) assert.deepEqual(await get("/none"), [204, ""]);
assert.equal((await get("/pieces?count=10&bytes=10"))[1].length, 100);
agent.destroy();

// node:http2 by prior knowledge: a hundred streams on one connection, bodies both ways.
const session = http2.connect(`http://${proxy}`);
const call = (n) =>
  new Promise((done, fail) => {
    const stream = session.request({ ":method": "POST", ":path": `/echo?n=${n}`, ":authority": authority });
    let status, got = 0;
    stream.on("response", (head) => (status = head[":status"]));
    stream.on("data", (piece) => (got += piece.length));
    stream.on("end", () => done([status, got])).on("error", fail);
    stream.end(Buffer.alloc(n * 1000));
  });
const all = await Promise.all(Array.from({ length: 100 }, (_, n) => call(n)));
all.forEach(([status, got], n) => assert.deepEqual([status, got], [200, n * 1000]));
// A stream that is reset leaves the others alone.
const reset = session.request({ ":path": "/slow?seconds=20", ":authority": authority });
reset.close(http2.constants.NGHTTP2_CANCEL);
assert.deepEqual(await call(1), [200, 1000]);
session.close();
console.log("fine");
