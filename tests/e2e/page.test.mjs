// The web page in a DOM without a screen, against a server with a tiny model. Run by node --test.
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { JSDOM } from "jsdom";

const folder = mkdtempSync(join(tmpdir(), "holdfast-page-"));
const hostile = "<img src=x onerror=\"document.title='broken'\">";
let server, url, window;

async function call(method, path, body) {
  const reply = await fetch(url + path, { method, headers: { "content-type": "application/json" },
                                          body: body && JSON.stringify(body) });
  assert.ok(reply.ok, `${method} ${path}: ${reply.status}`);
  return reply;
}

// The page, run against the server as a browser would.
async function openPage() {
  const dom = new JSDOM(await (await call("GET", "/")).text(),
                        { url: url + "/", runScripts: "outside-only", pretendToBeVisual: true });
  Object.assign(dom.window, {
    fetch: (path, options) => fetch(new URL(path, url + "/"), options), TextDecoder,
    confirm: () => true });
  dom.window.HTMLElement.prototype.scrollIntoView = () => {};
  dom.window.eval(await (await call("GET", "/page.js")).text());
  return dom.window;
}

async function until(what, condition) {
  for (let i = 0; i < 300; ++i) {
    const value = condition();
    if (value) return value;
    await new Promise((ok) => setTimeout(ok, 50));
  }
  assert.fail("never came: " + what + "\n" + window.document.body.textContent);
}
const query = (selector) => window.document.querySelector(selector);
const text = (selector) => query(selector)?.textContent ?? "";
const press = (label, where = window.document) =>
  [...where.querySelectorAll("button")].find((b) => b.textContent === label).click();

before(async () => {
  const model = join(folder, "tiny.gguf");
  execFileSync(process.env.HOLDFAST_TINY, ["--out", model, "--ctx", "2048", "--vocab", "512"]);
  server = spawn(process.env.HOLDFAST, ["serve", "--model", model, "--data", join(folder, "data"),
    "--port", "0", "--json", "--kv-memory", "64MiB"], { stdio: ["ignore", "pipe", "inherit"] });
  const first = await new Promise((ok, fail) => {
    createInterface({ input: server.stdout }).once("line", ok);
    server.once("exit", (code) => fail(new Error("the server did not start: " + code)));
  });
  url = JSON.parse(first).listening;
  await call("POST", "/v1/sessions", { id: "looked-at" });
  for (const content of [hostile, "And then?"]) {
    await call("POST", "/v1/sessions/looked-at/turns",
               { messages: [{ role: "user", content }], max_tokens: 12, seed: 3 });
  }
  window = await openPage();
  await until("the session", () => text("#sessions").includes("looked-at"));
  query("#sessions .row").click();
  await until("its messages", () => query(".item.assistant"));
});

after(() => {
  window?.close();
  server.kill("SIGKILL");
  rmSync(folder, { recursive: true, force: true });
});

test("the page may load nothing from elsewhere", async () => {
  const reply = await call("GET", "/");
  const policy = reply.headers.get("content-security-policy");
  assert.match(policy, /default-src 'none'/);
  assert.match(policy, /script-src 'self'/);
  const html = await reply.text();
  assert.doesNotMatch(html, /<script(?! src="page.js"><)/);
  assert.doesNotMatch(html, /https?:/);
});

test("a session shows its branches, timing and messages, as text", () => {
  assert.match(text("#model"), /tiny/);
  assert.match(text("#load"), /0 running/);
  assert.ok(text("main").includes(hostile));
  assert.equal(query("main img"), null);
  assert.equal(window.document.querySelectorAll(".item").length, 4);
  assert.equal(window.document.querySelectorAll("svg g").length, 2);
  assert.match(text("main"), /main 4 messages/);
});

test("verify says that it is identical", async () => {
  press("Verify");
  await until("the verdict", () => query("#outcome .good"));
  assert.match(text("#outcome"), /Identical: \d+ tokens .* 2\d answer tokens/);
});

test("alternatives are shown for each token", async () => {
  press("Alternatives");
  await until("tokens", () => text("#outcome").includes("token by token"));
  const tokens = window.document.querySelectorAll(".tokens span");
  assert.ok(tokens.length >= 24, String(tokens.length));
  tokens[3].dispatchEvent(new window.Event("mouseenter"));
  assert.equal(text("#tip").split("\n").length, 1 + 5);
  assert.match(text("#tip"), / % "/);
});

test("an answer again is a branch, and is compared", async () => {
  press("Again", query(".item.assistant"));
  await until("the new branch", () => text("#outcome").includes("New answer on branch"));
  assert.ok(query("#outcome ins"));
  query("#outcome .bar button").click();
  await until("the branch", () => text("main").includes("Messages of b"));
  assert.equal((await (await call("GET", "/v1/sessions/looked-at/branches")).json()).data.length, 2);
});

test("an error is shown, and the rest stays", async () => {
  await call("DELETE", "/v1/sessions/looked-at");
  press("Verify");
  await until("the error", () => text("#trouble").includes("looked-at") ||
                                 text("#trouble").includes("sess_"));
  assert.ok(query(".item.assistant"));
});
