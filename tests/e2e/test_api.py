"""The REST API on a tiny model: what is refused and how, tenants, sessions, limits."""
import json
import os
import socket
import threading
import time
import unittest

from harness import Server, TinyServerTest, run

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


class Refusals(TinyServerTest):
    def post(self, body):
        return self.server.call("POST", CHAT, body)

    def test_json_that_is_none(self):
        for body in ["", "{", "[1,2", "nul", '{"a":1}x', '"\\ud800"', b"\xff\xfe", '{"a":1e999}']:
            self.assertRefused(self.post(body), 400)

    def test_json_too_deep(self):
        self.assertRefused(self.post("[" * 100000), 400)
        self.assertRefused(self.post('{"messages":' + "[" * 70 + "]" * 70 + "}"), 400)

    def test_fields_of_the_wrong_type_or_range(self):
        cases = [
            ({"messages": "hello"}, "messages"),
            ({"messages": []}, "messages"),
            ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
            ({"messages": [{"content": "x"}]}, "messages[0].role"),
            ({"messages": [7]}, "messages[0]"),
            ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
             "messages[0].content[0].type"),
            ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
            ({"messages": HELLO, "temperature": 3}, "temperature"),
            ({"messages": HELLO, "temperature": "hot"}, "temperature"),
            ({"messages": HELLO, "top_p": -1}, "top_p"),
            ({"messages": HELLO, "n": 2}, "n"),
            ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
            ({"messages": HELLO, "max_tokens": 1.5}, "max_tokens"),
            ({"messages": HELLO, "seed": "x"}, "seed"),
            ({"messages": HELLO, "stop": [1]}, "stop"),
            ({"messages": HELLO, "stop": ["x"] * 17}, "stop"),
            ({"messages": HELLO, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
            ({"messages": HELLO, "tools": [{"type": "function"}]}, "tools[0].function"),
            ({"messages": HELLO, "tool_choice": "sometimes"}, "tool_choice"),
            ({"messages": HELLO, "tool_choice": "required"}, "tool_choice"),
            ({"messages": HELLO, "response_format": {"type": "xml"}}, "response_format.type"),
            ({"messages": HELLO, "response_format": {"type": "json_schema"}},
             "response_format.json_schema"),
            ({"messages": HELLO, "stream": 1}, "stream"),
            ({"messages": HELLO, "on_busy": "wait"}, "on_busy"),
        ]
        for body, param in cases:
            with self.subTest(param=param):
                self.assertRefused(self.post(body), 400, param)

    def test_context_overflow_names_both_counts(self):
        _, error = self.assertRefused(
            self.post({"messages": [{"role": "user", "content": "word " * 4000}]}), 400,
            "messages", "context_length_exceeded")
        self.assertIn("2048", error["message"])

    def test_unknown_things(self):
        self.assertRefused(self.server.call("GET", "/v1/nothing"), 404)
        self.assertRefused(self.server.call("GET", "/v1/sessions/sess_nothere"), 404)
        self.assertRefused(self.server.call("GET", "/v1/models/other"), 404)
        self.assertRefused(self.post({"messages": HELLO, "session_id": "sess_nothere"}), 404)
        headers, _ = self.assertRefused(self.server.call("DELETE", CHAT), 405)
        self.assertEqual(headers["allow"], "POST")

    def test_strict_schema_that_cannot_be_enforced(self):
        body = {"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "strict": True, "schema": {"type": "object", "properties": {
                "a": {"type": "nonsense"}}}}}}
        self.assertRefused(self.post(body), 400)

    def test_history_with_bad_json_in_a_tool_call_is_taken(self):
        answer = self.server.chat([
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "c1", "type": "function",
                 "function": {"name": "f", "arguments": "{not json"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "ok"}])
        self.assertEqual(answer["object"], "chat.completion")

    def test_unknown_tool_types_are_skipped(self):
        self.server.chat("x", tools=[{"type": "web_search"}, {"type": "function", "function": {
            "name": "f", "parameters": {"type": "object", "x-odd": 1}}}])

    def test_content_as_parts_and_developer_role(self):
        self.server.chat([{"role": "developer", "content": "be brief"},
                          {"role": "user", "content": [{"type": "text", "text": "hel"},
                                                       {"type": "text", "text": "lo"}]}])

    def test_web_pages_of_other_sites_are_kept_out(self):
        for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            self.assertRefused(self.server.call("GET", "/v1/models", headers=headers), 403)
        self.assertEqual(self.server.call("GET", "/v1/models", headers={
            "Origin": "http://localhost:3000"})[0], 200)


class Replays(TinyServerTest):
    """The replay route and command: reports, lines, refusals."""
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        no_end = {"logit_bias": {"0": -100, "2": -100}}  # answers end where max_tokens says
        cls.server.chat([{"role": "user", "content": "one"}], session_id="s", temperature=1.0,
                        **no_end)
        cls.server.call("POST", "/v1/sessions/s/turns", {
            "messages": [{"role": "user", "content": "two"}], "max_tokens": 12, **no_end})

    def replay(self, body, session="s"):
        return self.server.call("POST", "/v1/sessions/%s/replay" % session, body)

    def good(self, body):
        status, _, answer = self.replay(body)
        self.assertEqual(status, 200, answer)
        return answer

    def test_verify(self):
        report = self.good("")
        self.assertEqual((report["object"], report["mode"]), ("replay", "verify"))
        self.assertFalse(report["diverged"])
        self.assertIsNone(report["divergence"])
        self.assertEqual(report["steps"], 24)
        self.assertEqual(report["changed"], [])
        self.assertEqual(len(report["turns"]), 2)
        for turn in report["turns"]:
            self.assertGreater(turn["decode_ms"], 0)
            self.assertGreaterEqual(turn["ended_ms"], turn["created_ms"])
        report = self.good({"seed": 5})
        self.assertTrue(report["diverged"])
        d = report["divergence"]
        self.assertEqual((d["what"], d["cause"], d["role"]), ("token", "seed", "assistant"))
        self.assertNotEqual(d["expected"]["token"], d["got"]["token"])
        self.assertEqual(d["expected"]["digest"], d["got"]["digest"])
        self.assertEqual(d["turn_id"], report["turns"][0]["turn_id"])

    def test_forced(self):
        report = self.good({"mode": "forced", "top_k": 3, "from_item": 2})
        self.assertEqual(len(report["data"]), 12)
        for step in report["data"]:
            self.assertEqual(len(step["top"]), 3)
            self.assertGreaterEqual(step["rank"], 1)
            self.assertTrue(step["same"])
            self.assertEqual(step["item"], 3)

    def test_free(self):
        report = self.good({"mode": "free"})
        self.assertFalse(report["diverged"])
        self.assertIsNone(report["free"]["first_divergence"])
        report = self.good({"mode": "free", "name": "other", "edits": [
            {"item": 2, "content": "something else"}]})
        self.assertEqual(report["free"]["branch"], "other")
        items = self.server.call("GET", "/v1/sessions/s/items?branch=other")[2]["data"]
        self.assertEqual(items[2]["message"]["content"], "something else")
        self.assertEqual(items[3]["message"]["content"], report["free"]["content"])
        self.assertFalse(self.good({"branch": "other"})["diverged"])

    def test_lines(self):
        status, headers, text = self.replay({"mode": "verify", "stream": True})
        self.assertEqual(status, 200)
        self.assertEqual(headers["content-type"], "application/x-ndjson")
        lines = [json.loads(line) for line in text.splitlines()]
        self.assertEqual(lines[0]["type"], "start")
        self.assertEqual(lines[-1]["type"], "report")
        steps = [l for l in lines if l["type"] == "step"]
        self.assertEqual(len(steps), 24)
        self.assertTrue(all(s["same"] for s in steps))
        text = self.replay({"sampling": {"temperature": 2}, "mode": "free", "stream": True})[2]
        self.assertEqual(json.loads(text.splitlines()[-1])["mode"], "free")

    def test_hostile_bodies(self):
        for body, param in [
                ("{", None), ("[1]", None), ({"mode": "backwards"}, "mode"), ({"mode": 7}, "mode"),
                ({"from": -1}, "from"), ({"from": "x"}, "from"), ({"from": 9, "to": 3}, "from"),
                ({"to": 1 << 30}, "from"), ({"from_item": 99}, "from_item"),
                ({"top_k": 21}, "top_k"), ({"top_k": 1.5}, "top_k"), ({"seed": "x"}, "seed"),
                ({"sampling": []}, "sampling"), ({"sampling": {"heat": 1}}, "sampling.heat"),
                ({"sampling": {"temperature": 9}}, "sampling.temperature"),
                ({"edits": [{"item": 0, "content": "x"}]}, "edits"),
                ({"mode": "free", "edits": [7]}, "edits[0]"),
                ({"mode": "free", "edits": [{"item": 0}]}, "edits[0].content"),
                ({"mode": "free", "edits": [{"item": 1, "content": "x"}]}, "edits[0].item"),
                ({"mode": "free", "edits": [{"item": 1 << 39, "content": "x"}]}, "edits[0].item"),
                ({"mode": "free", "edits": [{"item": 0, "content": "x"},
                                            {"item": 2, "content": "x"}]}, "edits[1].item"),
                ({"mode": "free", "edits": [{"item": 0, "content": "x"}] * 65}, "edits"),
                ({"mode": "free", "to": 3}, "to"), ({"mode": "free", "from": 1 << 39}, "from"),
                ({"name": "x"}, "name"), ({"stream": 1}, "stream")]:
            with self.subTest(body=body):
                self.assertRefused(self.replay(body), 400, param)
        self.assertRefused(self.replay({"branch": "none"}), 404)
        self.assertRefused(self.replay({}, "nobody"), 404)
        self.assertRefused(self.server.call("GET", "/v1/sessions/s/replay"), 405)
        self.assertFalse(self.good({})["diverged"])

    def test_the_command(self):
        flags = ("--model", self.model, "--data", os.path.join(self.folder.name, "data"))
        trace = os.path.join(self.folder.name, "trace.json")
        status, out, error = run("replay", "s", *flags, "--trace", trace)
        self.assertEqual(status, 0, error)
        self.assertIn("no divergence", out)
        with open(trace) as f:
            events = json.load(f)["traceEvents"]
        names = [e["name"] for e in events if e["ph"] == "X"]
        self.assertEqual(names.count("decode"), 2)
        self.assertTrue(all(e["dur"] >= 0 for e in events if e["ph"] == "X"))
        status, out, _ = run("replay", "s", *flags, "--seed", "5")
        self.assertEqual(status, 1)
        self.assertIn("because of: seed", out)
        status, out, _ = run("replay", "s", *flags, "--mode", "forced", "--top-k", "2", "--json")
        self.assertEqual(status, 0)
        self.assertEqual(len(json.loads(out)["data"]), 24)
        status, out, _ = run("replay", "s", *flags, "--mode", "free", "--ndjson", "--edit",
                             "2=three")
        self.assertEqual(json.loads(out.splitlines()[-1])["type"], "report")
        self.assertEqual(run("replay", "nobody", *flags)[0], 1)
        self.assertEqual(run("replay", "s", *flags, "--edit", "x")[0], 1)
        self.assertEqual(run("replay", "s", *flags, "--mode", "x")[0], 2)


class Residency(TinyServerTest):
    """Where a session's tokens are, and loading them ahead."""

    def test_residency_and_prefetch(self):
        self.server.chat("a prompt of some length, said again and again. " * 8, session_id="r")
        path = "/v1/sessions/r"
        status, _, now = self.server.call("GET", path + "/residency")
        self.assertEqual(status, 200, now)
        self.assertEqual((now["object"], now["branch"], now["state"]),
                         ("residency", "main", "resident"))
        tiers = now["tiers"]
        self.assertEqual(sum(t["tokens"] for t in tiers.values()), now["tokens"])
        self.assertEqual((tiers["disk"]["tokens"], tiers["missing"]["tokens"]), (0, 1))
        self.assertGreater(tiers["pool"]["bytes"], 0)
        self.assertGreater(now["est_prefill_ms"], now["est_restore_ms"])
        self.assertEqual(self.server.call("GET", path + "/branches")[2]["data"][0]["state"],
                         "resident")
        self.assertEqual(self.server.stop(), 0)
        self.server.start()
        cold = self.server.call("GET", path + "/residency")[2]
        self.assertEqual(cold["state"], "cold")
        self.assertEqual(cold["tiers"]["pool"]["tokens"], 0)
        self.assertEqual(cold["tiers"]["missing"]["tokens"], 1)
        # What the last process has measured, and what reading a few pages took at the start.
        self.assertGreater(cold["est_prefill_ms"], cold["est_restore_ms"])
        status, _, begun = self.server.call("POST", path + "/prefetch")
        self.assertEqual(status, 202, begun)
        self.assertEqual(begun["started"]["tokens"], cold["tiers"]["disk"]["tokens"] // 32 * 32)
        self.assertEqual(begun["before"], cold)
        deadline = time.monotonic() + 30
        while self.server.call("GET", path + "/residency")[2]["state"] != "warm":
            self.assertLess(time.monotonic(), deadline)
        again = self.server.call("POST", path + "/prefetch", {"branch": "main"})[2]
        self.assertEqual(again["started"], {"pages": 0, "tokens": 0, "bytes": 0})
        keeper = self.server.chat("more", session_id="r")["keeper"]
        self.assertEqual(keeper["session_id"], cold["session_id"])

    def test_refusals(self):
        self.server.chat("hello", session_id="q")
        for path in ("/v1/sessions/nobody", "/v1/sessions/sess_0"):
            self.assertRefused(self.server.call("GET", path + "/residency"), 404)
            self.assertRefused(self.server.call("POST", path + "/prefetch"), 404)
        self.assertRefused(self.server.call("GET", "/v1/sessions/q/residency?branch=x"), 404)
        for body, param in [({"branch": 7}, "branch"), ({"wake_at": "soon"}, "wake_at"),
                            ({"wake_at": 1e13}, "wake_at"), ({"pin": 1}, "pin"), ("{", None)]:
            with self.subTest(body=body):
                self.assertRefused(self.server.call("POST", "/v1/sessions/q/prefetch", body), 400,
                                   param)

    def test_hints(self):
        ephemeral = {"type": "ephemeral"}
        good = [{"cache_control": {**ephemeral, "ttl": "1h"}}, {"cache_control": ephemeral},
                {"pin": True, "wake_at": time.time() + 60}, {"cache_control": None},
                {"messages": [{"role": "user", "content": [
                    {"type": "text", "text": "hi", "cache_control": ephemeral}]}]}]
        for extra in good:
            with self.subTest(extra=extra):
                body = {"messages": HELLO, "max_tokens": 2, **extra}
                self.assertEqual(self.server.call("POST", CHAT, body)[0], 200)
        part = {"type": "text", "text": "hi", "cache_control": {"ttl": "x"}}
        for extra, param in [
                ({"cache_control": {"ttl": "5"}}, "cache_control.ttl"),
                ({"cache_control": {"ttl": 5}}, "cache_control.ttl"),
                ({"cache_control": []}, "cache_control"), ({"pin": "yes"}, "pin"),
                ({"wake_at": -1}, "wake_at"),
                ({"messages": [{"role": "user", "content": [part]}]},
                 "messages[0].content[0].cache_control.ttl")]:
            with self.subTest(extra=extra):
                self.assertRefused(self.server.call("POST", CHAT, {"messages": HELLO, **extra}),
                                   400, param)


class Quotas(TinyServerTest):
    flags = ("--quota", "default=sessions:2,disk:1GiB", "--quota", "*=host:1GiB")

    def test_sessions(self):
        for name in ("a", "b"):
            self.assertEqual(self.server.call("POST", "/v1/sessions", {"id": name})[0], 201)
        for path, body in [("/v1/sessions", {"id": "c"}), (CHAT, {"messages": HELLO})]:
            answer = self.server.call("POST", path, body)
            headers, error = self.assertRefused(answer, 429, code="quota_exceeded")
            self.assertIn("DELETE /v1/sessions", error["message"])
            self.assertEqual(headers["x-should-retry"], "false")
        self.assertEqual(self.server.call("DELETE", "/v1/sessions/a")[0], 200)
        self.assertEqual(self.server.call("POST", "/v1/sessions", {"id": "c"})[0], 201)

    def test_flags(self):
        for flag in ("x", "=sessions:1", "a=rooms:1", "a=sessions", "a=sessions:x", "a=disk:0"):
            status, _, error = run("serve", "--model", self.model, "--port", "0", "--quota", flag)
            self.assertEqual(status, 1, flag)
            self.assertIn("--quota", error)


class Limits(TinyServerTest):
    def test_bodies_and_headers_too_large(self):
        self.assertRefused(self.server.call("POST", CHAT, headers={
            "Content-Length": str(1 << 40)}, body=b""), 413)
        chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        head = b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: localhost\r\n"
        reply = self.server.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 40)
        self.assertTrue(reply == b"" or reply.startswith(b"HTTP/1.1 413"), reply[:80])
        reply = self.server.raw(head + b"a: b\r\n" * 200000)
        self.assertTrue(reply == b"" or reply.startswith(b"HTTP/1.1 431"), reply[:80])

    def test_malformed_http_is_answered_and_nothing_hangs(self):
        head = b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        for data in (b"GARBAGE\r\n\r\n",
                     head + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
                     head + b"Content-Length: x\r\n\r\n",
                     head + b"Content-Length: -1\r\n\r\n",
                     head + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
                     head + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}"):
            reply = self.server.raw(data)
            self.assertRegex(reply[:12], rb"^HTTP/1.1 4\d\d")
        self.assertEqual(self.server.call("GET", "/health")[0], 200)

    def test_dripping_clients_starve_nobody(self):
        drips = [socket.create_connection((self.server.host, self.server.port)) for _ in range(64)]
        try:
            for _ in range(5):
                for d in drips:
                    d.send(b"G")
                start = time.monotonic()
                self.assertEqual(self.server.call("GET", "/health")[0], 200)
                self.assertLess(time.monotonic() - start, 5)
        finally:
            for d in drips:
                d.close()

    def test_request_ids(self):
        self.assertEqual(self.server.call("GET", "/v1/models", headers={
            "x-request-id": "abc"})[1]["x-request-id"], "abc")
        self.assertTrue(self.server.call("GET", "/v1/models")[1]["x-request-id"].startswith("req_"))


class FullQueue(TinyServerTest):
    flags = ("--max-queued", "1", "--max-running", "1")

    def test_429_with_retry_after(self):
        answers = []

        def ask(i):
            answers.append(self.server.call("POST", CHAT, {
                "messages": [{"role": "user", "content": "story %d" % i}], "max_tokens": 400,
                "logit_bias": {"2": -100}}))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        refused = [a for a in answers if a[0] == 429]
        self.assertTrue(refused, [a[0] for a in answers])
        for answer in refused:
            headers, _ = self.assertRefused(answer, 429)
            self.assertGreaterEqual(int(headers["retry-after"]), 1)
        self.assertTrue(any(a[0] == 200 for a in answers))


class Tenants(TinyServerTest):
    flags = ("--api-key", "anna=key-a", "--api-key", "bert=key-b")
    A, B = {"Authorization": "Bearer key-a"}, {"Authorization": "Bearer key-b"}

    def test_keys(self):
        for headers in ({}, {"Authorization": "Bearer nope"}, {"Authorization": "Basic key-a"}):
            self.assertRefused(self.server.call("GET", "/v1/models", headers=headers), 401,
                               code="invalid_api_key")
        self.assertEqual(self.server.call("GET", "/v1/models", headers=self.A)[0], 200)
        self.assertEqual(self.server.call("GET", "/health")[0], 200)

    def test_pages_and_sessions_stay_with_their_tenant(self):
        text = "the same long prompt for both tenants " * 30
        first = self.server.chat(text, self.A, session_id="mine")
        again = self.server.chat(text + "!", self.A)
        other = self.server.chat(text + "!", self.B)
        self.assertEqual(first["keeper"]["tokens"]["pool"] + first["keeper"]["tokens"]["warm"], 0)
        self.assertGreater(again["keeper"]["tokens"]["pool"], 64)   # the positive control
        for tier in ("warm", "pool", "disk"):
            self.assertEqual(other["keeper"]["tokens"][tier], 0)
        self.assertEqual(other["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
        self.assertEqual(again["choices"][0]["token_ids"], other["choices"][0]["token_ids"])
        session = first["keeper"]["session_id"]
        for path in ("", "/items", "/tokens", "/branches"):
            self.assertRefused(self.server.call("GET", "/v1/sessions/" + session + path,
                                                headers=self.B), 404)
        self.assertRefused(self.server.call("GET", "/v1/sessions/mine", headers=self.B), 404)
        self.assertRefused(self.server.call("DELETE", "/v1/sessions/" + session,
                                            headers=self.B), 404)
        self.assertEqual(self.server.call("GET", "/v1/sessions/" + session, headers=self.A)[0], 200)


class Sessions(TinyServerTest):
    def test_create_list_get_delete(self):
        status, _, made = self.server.call("POST", "/v1/sessions", {
            "id": "agent-7", "metadata": {"team": "x"}, "ttl_s": 3600})
        self.assertEqual(status, 201, made)
        self.assertEqual(made["external_id"], "agent-7")
        self.assertEqual(made["metadata"], {"team": "x"})
        self.assertRefused(self.server.call("POST", "/v1/sessions", {"id": "agent-7"}), 409)
        listed = self.server.call("GET", "/v1/sessions?limit=1")[2]
        self.assertEqual(listed["object"], "list")
        self.assertEqual(len(listed["data"]), 1)
        self.assertRefused(self.server.call("GET", "/v1/sessions?limit=0"), 400, "limit")
        self.assertEqual(self.server.call("DELETE", "/v1/sessions/agent-7")[2]["deleted"], True)
        self.assertRefused(self.server.call("GET", "/v1/sessions/agent-7"), 404)

    def test_turns_fork_rewind_snapshot(self):
        first = self.server.chat("one two three", session_id="tree")
        history = [{"role": "user", "content": "one two three"}, first["choices"][0]["message"],
                   {"role": "user", "content": "four"}]
        second = self.server.chat(history, session_id="tree")
        kept = second["keeper"]["tokens"]
        self.assertGreaterEqual(kept["kept"], first["usage"]["total_tokens"] - 1)
        self.assertGreater(kept["warm"], 0)
        items = self.server.call("GET", "/v1/sessions/tree/items")[2]["data"]
        self.assertEqual([i["role"] for i in items], ["user", "assistant", "user", "assistant"])
        tokens = self.server.call("GET", "/v1/sessions/tree/tokens")[2]["tokens"]
        self.assertEqual(tokens[:len(first["prompt_token_ids"])], first["prompt_token_ids"])

        snap = self.server.call("POST", "/v1/sessions/tree/snapshot", {"label": "here"})[2]
        self.assertTrue(snap["id"].startswith("snap_"))
        fork = self.server.call("POST", "/v1/sessions/tree/fork", {"at_item": 2, "name": "side"})
        self.assertEqual(fork[0], 201, fork[2])
        self.assertEqual(fork[2]["items"], 2)
        status, _, turn = self.server.call("POST", "/v1/sessions/tree/turns", {
            "branch": "side", "messages": [{"role": "user", "content": "four"}],
            "temperature": 0, "max_tokens": 12, "return_token_ids": True})
        self.assertEqual(status, 200, turn)
        self.assertEqual(turn["choices"][0]["token_ids"], second["choices"][0]["token_ids"])

        rewound = self.server.call("POST", "/v1/sessions/tree/rewind", {"at_item": 2})[2]
        self.assertTrue(rewound["default"])
        names = {b["name"] for b in self.server.call("GET", "/v1/sessions/tree/branches")[2]["data"]}
        self.assertIn("side", names)
        self.assertGreaterEqual(len(names), 3)
        back = self.server.call("POST", "/v1/sessions/tree/fork", {"snapshot": snap["id"]})[2]
        self.assertEqual(back["tokens"], snap["tokens"])
        self.assertRefused(self.server.call("POST", "/v1/sessions/tree/fork", {
            "at_item": 1, "at_token": 1}), 400)
        self.assertRefused(self.server.call("POST", "/v1/sessions/tree/fork", {
            "snapshot": "snap_no"}), 404)
        events = self.server.call("GET", "/v1/sessions/tree/events")[2]["data"]
        self.assertIn("turn_committed", {e["type"] for e in events})

    def test_a_branch_with_edits(self):
        first = self.server.chat("one two three", session_id="edit")
        history = [{"role": "user", "content": "one two three"}, first["choices"][0]["message"],
                   {"role": "user", "content": "four"}]
        history.append(self.server.chat(history, session_id="edit")["choices"][0]["message"])
        make = lambda body: self.server.call("POST", "/v1/sessions/edit/branches", body)
        status, _, made = make({"name": "other", "make_default": True, "edits": [
            {"op": "replace", "item": 2, "content": "five"},
            {"op": "insert", "item": 4, "message": {"role": "user", "content": "and?"}}]})
        self.assertEqual(status, 201, made)
        items = self.server.call("GET", "/v1/sessions/edit/items?branch=main")[2]["data"]
        self.assertEqual((made["items"], made["parent"], made["default"]), (5, "main", True))
        self.assertEqual(made["parent_tokens"], items[2]["tokens"]["first"])
        history[2]["content"] = "five"
        history.append({"role": "user", "content": "and?"})
        stored = self.server.call("GET", "/v1/sessions/edit/items")[2]["data"]
        self.assertEqual([i["message"]["content"] for i in stored], [m["content"] for m in history])
        # A turn appended there, and a chat that sends this history, say the same.
        add = [{"role": "user", "content": "go on"}]
        status, _, turn = self.server.call("POST", "/v1/sessions/edit/turns", {
            "messages": add, "temperature": 0, "max_tokens": 12, "return_token_ids": True})
        self.assertEqual(turn["keeper"]["branch"], "other")
        self.assertEqual(turn["keeper"]["tokens"]["kept"], made["tokens"])
        sent = self.server.chat(history + add, session_id="edit")
        self.assertEqual(turn["choices"][0]["token_ids"], sent["choices"][0]["token_ids"])
        status, out, error = run("sessions", "fork", "edit", "--branch", "main", "--edit",
                                 "0=uno", "--remove", "3", "--name", "cli", "--json", "--model",
                                 self.model, "--data", os.path.join(self.folder.name, "data"))
        self.assertEqual(status, 0, error)
        self.assertEqual((json.loads(out)["items"], json.loads(out)["parent_tokens"]), (3, 0))
        for edits, param in [
                ([], "edits"), ("x", "edits"), ([7], "edits[0]"), ([{}], "edits[0].op"),
                ([{"op": "move", "item": 0}], "edits[0].op"), ([{"op": "remove"}], "edits[0].item"),
                ([{"op": "remove", "item": 4}], "edits[0].item"),
                ([{"op": "remove", "item": -1}], "edits[0].item"),
                ([{"op": "remove", "item": 0, "count": 5}], "edits[0].item"),
                ([{"op": "remove", "item": 0, "count": 0}], "edits[0].count"),
                ([{"op": "remove", "item": 0, "content": "x"}], "edits[0].content"),
                ([{"op": "replace", "item": 0}], "edits[0].content"),
                ([{"op": "replace", "item": 0, "content": 7}], "edits[0].content"),
                ([{"op": "insert", "item": 0}], "edits[0].message"),
                ([{"op": "insert", "item": 5, "message": add[0]}], "edits[0].item"),
                ([{"op": "insert", "item": 0, "message": {"role": "x"}}], "edits[0].message.role"),
                ([{"op": "remove", "item": 0, "count": 2},
                  {"op": "replace", "item": 1, "content": "x"}], "edits[1].item"),
                ([{"op": "replace", "item": 0, "content": "long " * 4000}], "edits"),
                ([{"op": "remove", "item": 0}] * 65, "edits")]:
            with self.subTest(edits=str(edits)[:60]):
                self.assertRefused(make({"from": {"branch": "main"}, "edits": edits}), 400, param)
        self.assertRefused(make({"from": {"at_item": 1, "at_token": 1}}), 400, "from.at_item")
        self.assertRefused(make({"from": {"branch": "none"}}), 404)

    def test_idempotency_key(self):
        key = {"Idempotency-Key": "k1"}
        ask = {"seed": 7, "temperature": 1, "session_id": "idem"}
        first = self.server.chat("roll", key, **ask)
        again = self.server.chat("roll", key, **ask)
        self.assertTrue(again["keeper"]["replayed"])
        self.assertEqual(first["choices"], again["choices"])
        self.assertRefused(self.server.call("POST", CHAT, {"messages": HELLO, "session_id": "idem"},
                                            key), 409)

    def test_if_match_guards_a_head(self):
        first = {"role": "user", "content": "one"}
        path = "/v1/sessions/guarded/turns"
        add = lambda tag, body=None: self.server.call(
            "POST", path, {"messages": [{"role": "user", "content": "more"}], "max_tokens": 4,
                           **(body or {})}, {"If-Match": tag} if tag else {})
        head = self.server.chat([first], session_id="guarded", max_tokens=4)["keeper"]["head"]
        self.assertEqual(head, "main:1")
        status, headers, answer = add('"main:1"')
        self.assertEqual(status, 200)
        self.assertEqual(headers["etag"], '"main:2"')
        self.assertEqual(answer["keeper"]["head"], "main:2")
        _, _, branches = self.server.call("GET", "/v1/sessions/guarded/branches")
        self.assertEqual([b["head"] for b in branches["data"]], ["main:2"])
        _, error = self.assertRefused(add('"main:1"'), 409, code="head_moved")
        self.assertIn("main:2", error["message"])
        for bad in ("main:2", "*", '"main"', 'W/"main:2"'):
            with self.subTest(tag=bad):
                self.assertRefused(add(bad), 400)
        self.assertRefused(add('"main:2"', {"branch": "side"}), 400)
        self.assertRefused(add('"side:2"'), 404)
        self.assertRefused(self.server.call("POST", CHAT, {"messages": [first]},
                                            {"If-Match": '"main:0"'}), 400)

    def test_a_seed_gives_the_same_answer_and_another_seed_another(self):
        ask = lambda seed: self.server.chat("dice", seed=seed, temperature=1.5,
                                            max_tokens=24)["choices"][0]["token_ids"]
        self.assertEqual(ask(1), ask(1))
        self.assertNotEqual(ask(1), ask(2))

    def test_tool_call_ids_stand_for_the_sampled_tokens(self):
        tools = [{"type": "function", "function": {"name": "look", "parameters": {
            "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
            "additionalProperties": False}}}]
        user = {"role": "user", "content": "look at it"}
        first = self.server.chat([user], session_id="tools", tools=tools, tool_choice="required",
                                 parallel_tool_calls=False, max_tokens=80)
        message = first["choices"][0]["message"]
        if first["choices"][0]["finish_reason"] != "tool_calls":
            self.assertEqual(first["choices"][0]["finish_reason"], "length")
            return  # a random model may fill the limit with digits
        call = message["tool_calls"][0]
        arguments = json.loads(call["function"]["arguments"])
        self.assertIsInstance(arguments["n"], int)
        # The client writes the arguments its own way; the id is what counts.
        call["function"]["arguments"] = json.dumps(arguments, indent=3)
        second = self.server.chat([user, message, {"role": "tool", "tool_call_id": call["id"],
                                                   "content": "seen"}],
                                  session_id="tools", tools=tools)
        self.assertGreaterEqual(second["keeper"]["tokens"]["kept"],
                                first["usage"]["total_tokens"] - 1)
        self.assertIsNone(second["keeper"]["miss"])

    def test_an_edited_history_says_where_it_differs(self):
        first = self.server.chat("alpha", session_id="edit")
        answer = first["choices"][0]["message"]
        self.server.chat([{"role": "user", "content": "alpha"}, answer,
                          {"role": "user", "content": "beta"}], session_id="edit")
        edited = self.server.chat([{"role": "user", "content": "alpha"}, answer,
                                   {"role": "user", "content": "gamma"}], session_id="edit")
        self.assertIsNotNone(edited["keeper"]["miss"])
        self.assertEqual(edited["keeper"]["miss"]["message"], 2)
        self.assertGreater(edited["keeper"]["tokens"]["kept"], 0)


class Streaming(TinyServerTest):
    def events(self, body):
        status, headers, text = self.server.call("POST", CHAT, {**body, "stream": True})
        self.assertEqual(status, 200)
        self.assertTrue(headers["content-type"].startswith("text/event-stream"))
        lines = [l[6:] for l in text.split("\n") if l.startswith("data: ")]
        self.assertEqual(lines[-1], "[DONE]")
        return [json.loads(l) for l in lines[:-1]]

    def test_chunks_add_up_to_the_whole_answer(self):
        ask = {"messages": HELLO, "temperature": 0, "max_tokens": 20, "return_token_ids": True}
        whole = self.server.call("POST", CHAT, ask)[2]
        chunks = self.events({**ask, "stream_options": {"include_usage": True}})
        text = "".join(c["choices"][0]["delta"].get("content") or ""
                       for c in chunks if c["choices"])
        ids = [t for c in chunks if c["choices"] for t in c["choices"][0]["token_ids"]]
        self.assertEqual(text, whole["choices"][0]["message"]["content"])
        self.assertEqual(ids, whole["choices"][0]["token_ids"])
        self.assertEqual(chunks[0]["choices"][0]["delta"]["role"], "assistant")
        self.assertEqual(chunks[-1]["choices"], [])
        self.assertEqual(chunks[-1]["usage"]["completion_tokens"], len(ids))

    def test_a_stop_string_cuts_text_and_timeline(self):
        whole = self.server.chat("cut", max_tokens=30)
        text = whole["choices"][0]["message"]["content"]
        stop = text[len(text) // 2:][:3]
        cut = self.server.chat("cut", max_tokens=30, stop=[stop], session_id="cut")
        self.assertEqual(cut["choices"][0]["message"]["content"], text[:text.index(stop)])
        self.assertEqual(cut["choices"][0]["finish_reason"], "stop")
        tokens = self.server.call("GET", "/v1/sessions/cut/tokens")[2]["tokens"]
        self.assertLessEqual(len(tokens), cut["usage"]["prompt_tokens"] +
                             len(cut["choices"][0]["token_ids"]))

    def test_logprobs(self):
        answer = self.server.chat("p", logprobs=True, top_logprobs=3, max_tokens=4)
        for entry in answer["choices"][0]["logprobs"]["content"]:
            self.assertLessEqual(entry["logprob"], 0)
            self.assertEqual(len(entry["top_logprobs"]), 3)
            # Temperature 0: the token is the best one.
            self.assertEqual(entry["logprob"], entry["top_logprobs"][0]["logprob"])

    def test_a_client_that_leaves_ends_its_turn(self):
        body = json.dumps({"messages": HELLO, "max_tokens": 1500, "stream": True,
                           "logit_bias": {"2": -100}, "session_id": "gone"}).encode()
        s = socket.create_connection((self.server.host, self.server.port))
        s.sendall(b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: " +
                  str(len(body)).encode() + b"\r\n\r\n" + body)
        s.recv(2000)
        s.close()
        deadline = time.monotonic() + 20
        while self.server.metric("running_turns") > 0:
            self.assertLess(time.monotonic(), deadline)
        self.assertEqual(self.server.metric("running_sequences"), 0)

    def test_metrics_and_models(self):
        self.assertGreaterEqual(self.server.metric("generated_tokens_total"), 0)
        model = self.server.call("GET", "/v1/models")[2]["data"][0]
        self.assertEqual(model["context_length"], 2048)
        tokens = self.server.call("POST", "/tokenize", {"content": "hello <|im_end|>"})[2]["tokens"]
        self.assertTrue(all(t != 2 for t in tokens))
        back = self.server.call("POST", "/detokenize", {"tokens": tokens})[2]["content"]
        self.assertEqual(back, "hello <|im_end|>")


    def test_metrics_of_what_is_written(self):
        text = self.server.call("GET", "/metrics")[2]
        for name in ("page_writer_queued_pages", "page_writer_written_pages_total",
                     "page_writer_dropped_pages_total", "page_writer_failed_pages_total",
                     "page_writer_syncs_total", "page_writer_failed_syncs_total",
                     "database_queued_writes", "database_commits_total",
                     "database_commit_failures_total", "database_failed_writes_total",
                     "gc_total", "gc_pages_total", "tails_written_total"):
            self.assertEqual(text.count("# HELP holdfast_%s " % name), 1, name)
            self.assertGreaterEqual(self.server.metric(name), 0)
        before = self.server.metric("database_commits_total")
        heads = self.heads()
        self.assertEqual(set(heads), {"resident", "warm", "cold", "restoring", "running",
                                      "tool-wait", "superseded"})
        self.server.chat(HELLO, session_id="counted")
        self.assertGreater(self.server.metric("database_commits_total"), before)
        self.assertEqual(sum(self.heads().values()), sum(heads.values()) + 1)

    def heads(self):
        """How many heads are in each state."""
        states = {}
        for line in self.server.call("GET", "/metrics")[2].splitlines():
            if line.startswith("holdfast_heads{"):
                states[line.split('state="')[1].split('"')[0]] = float(line.split()[-1])
        return states


class Speculation(TinyServerTest):
    """Drafts are seen in the usage and in the metrics, and nowhere else."""
    # Long enough that what was said comes again: a draft is tried at least every 64 steps.
    ASK = {"max_tokens": 400, "logit_bias": {"2": -100}}

    def drafts(self, answer):
        details = answer["usage"]["completion_tokens_details"]
        return details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]

    def counters(self, server):
        return [server.metric(name + "_total") for name in ("accepted_draft_tokens",
                                                            "drafted_tokens")]

    def test_usage_and_metrics_count_the_same_drafts(self):
        before = self.counters(self.server)
        accepted, rejected = self.drafts(self.server.chat("again and again " * 20, **self.ASK))
        self.assertGreater(accepted + rejected, 0)
        after = self.counters(self.server)
        self.assertEqual(after[0] - before[0], accepted)
        self.assertEqual(after[1] - before[1], accepted + rejected)
        events = self.server.call("POST", CHAT, {
            "messages": HELLO, **self.ASK, "stream": True,
            "stream_options": {"include_usage": True}})[2]
        usage = [json.loads(l[6:]) for l in events.split("\n") if l.startswith("data: {")][-1]
        self.assertEqual(self.counters(self.server)[1] - after[1], sum(self.drafts(usage)))

    def test_a_request_can_refuse_drafts_and_gets_the_same_tokens(self):
        for fields in ({"temperature": 0}, {"temperature": 0.7, "seed": 5}):
            with self.subTest(**fields):
                ask = {**self.ASK, **fields}
                with_drafts = self.server.chat("the same text", **ask)
                before = self.counters(self.server)
                without = self.server.chat("the same text", speculate=False, **ask)
                self.assertEqual(self.counters(self.server), before)
                self.assertEqual(self.drafts(without), (0, 0))
                self.assertEqual(with_drafts["choices"], without["choices"])
        self.assertRefused(self.server.call("POST", CHAT, {"messages": HELLO, "speculate": "no"}),
                           400, "speculate")

    def test_a_server_can_go_without(self):
        want = self.server.chat("the same text", **self.ASK)
        for flags, env in ((("--no-speculation",), {}), ((), {"HOLDFAST_NO_SPECULATION": "true"})):
            folder = os.path.join(self.folder.name, "without" + str(len(flags)))
            other = Server(self.model, folder, *flags, **env)
            try:
                got = other.chat("the same text", speculate=True, **self.ASK)
                self.assertEqual(self.drafts(got), (0, 0))
                self.assertEqual(self.counters(other), [0, 0])
                self.assertEqual(got["choices"], want["choices"])
            finally:
                other.kill()


if __name__ == "__main__":
    unittest.main()
