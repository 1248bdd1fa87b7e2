"""The OpenAPI document against the server: the same routes, the same fields, the same answers.

Every route is called, with every field of its body and every status that the document names; each
request and each answer must fit its schema, in which our own objects are closed.
"""
import http.client
import json
import os
import re
import unittest

from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from harness import EventStream, Server, TinyServerTest

API = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../api")
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
END = {"2": 100}  # a bias that ends the answer at once
# Statuses that any route may give, described once.
GENERAL = {"401", "403", "405", "408", "413", "415", "429", "431", "500", "503", "507"}
# Whose fields each file reads.
READERS = {
    "openai_chat.cc": ["ChatRequest"],
    "session_routes.cc": ["CreateSessionRequest", "BranchRequest", "MakeBranchRequest",
                          "SnapshotRequest", "PrefetchRequest", "HardenRequest", "PinRequest"],
    "replay_json.cc": ["ReplayRequest"],
    "segment_routes.cc": ["SegmentRequest", "PinRequest"],
    "admin_routes.cc": ["FsckRequest", "GcRequest", "BackupRequest"],
    "server.cc": ["TokenizeRequest", "DetokenizeRequest"],
}
PASSED_ON = {"description"}  # to the model's template, as they are
SHARED = "openai_chat.cc"    # reads messages and hints for others too
KEEP = {"type": "ephemeral", "ttl": "1h"}
MESSAGES = [
    {"role": "developer", "content": "be brief", "name": "n", "cache_control": KEEP},
    {"role": "user", "content": [{"type": "text", "text": "hel", "cache_control": KEEP},
                                 {"type": "refusal", "refusal": "lo"}]},
    {"role": "assistant", "content": None, "reasoning_content": "r", "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "c", "content": "ok"}]


def source(name):
    with open(os.path.join(API, name)) as f:
        return f.read()


def parts(schema):
    """Schemas of the same values, and of an array's entries."""
    return schema.get("anyOf", []) + ([schema["items"]] if "items" in schema else [])


def filled(path, name):
    return re.sub(r"{\w+}", name, path)


class Contract:
    """The document, and the validators of its parts."""

    def __init__(self, document):
        self.document = document
        self.registry = Registry().with_resource("urn:api", DRAFT202012.create_resource(document))

    def follow(self, node):
        """What a reference stands for."""
        while "$ref" in node:
            target = self.document
            for part in node["$ref"][2:].split("/"):
                target = target[part]
            node = target
        return node

    def errors(self, schema, value):
        def absolute(node):
            if isinstance(node, list):
                return [absolute(n) for n in node]
            if not isinstance(node, dict):
                return node
            return {k: "urn:api" + v if k == "$ref" and v.startswith("#") else absolute(v)
                    for k, v in node.items()}
        found = Draft202012Validator(absolute(schema), registry=self.registry).iter_errors(value)
        return ["%s: %s" % (e.json_path, e.message[:300]) for e in found]

    def operations(self):
        for path, item in self.document["paths"].items():
            for method in ("get", "post", "delete", "put", "patch"):
                if method in item:
                    yield method.upper(), path, item[method]

    def match(self, method, path):
        path = path.split("?")[0]
        for exact in (True, False):  # /v1/sessions/import goes before /v1/sessions/{id}
            for m, template, operation in self.operations():
                pattern = template if exact else re.sub(r"{\w+}", "[^/]+", template)
                if m == method and re.fullmatch(pattern, path):
                    return template, operation
        raise AssertionError("not documented: %s %s" % (method, path))

    def body_schema(self, operation):
        content = operation.get("requestBody", {}).get("content", {})
        return content.get("application/json", {}).get("schema")

    def names(self, schema, prefix="", seen=()):
        """Paths of all properties: "messages.role"."""
        if "$ref" in schema:
            if schema["$ref"] in seen:
                return set()
            return self.names(self.follow(schema), prefix, (*seen, schema["$ref"]))
        found = set()
        for name, inner in schema.get("properties", {}).items():
            found |= {prefix + name} | self.names(inner, prefix + name + ".", seen)
        for inner in parts(schema):
            found |= self.names(inner, prefix, seen)
        return found


def names_in(value, prefix=""):
    if isinstance(value, list):
        return set().union(*[names_in(v, prefix) for v in value])
    if not isinstance(value, dict):
        return set()
    return set().union(*[{prefix + k} | names_in(v, prefix + k + ".") for k, v in value.items()])


class OpenApi(TinyServerTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.api = Contract(cls.server.call("GET", "/openapi.json")[2])
        with open(os.path.join(cls.folder.name, "data/server.json")) as f:
            cls.admin = {"x-admin-token": json.load(f)["admin_token"]}

    # -- the document alone, and the sources ----------------------------------------------------

    def test_it_is_valid(self):
        validate(self.api.document)
        ids = [o["operationId"] for _, _, o in self.api.operations()]
        self.assertEqual(len(ids), len(set(ids)))
        tags = {t["name"] for t in self.api.document["tags"]}
        for method, path, operation in self.api.operations():
            self.assertLessEqual(set(operation["tags"]), tags, path)
            self.assertTrue(operation["summary"], path)

    def test_nothing_in_it_is_unused(self):
        text = json.dumps(self.api.document)
        for kind, parts in self.api.document["components"].items():
            for name in parts if kind != "securitySchemes" else ():
                self.assertIn('"#/components/%s/%s"' % (kind, name), text)

    def test_answers_are_closed(self):
        def look(schema, where):
            if "$ref" in schema:
                return look(self.api.follow(schema), schema["$ref"]) \
                    if schema["$ref"] not in done and not done.add(schema["$ref"]) else None
            if "properties" in schema:
                self.assertIs(schema.get("additionalProperties"), False, where)
            for name, inner in schema.get("properties", {}).items():
                look(inner, where + "." + name)
            for inner in parts(schema):
                look(inner, where)
        done = {"#/components/schemas/" + n for n in ("Message", "ContentPart", "ToolCall")}
        for method, path, operation in self.api.operations():
            for status, response in operation["responses"].items():
                for content in self.api.follow(response)["content"].values():
                    look(content["schema"], path + " " + status)

    def test_the_same_routes(self):
        registered = set(re.findall(r'(?:Add|Route)\(\s*"([A-Z]+)",\s*"([^"]+)"',
                                    source("server.cc")))
        self.assertGreater(len(registered), 20)
        documented = {(m, re.sub(r"{\w+}", "{}", p)) for m, p, _ in self.api.operations()}
        self.assertEqual(documented, registered)

    def test_a_documented_method_is_taken_and_no_other(self):
        for path in self.api.document["paths"]:
            documented = {m for m, p, _ in self.api.operations() if p == path}
            if path == "/v1/sessions/import":
                documented |= {"GET", "DELETE"}  # of a session that is called "import"
            for method in ("GET", "POST", "PUT", "DELETE"):
                url = filled(path, "nothing")
                status, headers, answer = self.server.call(method, url, headers=self.admin)
                with self.subTest(path=path, method=method, answer=answer):
                    self.assertEqual(status == 405, method not in documented)
                    if status == 405:
                        self.assertEqual(set(headers["allow"].split(", ")), documented)
                    elif status == 404:
                        self.assertNotIn("no such path", answer["error"]["message"])

    def test_the_same_fields_as_the_code(self):
        read = re.compile(r'(?:\.(?:Text|Int|Bool|Number|Object|Array|OneOf|Find)|\b(?:number|integer))'
                          r'\("(\w+)"')
        for file, schemas in READERS.items():
            with self.subTest(file=file):
                code = source(file)
                documented = {path.split(".")[-1] for name in schemas for path in self.api.names(
                    {"$ref": "#/components/schemas/" + name})}
                self.assertEqual(set(read.findall(code)) - documented, set())
                words = set(re.findall(r'"(\w+)"', code + source(SHARED)))
                self.assertEqual(documented - words - PASSED_ON, set())
        others = [f for f in os.listdir(API) if f.endswith("_routes.cc") and f not in READERS]
        for file in others:
            self.assertEqual(read.findall(source(file)), [], file)

    def test_the_same_queries_and_headers_as_the_code(self):
        code = "".join(source(f) for f in os.listdir(API)
                       if f.endswith("_routes.cc") or f in ("route.cc", "server.cc"))
        parameters = list(self.api.document["components"]["parameters"].values())
        for _, path, operation in self.api.operations():
            parameters += operation.get("parameters", [])
        of = lambda kind: {p["name"] for p in parameters if p.get("in") == kind}
        self.assertEqual(set(re.findall(r'(?:Query(?:Text|Flag)\(call, |query\.find\()"([\w-]+)"', code)),
                         of("query"))
        headers = set(re.findall(r'header\("([\w-]+)"\)', code)) | set(
            re.findall(r'"([\w-]*session-id)"', re.search(r"kHeaders.*?};", code, re.S)[0]))
        elsewhere = {"authorization", "x-api-key", "x-admin-token", "x-request-id", "host",
                     "origin", "accept"}
        self.assertEqual(headers - elsewhere, of("header"))

    # -- bodies at the ends of their ranges, and beyond -----------------------------------------

    def probe(self, path, base, name, value):
        body = json.loads(json.dumps(base))
        at = body
        *outer, last = name.split(".")
        for part in outer:
            at = at.setdefault(part, {})
        at[last] = value
        return self.server.call("POST", path, body, self.admin)

    def refused(self, path, base, schema, prefix=""):
        """Every value of the wrong type or just outside its range is refused, by its name."""
        for name, inner in self.api.follow(schema).get("properties", {}).items():
            inner = self.api.follow(inner)
            bad, kind = [], inner.get("type")
            if "minimum" in inner:
                bad.append(inner["minimum"] - (1 if kind == "integer" else 0.001))
            if "maximum" in inner:
                bad.append(inner["maximum"] + (1 if kind == "integer" else 0.001))
            if "enum" in inner or "const" in inner or kind == "string":
                bad.append(["x"])
            if kind in ("integer", "number", "boolean", "object", "array"):
                bad.append("x")
            if inner.get("maxLength", 1 << 30) <= 4096:
                bad.append("x" * (inner["maxLength"] + 1))
            if inner.get("maxItems", 1 << 30) <= 4096 and kind == "array":
                bad.append([{}] * (inner["maxItems"] + 1))
            if prefix + name == "response_format.json_schema":
                base = {**base, "response_format": {"type": "json_schema"}}
            if name == "top_logprobs":
                base = {**base, "logprobs": True}
            if prefix in ("", "from.", "sampling.", "stream_options.", "response_format."):
                for value in bad:
                    with self.subTest(path=path, field=prefix + name, value=str(value)[:40]):
                        self.assertRefused(self.probe(path, base, prefix + name, value), 400)
                if kind == "object":
                    self.refused(path, base, inner, prefix + name + ".")

    def test_what_the_document_forbids_is_refused(self):
        self.server.call("POST", "/v1/sessions", {"id": "forbid"})
        for method, path, operation in self.api.operations():
            if schema := self.api.body_schema(operation):
                base = {"messages": HELLO, "max_tokens": 1} if "Chat" in str(schema) else {}
                self.refused(filled(path, "forbid"), base, schema)
        self.assertEqual(self.server.call("GET", "/v1/sessions/forbid")[2]["turns"], 0)

    def test_the_ends_of_ranges_are_taken(self):
        ranges = self.api.document["components"]["schemas"]["ChatRequest"]["properties"]
        for name, schema in ranges.items():
            for value in [schema.get("minimum"), schema.get("maximum"), *schema.get("enum", [])]:
                if value is None:
                    continue
                body = {"messages": HELLO, "max_tokens": 2, "logit_bias": END, "logprobs": True}
                status, _, answer = self.server.call("POST", CHAT, {**body, name: value})
                self.assertEqual(status, 200, (name, value, answer))

    # -- every route, every field, every documented status --------------------------------------

    def check(self, method, path, body=None, headers=None, status=None, server=None):
        """Calls and checks; the parsed body."""
        server = server or self.server
        template, operation = self.api.match(method, path)
        connection = http.client.HTTPConnection(server.host, server.port, timeout=120)
        data = body if isinstance(body, (bytes, str, type(None))) else json.dumps(body)
        connection.request(method, path, data, headers or {})
        response = connection.getresponse()
        content, got = response.read(), str(response.status)
        connection.close()
        where = "%s %s -> %s: %s" % (method, path, got, content[:500])
        if status is not None:
            self.assertEqual(got, str(status), where)
        responses = operation["responses"]
        self.assertTrue(got in responses or got in GENERAL and "default" in responses, where)
        described = self.api.follow(responses.get(got, responses.get("default")))
        kind = response.getheader("content-type").split(";")[0]
        self.assertIn(kind, described["content"], where)
        self.checked.add((method, template, got))
        values = self.parse(kind, content)
        for value in values:
            self.assertEqual(self.api.errors(described["content"][kind]["schema"], value), [], where)
        schema = self.api.body_schema(operation)
        if schema and isinstance(body, dict) and got.startswith("2"):
            self.assertEqual(self.api.errors(schema, body), [], where)
            self.sent.setdefault(schema["$ref"], set()).update(names_in(body))
        return values[0] if len(values) == 1 else values

    @staticmethod
    def parse(kind, content):
        if kind == "application/json":
            return [json.loads(content)]
        if kind == "application/x-ndjson":
            return [json.loads(line) for line in content.splitlines()]
        if kind == "text/event-stream":
            lines = [l[6:] for l in content.decode().split("\n") if l.startswith("data: ")]
            assert lines.pop() == "[DONE]"
            return [json.loads(line) for line in lines]
        return [""]  # text, or a file

    def test_every_route(self):
        self.checked, self.sent = set(), {}
        self.plain_routes()
        self.chats()
        self.trees()
        self.segments()
        self.replays()
        self.bundles_and_upkeep()
        self.refusals()
        self.with_keys()
        for method, path, operation in self.api.operations():
            for status in set(operation["responses"]) - {"default"}:
                if (path, status) != ("/health", "503"):  # while a model loads
                    self.assertIn((method, path, status), self.checked)
            if ref := (self.api.body_schema(operation) or {}).get("$ref"):
                missing = self.api.names({"$ref": ref}) - self.sent[ref]
                self.assertEqual(missing, set(), "never sent of " + ref)

    def plain_routes(self):
        for path in ("/", "/page.js", "/openapi.json", "/health", "/metrics", "/v1/models"):
            self.check("GET", path, status=200)
        self.check("GET", "/v1/models/" + self.check("GET", "/v1/models")["data"][0]["id"],
                   status=200)
        for name in ("content", "prompt", "text"):
            tokens = self.check("POST", "/tokenize", {name: "hi", "parse_special": True}, status=200)
        self.check("POST", "/detokenize", {"tokens": tokens["tokens"]}, status=200)

    def chats(self):
        tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {
            "type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
            "additionalProperties": False}}}
        tool["cache_control"] = KEEP
        every = {
            "model": "any", "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.01,
            "presence_penalty": 0.1, "frequency_penalty": 0.1, "repetition_penalty": 1.1,
            "seed": 1, "logit_bias": {"5": -1}, "stop": ["zzz"], "max_completion_tokens": 8,
            "max_tokens": 8, "n": 1, "logprobs": True, "top_logprobs": 2, "return_token_ids": True,
            "speculate": False, "branch": "main", "on_busy": "queue", "history": "as_sampled",
            "durability": "turn", "chat_template_kwargs": {"x": 1}, "parallel_tool_calls": False,
            "cache_control": KEEP, "pin": True, "wake_at": 2e9,
            "reuse": {"policy": "fast", "max_kl": 0.01, "budget": 0.5}}
        self.check("POST", CHAT, {"messages": HELLO, "session_id": "s", "max_tokens": 2}, status=200)
        self.check("POST", CHAT, {**every, "messages": MESSAGES, "session_id": "s",
                                  "tools": [tool]}, status=200)
        for stream in ({}, {"stream": True, "stream_options": {"include_usage": True}}):
            for more in ({}, {"logprobs": True, "top_logprobs": 1, "return_token_ids": True},
                         {"tools": [tool], "tool_choice": "required"},
                         {"tools": [tool], "tool_choice": {"type": "function",
                                                           "function": {"name": "f"}}},
                         {"response_format": {"type": "json_schema", "json_schema": {
                             "name": "n", "strict": True, "schema": {"enum": ["a", "b"]}}}}):
                self.check("POST", CHAT, {"messages": HELLO, "max_tokens": 30, **more, **stream},
                           status=200)
                self.check("POST", "/v1/sessions/s/turns", {**every, **more, **stream,
                                                            "messages": MESSAGES, "session_id": "s",
                                                            "tools": [tool]}, status=200)
        self.check("POST", "/v1/sessions/s/turns", {"messages": HELLO}, {"if-match": '"main:0"'}, 409)
        # A history that was changed, and a turn that is served from the log.
        edited = self.check("POST", CHAT, {"messages": HELLO + HELLO, "session_id": "s"}, status=200)
        self.assertIsNotNone(edited["keeper"]["miss"])
        path = "/v1/sessions/s/turns/%s/cancel" % edited["keeper"]["turn_id"]  # it has ended
        self.assertEqual(self.check("POST", path, status=200)["status"], "committed")
        for _ in range(2):
            self.check("POST", CHAT, {"messages": HELLO, "session_id": "key", "max_tokens": 2},
                       {"idempotency-key": "k"}, 200)
        for path in (CHAT, "/v1/sessions/key/turns"):
            self.check("POST", path, {"messages": HELLO + HELLO, "session_id": "key"},
                       {"idempotency-key": "k"}, 409)

    def trees(self):
        for name in ("id", "external_id"):
            self.check("POST", "/v1/sessions", {name: "made-by-" + name, "ttl_s": 60,
                                                "metadata": {"a": [1]}}, status=201)
        self.check("POST", "/v1/sessions", status=201)
        for path in ("/v1/sessions?limit=2", "/v1/sessions?after=1", "/v1/sessions/s",
                     "/v1/sessions/s/items?branch=main&limit=3", "/v1/sessions/s/tokens?branch=main",
                     "/v1/sessions/s/turns?branch=main", "/v1/sessions/s/events?limit=2&after=0",
                     "/v1/sessions/s/tree", "/v1/sessions?order=desc"):
            self.check("GET", path, status=200)
        self.assertIsNotNone(self.check("GET", "/v1/sessions?limit=2")["next"])
        snapshot = self.check("POST", "/v1/sessions/s/snapshot", {"branch": "main", "label": "l"},
                              status=201)
        self.snapshots("/v1/sessions/s/snapshots/" + snapshot["id"])
        self.check("GET", "/v1/sessions/s/residency?branch=main", status=200)
        self.check("GET", "/v1/sessions/s/provenance?branch=main", status=200)
        self.check("POST", "/v1/sessions/s/harden", {"branch": "main"}, status=202)
        self.check("POST", "/v1/sessions/s/prefetch", {"branch": "main", "pin": False,
                                                       "wake_at": 2e9}, status=202)
        for verb in ("fork", "rewind"):
            for at in ({"at_item": 1}, {"at_token": 3}, {"snapshot": snapshot["id"]}):
                self.check("POST", "/v1/sessions/s/" + verb, {
                    **at, "branch": "main", "name": verb + str(list(at))}, status=201)
            self.check("POST", "/v1/sessions/s/" + verb, {"name": "main"}, status=409)
        self.check("POST", "/v1/sessions/s/rewind", {"branch": "main", "name": "back"}, status=201)
        edits = [{"op": "insert", "item": 0, "message": m} for m in MESSAGES] + [
            {"op": "replace", "item": 0, "content": "other"}, {"op": "remove", "item": 1, "count": 1}]
        for verb in ("fork", "rewind"):
            self.check("POST", "/v1/sessions/s/" + verb, {
                "branch": "main", "edits": edits, "retokenise": True}, status=201)
        for at in ({"at_item": 1}, {"at_token": 3}, {"snapshot": snapshot["id"]}, {}):
            self.check("POST", "/v1/sessions/s/branches", {
                "from": {"branch": "main", **at}, "retokenise": False, "make_default": True},
                status=201)
        made = self.check("POST", "/v1/sessions/s/branches", {
            "from": {"branch": "main"}, "edits": edits, "name": "edited"}, status=201)
        self.assertEqual(made["parent_tokens"], 0)
        self.check("POST", "/v1/sessions/s/branches", {"name": "edited"}, status=409)
        for what in ("branches", "snapshots", "events?limit=1000", "items", "turns"):
            self.check("GET", "/v1/sessions/s/" + what, status=200)
        stream = EventStream(self.server, "/v1/sessions/s/events?stream=true")
        for event in stream.take(5):
            self.assertEqual(self.api.errors({"$ref": "#/components/schemas/Event"},
                                             json.loads(event["data"])), [])
        stream.close()

    def snapshots(self, path):
        self.check("GET", path, status=200)
        self.check("POST", path + "/pin", {"pinned": False}, status=200)
        for body in ({"stream": True, "top_k": 2, "from": 0, "to": 9, "seed": 3}, {}):
            self.check("POST", path + "/verify", body, status=200)
        brief = self.check("POST", "/v1/sessions/s/snapshot", {}, status=201)
        self.check("DELETE", "/v1/sessions/s/snapshots/" + brief["id"], status=200)
        self.check("POST", "/v1/sessions/s/replay", {"snapshot": path.split("/")[-1]}, status=200)

    def segments(self):
        text = "A document that comes back again and again, in another order. " * 4
        tokens = self.check("POST", "/tokenize", {"text": text}, status=200)["tokens"]
        made = self.check("POST", "/v1/segments", {"text": text, "role": "tool", "warm": True,
                                                   "pin": True}, status=201)
        self.check("POST", "/v1/segments", {"tokens": tokens}, status=201)
        self.assertEqual([v["kind"] for v in made["variants"]], ["isolated"])
        page = self.check("GET", "/v1/segments?limit=1", status=200)
        self.check("GET", "/v1/segments?after=" + page["next"], status=200)
        path = "/v1/segments/" + made["id"]
        self.check("POST", path + "/pin", {"pinned": False}, status=200)
        self.check("GET", path, status=200)
        part = {"type": "segment", "segment_id": made["id"]}
        self.check("POST", CHAT, {"messages": [{"role": "user", "content": [
            {"type": "text", "text": "Read: "}, part]}], "max_tokens": 1,
                                  "session_id": "reader"}, status=200)
        edits = [{"op": "insert", "item": 0, "message": {"role": "user", "content": [part]}}]
        self.check("POST", "/v1/sessions/reader/branches", {"from": {"branch": "main"},
                                                            "edits": edits}, status=201)
        self.check("POST", "/v1/sessions/reader/fork", {"edits": edits}, status=201)
        self.check("DELETE", path, status=200)
        self.check("POST", CHAT, {"messages": [{"role": "user", "content": [part]}]}, status=404)

    def replays(self):
        self.check("POST", CHAT, {"messages": HELLO, "session_id": "r", "max_tokens": 6}, status=200)
        sampling = {"temperature": 1, "top_k": 5, "top_p": 1, "min_p": 0, "presence_penalty": 0,
                    "frequency_penalty": 0, "repetition_penalty": 1, "repetition_window": 64,
                    "max_tokens": 8}
        path = "/v1/sessions/r/replay"
        self.check("POST", path, status=200)
        for stream in (False, True):
            for body in ({"mode": "verify", "top_k": 2}, {"mode": "verify", "seed": 99},
                         {"mode": "forced", "from_item": 0, "to_item": 2},
                         {"from": 1, "to": 3, "branch": "main"},
                         {"mode": "free", "seed": 5, "sampling": sampling,
                          "edits": [{"item": 0, "content": "other"}]}):
                self.check("POST", path, {**body, "stream": stream}, status=200)
        self.jobs()
        free = {"mode": "free", "name": "what-if", "seed": 3}
        self.check("POST", path, free, status=200)
        self.check("POST", path, free, status=409)

    def jobs(self):
        for body in ({"mode": "forced", "top_k": 2}, {}, {"mode": "free", "seed": 8},
                     {"branch": "none"}):
            job = self.check("POST", "/v1/replays", {"session_id": "r", **body}, status=202)
            path = "/v1/replays/" + job["id"]
            stream = EventStream(self.server, path + "/steps?stream=true")
            while (event := stream.next())["event"] in ("step", "progress"):
                schema = {"step": "ReplayStep", "progress": "Progress"}[event["event"]]
                self.assertEqual(self.api.errors({"$ref": "#/components/schemas/" + schema},
                                                 json.loads(event["data"])), [])
            stream.close()
            ended = self.check("GET", path, status=200)
            self.assertEqual(json.loads(event["data"]), ended)
            self.assertEqual(event["event"], ended["state"])
            self.assertEqual(ended["state"], "failed" if "branch" in body else "done")
            self.assertEqual(len(self.check("GET", path + "/steps?limit=1000", status=200)["data"]),
                             ended["steps"])
            self.check("POST", path + "/cancel", status=200)
        self.check("GET", "/v1/replays?limit=2&after=0", status=200)
        self.check("DELETE", path, status=200)

    def bundles_and_upkeep(self):
        self.check("GET", "/v1/sessions/r/export?pages=0", status=200)
        connection = http.client.HTTPConnection(self.server.host, self.server.port, timeout=60)
        key = {"x-bundle-key": "ab" * 16}
        connection.request("GET", "/v1/sessions/r/export", headers=key)
        bundle = connection.getresponse().read()
        connection.close()
        self.check("POST", "/v1/sessions/import?as=copy", bundle, key, 201)
        self.check("POST", "/v1/sessions/import?as=copy", bundle, status=409)
        self.check("POST", "/v1/sessions/import", b"no bundle", status=400)
        self.check("GET", "/v1/sessions/copy/events", status=200)
        self.check("POST", "/v1/admin/fsck", {"repair": True}, self.admin, 200)
        self.check("POST", "/v1/admin/gc", {"now": True}, self.admin, 200)
        path = {"path": os.path.join(self.folder.name, "copy")}
        self.check("POST", "/v1/admin/backup", path, self.admin, 201)
        self.check("POST", "/v1/admin/backup", path, self.admin, 409)

    def refusals(self):
        for method, path, operation in self.api.operations():
            url = filled(path, "s")
            if "400" in operation["responses"] and path != "/v1/sessions/import":
                headers = {**self.admin, "x-bundle-key": "zz"}
                self.check(method, url + {"GET": "?limit=0", "DELETE": "?cancel=x"}.get(method, ""),
                           "{" if method == "POST" else None, headers, 400)
            if "404" in operation["responses"]:
                body = {"messages": HELLO, "session_id": "sess_nothere"} if method == "POST" else None
                self.check(method, filled(path, "sess_nothere"), body, status=404)
        self.check("POST", "/v1/sessions", {"id": "s"}, status=409)
        self.check("POST", "/v1/admin/gc", {}, status=403)
        self.check("GET", "/v1/models", headers={"Host": "evil.example"}, status=403)
        self.delete_while_a_turn_runs()
        self.check("DELETE", "/v1/sessions/r?cancel=true", status=200)

    def delete_while_a_turn_runs(self, attempts=5):
        connection = http.client.HTTPConnection(self.server.host, self.server.port, timeout=60)
        connection.request("POST", CHAT, json.dumps({
            "messages": HELLO, "session_id": "busy", "stream": True, "max_tokens": 1500,
            "logit_bias": {"2": -100}}))
        try:
            connection.getresponse().read(200)
            self.check("DELETE", "/v1/sessions/busy", status=409)
        except AssertionError:  # the turn may have ended, and the session is gone
            if attempts == 1:
                raise
            self.delete_while_a_turn_runs(attempts - 1)
        finally:
            connection.close()

    def with_keys(self):
        keyed = Server(self.model, os.path.join(self.folder.name, "keyed"), "--api-key", "a=secret")
        try:
            for method, path, operation in self.api.operations():
                public = operation.get("security") == [] or "/admin/" in path
                status = 401 if not public else 403 if "/admin/" in path else 200
                self.check(method, filled(path, "s"), status=status, server=keyed)
            for headers in ({"Authorization": "Bearer secret"}, {"x-api-key": "secret"}):
                self.check("GET", "/v1/sessions", headers=headers, status=200, server=keyed)
        finally:
            keyed.kill()


if __name__ == "__main__":
    unittest.main()
