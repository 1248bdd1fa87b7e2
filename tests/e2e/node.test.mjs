// The `openai` package for Node, unmodified, against a real model. Run by node --test.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import OpenAI, { BadRequestError, NotFoundError } from "openai";

const model = "qwen2.5-coder-0.5b-instruct";
const tools = [{ type: "function", function: {
  name: "get_weather", description: "The weather in a city.",
  parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"],
                additionalProperties: false } } }];
const folder = mkdtempSync(join(tmpdir(), "holdfast-e2e-"));
let server, client;

before(async () => {
  server = spawn(process.env.HOLDFAST, ["serve", "--model", model, "--data", join(folder, "data"),
    "--port", "0", "--json", "--kv-memory", "256MiB"], { stdio: ["ignore", "pipe", "inherit"] });
  const first = await new Promise((ok, fail) => {
    createInterface({ input: server.stdout }).once("line", ok);
    server.once("exit", (code) => fail(new Error("the server did not start: " + code)));
  });
  client = new OpenAI({ baseURL: JSON.parse(first).listening + "/v1", apiKey: "none",
                        maxRetries: 0 });
});

after(() => {
  server.kill("SIGKILL");
  rmSync(folder, { recursive: true, force: true });
});

const ask = (content, more = {}) => client.chat.completions.create({
  model, messages: [{ role: "user", content }], temperature: 0, max_tokens: 24, ...more });

test("chat and streaming give the same text", async () => {
  const whole = (await ask("What is the capital of France? One word.")).choices[0].message.content;
  assert.match(whole, /Paris/);
  let text = "";
  for await (const chunk of await ask("What is the capital of France? One word.", { stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? "";
  }
  assert.equal(text, whole);
});

test("a tool round trip", async () => {
  const question = { role: "user", content: "What is the weather in Paris? Use the tool." };
  const first = await client.chat.completions.create({ model, messages: [question], tools,
    temperature: 0, max_tokens: 64 });
  const message = first.choices[0].message;
  assert.equal(first.choices[0].finish_reason, "tool_calls");
  assert.match(JSON.parse(message.tool_calls[0].function.arguments).city, /Paris/);
  const second = await client.chat.completions.create({ model, tools, tool_choice: "none", temperature: 0,
    max_tokens: 48, messages: [question, message,
      { role: "tool", tool_call_id: message.tool_calls[0].id, content: "17 degrees and rain" },
      { role: "user", content: "So how many degrees is it? Answer in words." }] });
  assert.match(second.choices[0].message.content, /17/);
});

test("response_format with a JSON schema", async () => {
  const schema = { type: "object", properties: { name: { type: "string" }, age: { type: "integer" } },
                   required: ["name", "age"], additionalProperties: false };
  const answer = await ask("Anna is 31 years old. Give name and age as JSON.", {
    response_format: { type: "json_schema", json_schema: { name: "p", strict: true, schema } } });
  assert.deepEqual(JSON.parse(answer.choices[0].message.content), { name: "Anna", age: 31 });
});

test("errors have their classes", async () => {
  await assert.rejects(ask("x", { temperature: 9 }), BadRequestError);
  await assert.rejects(ask("x", { session_id: "sess_missing" }), NotFoundError);
});

test("cancellation", async () => {
  const stream = await ask("Write a very long story.", { max_tokens: 2000, stream: true });
  let count = 0;
  for await (const chunk of stream) {
    if (chunk.choices.length > 0 && ++count === 5) stream.controller.abort();
  }
  const running = async () => {
    const text = await (await fetch(client.baseURL.replace("/v1", "/metrics"))).text();
    return Number(text.match(/holdfast_running_turns\{[^}]*\} (\d+)/)[1]);
  };
  const deadline = Date.now() + 20000;
  while (await running() > 0) assert.ok(Date.now() < deadline, "the turn goes on");
});
