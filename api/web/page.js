// The page at "/": sessions, their branches, timing and messages, and replays of them. It uses the
// REST API and nothing else. Text from sessions goes into the page as text, never as markup.
"use strict";

const at = (id) => document.getElementById(id);
const kRefreshMs = 3000;

// An element: its tag, its properties, its children (nodes or texts; null is left out).
function h(tag, props, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(props || {})) {
    if (name in e) e[name] = value; else e.setAttribute(name, value);
  }
  e.append(...children.flat().filter((c) => c !== null && c !== undefined));
  return e;
}

function svg(tag, attributes, ...children) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  e.append(...children);
  return e;
}

// ---- The API

const key = at("key");
key.value = sessionStorage.getItem("key") || "";
key.addEventListener("change", () => { sessionStorage.setItem("key", key.value); refresh(); });

async function ask(method, path, body) {
  const headers = key.value ? { authorization: "Bearer " + key.value } : {};
  if (body !== undefined) headers["content-type"] = "application/json";
  const reply = await fetch(path, { method, headers,
                                    body: body === undefined ? undefined : JSON.stringify(body) });
  if (reply.ok) return reply;
  const error = await reply.json().catch(() => ({}));
  throw new Error(error.error ? error.error.message : "HTTP " + reply.status);
}
const get = async (path) => (await ask("GET", path)).json();
const post = async (path, body) => (await ask("POST", path, body)).json();

async function all(path) {  // every page of a list
  const rows = [];
  for (let after = null; ;) {
    const page = await get(path + (path.includes("?") ? "&" : "?") + "limit=1000" +
                           (after ? "&after=" + encodeURIComponent(after) : ""));
    rows.push(...page.data);
    if (!page.has_more) return rows;
    after = page.next;
  }
}

async function lines(path, body, take) {  // an answer of lines of JSON, each as it comes
  const reader = (await ask("POST", path, body)).body.getReader();
  const decoder = new TextDecoder();
  for (let rest = ""; ;) {
    const { done, value } = await reader.read();
    rest += done ? "" : decoder.decode(value, { stream: true });
    const whole = rest.split("\n");
    rest = whole.pop();
    for (const line of whole) {
      const json = JSON.parse(line);
      if (json.error) throw new Error(json.error.message);
      take(json);
    }
    if (done) return;
  }
}

// Runs what a click asks for; its error is shown.
async function attempt(action) {
  at("trouble").textContent = "";
  try {
    return await action();
  } catch (error) {
    at("trouble").textContent = error.message;
  }
}

// ---- Text

const bytes = (n) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  for (; n >= 1024 && i < units.length - 1; ++i) n /= 1024;
  return (i && n < 100 ? n.toFixed(1) : Math.round(n)) + " " + units[i];
};
const ms = (n) => n < 10 ? n.toFixed(1) + " ms" : n < 10000 ? Math.round(n) + " ms"
                                                            : (n / 1000).toFixed(1) + " s";
const when = (unix_s) => new Date(unix_s * 1000).toLocaleString();
const count = (n, what) => n.toLocaleString() + " " + what + (n === 1 ? "" : "s");
const textOf = (content) => typeof content === "string" ? content
    : Array.isArray(content) ? content.map((p) => p.text || JSON.stringify(p)).join("\n") : "";

// ---- The head of the page

function metric(text, name) {
  const found = text.match(new RegExp("^holdfast_" + name + "\\{[^}]*\\} (\\S+)$", "m"));
  return found ? Number(found[1]) : 0;
}

async function refreshHead() {
  const text = await (await ask("GET", "metrics")).text();
  const m = (name) => metric(text, name);
  at("load").textContent = `${m("running_sequences")} running, ${m("queued_requests")} waiting`;
  at("memory").textContent =
      `KV: ${m("pool_leased_pages") + m("pool_cached_pages")} of ${m("pool_slots_max")} pages in ` +
      `memory, ${bytes(m("store_bytes"))} on disk`;
  at("degraded").hidden = !m("degraded");
}

// ---- The list of sessions

let sessions = [], pages = 1, chosen = null;

async function loadSessions() {
  const rows = [];
  let next = null;
  for (let i = 0; i < pages && (i === 0 || next); ++i) {
    const page = await get("v1/sessions?limit=100" +
                           (next ? "&after=" + encodeURIComponent(next) : ""));
    rows.push(...page.data);
    next = page.next;
  }
  sessions = rows.sort((a, b) => b.updated_at - a.updated_at);
  at("more").hidden = !next;
  listSessions();
}

function listSessions() {
  const wanted = at("filter").value.toLowerCase();
  const shown = sessions.filter((s) => (s.id + " " + (s.external_id || "")).toLowerCase()
                                           .includes(wanted));
  at("sessions").replaceChildren(...shown.map((s) => h("button", {
    className: "row" + (chosen && chosen.id === s.id ? " chosen" : ""), title: s.id,
    onclick: () => attempt(() => show(s.id)) },
    s.external_id || s.id, h("br"),
    h("small", null, `${count(s.turns, "turn")}, ${count(s.tokens, "token")}, ` +
                     when(s.updated_at)))));
}
at("filter").addEventListener("input", listSessions);
at("more").addEventListener("click", () => attempt(() => { ++pages; return loadSessions(); }));

// ---- One session

async function show(id, branch) {
  const path = "v1/sessions/" + encodeURIComponent(id);
  const query = branch ? "?branch=" + encodeURIComponent(branch) : "";
  const [session, branches, snapshots, items, turns] = await Promise.all([
    get(path), all(path + "/branches"), all(path + "/snapshots"), all(path + "/items" + query),
    all(path + "/turns" + query)]);
  chosen = { id: session.id, path, branch: branch || session.default_branch, items };
  listSessions();
  at("view").replaceChildren(
    h("h2", null, session.external_id || session.id),
    h("div", { className: "meta" }, `${session.id}, ${session.model}, ` +
      `${count(branches.length, "branch").replace("branchs", "branches")}, since ` +
      when(session.created_at)),
    h("div", { className: "bar" },
      button("Verify", "Compute it all again, cold, and compare every bit",
             () => replay({ mode: "verify" })),
      button("Alternatives", "What else might have been said, at each token",
             () => replay({ mode: "forced", top_k: 5 })),
      button("Snapshot", "A label at the end of this branch", async () => {
        const label = prompt("Label of the snapshot");
        if (label === null) return;
        await post(path + "/snapshot", { branch: chosen.branch, label });
        await show(id, branch);
      }),
      button("Export", "The session as one file, without a key: tokens only", download),
      button("Delete", "Delete the session with all its branches", async () => {
        if (!confirm("Delete this session with all its branches?")) return;
        await ask("DELETE", path);
        sessions = sessions.filter((s) => s.id !== session.id);
        chosen = null;
        at("view").replaceChildren(h("p", { className: "meta" }, "Deleted."));
        listSessions();
      })),
    h("div", { id: "outcome", "aria-live": "polite" }),
    h("h3", null, "Branches"), tree(branches, snapshots, id),
    h("h3", null, "Turns of " + chosen.branch), lanes(turns),
    h("h3", null, "Messages of " + chosen.branch), ...items.map(itemCard));
}

function button(text, title, action) {
  return h("button", { title, onclick: (event) => {
    event.target.disabled = true;
    attempt(action).finally(() => { event.target.disabled = false; });
  } }, text);
}

function tree(branches, snapshots, id) {
  const under = (parent, depth) => branches.filter((b) => (b.parent || "") === parent).flatMap((b) => [
    h("button", { className: "row" + (b.name === chosen.branch ? " chosen" : ""),
                  style: `padding-left: ${0.5 + 1.5 * depth}rem`,
                  onclick: () => attempt(() => show(id, b.name)) },
      (depth ? "└ " : "") + b.name + " ",
      h("small", null, `${count(b.items, "message")}, ${count(b.tokens, "token")}` +
        (depth ? `, left at token ${b.parent_tokens}` : "") + (b.default ? ", default" : "") +
        (b.busy ? ", a turn runs" : "") + (b.resident ? ", in memory" : ""),
        ...snapshots.filter((s) => s.branch === b.name)
            .map((s) => ` ⚑ ${s.label || s.id} at ${s.tokens}`))),
    ...under(b.name, depth + 1)]);
  return h("div", null, ...under("", 0));
}

// Where each turn's time went.
const kParts = { restore: "#b7791f", queue: "#888", prefill: "#2a78c8", decode: "#2c8a4b" };

function lanes(turns) {
  if (turns.length === 0) return h("p", { className: "meta" }, "None yet.");
  const total = (t) => Object.keys(kParts).reduce((sum, p) => sum + t[p + "_ms"], 0);
  const most = Math.max(...turns.map(total), 1), kRow = 18, kLeft = 130, kWide = 660;
  const rows = turns.map((t, i) => {
    let x = kLeft;
    const bars = Object.entries(kParts).map(([part, fill]) => {
      const width = t[part + "_ms"] / most * kWide;
      const bar = svg("rect", { x, y: i * kRow + 3, width, height: kRow - 6, fill });
      bar.append(svg("title", {}, `${part} ${ms(t[part + "_ms"])}`));
      x += width;
      return bar;
    });
    return svg("g", {}, svg("text", { x: 0, y: i * kRow + 13 },
                            `tokens ${t.tokens.first}–${t.tokens.end}`), ...bars,
               svg("text", { x: x + 6, y: i * kRow + 13 }, ms(total(t))));
  });
  const chart = svg("svg", { viewBox: `0 0 ${kLeft + kWide + 80} ${turns.length * kRow}`,
                             role: "img", "aria-label": "Time of each turn" }, ...rows);
  return h("div", null, h("div", { className: "meta" }, ...Object.entries(kParts).map(
      ([part, fill]) => h("span", null, h("span", { style: "color: " + fill }, "■ "), part + "  "))),
    chart);
}

function itemCard(item) {
  const message = item.message || {};
  const calls = (message.tool_calls || []).map((c) => `${c.function.name}(${c.function.arguments})`);
  const branchFrom = (verb) => async () => {
    const made = await post(chosen.path + "/" + verb,
                            { branch: chosen.branch, at_item: item.index + 1 });
    await show(chosen.id, made.name);
  };
  return h("div", { className: "item " + item.role },
    h("span", { className: "actions" },
      button("Fork", "A new branch from behind this message", branchFrom("fork")), " ",
      item.sampled ? button("Again", "Generate this answer again, with another seed", () =>
                            replay({ mode: "free", from_item: item.index, seed: randomSeed() }))
                   : button("What if", "Change this message and generate the answer again",
                            () => whatIf(item))),
    h("b", null, item.role), h("span", { className: "meta" },
      ` ${item.index}, tokens ${item.tokens.first}–${item.tokens.first + item.tokens.count}` +
      (item.call_id ? `, call ${item.call_id}` : "")),
    h("pre", null, [textOf(message.content), ...calls].filter((t) => t).join("\n")));
}

async function download() {
  const file = await (await ask("GET", chosen.path + "/export")).blob();
  const link = h("a", { href: URL.createObjectURL(file), download: chosen.id + ".bundle" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// ---- Replay

const randomSeed = () => Math.floor(Math.random() * 2 ** 31);

async function whatIf(item) {
  const dialog = at("edit");
  at("edit-text").value = textOf((item.message || {}).content);
  dialog.showModal();
  await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
  if (dialog.returnValue !== "go") return;
  const body = { mode: "free", edits: [{ item: item.index, content: at("edit-text").value }] };
  if (at("edit-seed").value) body.seed = Number(at("edit-seed").value);
  if (at("edit-temperature").value) {
    body.sampling = { temperature: Number(at("edit-temperature").value) };
  }
  await replay(body);
}

async function replay(body) {
  const outcome = at("outcome"), bar = h("progress", { max: 1, value: 0 });
  const strip = h("div", { className: "tokens" });
  outcome.replaceChildren(bar, strip);
  at("tip").style.display = "none";
  outcome.scrollIntoView({ block: "nearest" });
  let total = 1, item = -1, report = null;
  await lines(chosen.path + "/replay", { ...body, branch: chosen.branch, stream: true }, (line) => {
    if (line.type === "start") total = Math.max(line.tokens, 1);
    if (line.type === "progress") bar.value = line.done / Math.max(line.total, 1);
    if (line.type === "step") {
      bar.value = line.index / total;
      if (body.mode !== "verify") {
        if (line.item !== item) strip.append(h("div", { className: "meta" }, "message " + line.item));
        item = line.item;
        strip.append(tokenOf(line));
      }
    }
    if (line.type === "report") report = line;
  });
  bar.remove();
  if (report === null) throw new Error("the replay ended without a report");
  outcome.prepend(verdict(report));
  if (report.free) {
    strip.replaceChildren(...report.free.diff.flatMap((d) => d.equal ? [d.replayed.text]
        : [h("del", null, d.recorded.text), h("ins", null, d.replayed.text)]));
    const branch = report.free.branch;
    outcome.append(h("div", { className: "bar" }, button("Open branch " + branch, "",
                                                         () => show(chosen.id, branch))));
  }
}

function verdict(r) {
  if (r.free) {
    const first = r.free.first_divergence;
    return h("p", null, `New answer on branch ${r.free.branch}: ` +
      (first === null ? "the same as the recorded one." : `differs from its token ${first} on.`));
  }
  if (r.mode === "forced") {
    return h("p", null, "What was recorded, token by token: the darker, the less likely. " +
      "Point at one for what else might have been said.");
  }
  if (!r.diverged) {
    return h("p", { className: "good" }, `✓ Identical: ${count(r.tokens, "token")} computed again, ` +
      `${count(r.steps, "answer token")} and ${count(r.pages.memory + r.pages.disk, "page")} ` +
      `compared bit for bit, in ${ms(r.ms)}.`);
  }
  const d = r.divergence;
  return h("p", { className: "bad" }, `✗ Differs from token ${d.index} on (message ${d.item}` +
    `${d.role ? ", " + d.role : ""}): ${d.what}, because of ${d.cause}. ${d.detail}`);
}

// A token, the paler the surer; what else it might have been in a tip.
function tokenOf(step) {
  const p = Math.exp(step.logprob);
  const e = h("span", { className: (step.origin === "forced" ? "forced" : "") +
                                   (step.same === false ? " other" : "") }, step.text);
  if (step.origin !== "forced" && Number.isFinite(p)) {
    e.style.background = `rgba(183, 121, 31, ${(0.55 * (1 - p)).toFixed(2)})`;
  }
  const top = step.top || [];
  e.addEventListener("mouseenter", () => {
    const tip = at("tip"), box = e.getBoundingClientRect();
    tip.textContent = [`token ${step.index}, rank ${step.rank || "?"}`, ...top.map((t) =>
      (100 * Math.exp(t.logprob)).toFixed(1).padStart(5) + " % " + JSON.stringify(t.text))].join("\n");
    tip.style.display = "block";
    tip.style.left = Math.min(box.left, innerWidth - 240) + "px";
    tip.style.top = box.bottom + 6 + "px";
  });
  e.addEventListener("mouseleave", () => { at("tip").style.display = "none"; });
  return e;
}

// ---- Life

async function refresh() {
  try {
    if (!at("model").textContent) {
      at("model").textContent = (await get("v1/models")).data[0].id;
    }
    await refreshHead();
    await loadSessions();
    at("offline").textContent = "";
  } catch (error) {
    at("offline").textContent = error.message;
  }
}
refresh();
setInterval(() => { if (!document.hidden) refresh(); }, kRefreshMs);
