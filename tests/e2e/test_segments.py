"""Segments over REST: made, warmed, listed, pinned, named in messages, deleted; whose they are."""
import os
import tempfile
import unittest

from harness import MODELS, SMOL, Server, TinyServerTest, tiny_model, write_card

CHAT = "/v1/chat/completions"
DOCUMENT = "".join("Line %d of the report says %d. " % (n, n * 7919 % 1009) for n in range(12))
NOWHERE = "seg_" + "0" * 64


def document(number):
    """Another one for each number."""
    return "".join("In report %d, line %d says %d. " % (number, n, (n + 17 * number) * 7919 % 1009)
                   for n in range(12))


def part(segment):
    return {"type": "segment", "segment_id": segment}


class Segments(TinyServerTest):
    def make(self, status=201, **fields):
        got, _, body = self.server.call("POST", "/v1/segments", fields)
        self.assertEqual(got, status, body)
        return body

    def chat(self, content, **fields):
        return self.server.call("POST", CHAT, {"messages": [{"role": "user", "content": content}],
                                               "max_tokens": 4, "return_token_ids": True, **fields})

    def test_a_life(self):
        made = self.make(text=DOCUMENT)
        self.assertEqual((made["given"], made["variants"], made["hits"]), (True, [], 0))
        self.assertEqual(self.make(text=DOCUMENT)["id"], made["id"])
        warm = self.make(text=DOCUMENT, warm=True, pin=True)
        self.assertEqual([v["kind"] for v in warm["variants"]], ["isolated"])
        self.assertEqual(warm["variants"][0]["tokens"], made["tokens"])
        self.assertGreater(warm["kv_bytes"], 0)
        path = "/v1/segments/" + made["id"]
        self.assertEqual(self.server.call("GET", path)[2], warm)
        self.assertFalse(self.server.call("POST", path + "/pin", {"pinned": False})[2]["pinned"])
        self.assertTrue(self.server.call("POST", path + "/pin")[2]["pinned"])
        self.assertGreaterEqual(self.server.metric("segments"), 1)
        self.server.restart()
        self.assertEqual(self.server.call("GET", path)[2], warm)
        self.assertTrue(self.server.call("DELETE", path)[2]["deleted"])
        self.assertRefused(self.server.call("GET", path), 404)
        self.assertRefused(self.server.call("DELETE", path), 404)

    def test_lists_come_in_pages(self):
        ids = [self.make(text="page %d" % n)["id"] for n in range(5)]
        seen, after = [], ""
        while after is not None:
            page = self.server.call("GET", "/v1/segments?limit=2&after=%s" % after)[2]
            self.assertEqual(page["has_more"], page["next"] is not None)
            seen += [s["id"] for s in page["data"]]
            after = page["next"]
        self.assertEqual([s for s in seen if s in ids], ids)
        self.assertEqual(len(seen), len(set(seen)))

    def test_a_part_stands_for_its_text_with_its_own_tokens(self):
        made = self.make(text=DOCUMENT)
        own = self.server.call("POST", "/tokenize", {"text": DOCUMENT})[2]["tokens"]
        for before in ("", "the", "Read this: "):
            status, _, answer = self.chat([{"type": "text", "text": before}, part(made["id"]),
                                           {"type": "text", "text": "ing"}])
            self.assertEqual(status, 200, answer)
            prompt = answer["prompt_token_ids"]
            self.assertTrue(any(prompt[i:i + len(own)] == own for i in range(len(prompt))), before)
        # The history goes on with the text in its place.
        first = self.chat([part(made["id"])], session_id="talk")[2]
        messages = [{"role": "user", "content": DOCUMENT}, first["choices"][0]["message"],
                    {"role": "user", "content": "and?"}]
        second = self.server.chat(messages, session_id="talk")
        self.assertIn((second["keeper"]["miss"] or {}).get("reason"), (None, "absent"))
        self.assertGreater(second["keeper"]["tokens"]["kept"], len(own))

    def test_turns_leave_segments_and_sessions_take_them_along(self):
        text = "What a tool said. " + DOCUMENT
        learnt = lambda: [s for s in self.server.call("GET", "/v1/segments?limit=1000")[2]["data"]
                          if not s["given"]]
        before = [s["id"] for s in learnt()]
        self.server.chat([{"role": "user", "content": text}], session_id="source")
        found = [s for s in learnt() if s["id"] not in before]
        self.assertEqual([[v["kind"] for v in s["variants"]] for s in found], [["in_context"]])
        self.server.call("DELETE", "/v1/sessions/source")
        self.assertRefused(self.server.call("GET", "/v1/segments/" + found[0]["id"]), 404)

    def test_bad_input(self):
        refused = lambda status, param, **fields: self.assertRefused(
            self.server.call("POST", "/v1/segments", fields), status, param)
        refused(400, "text")
        refused(400, "text", text="a", tokens=[5])
        refused(400, "role", text="a", role="robot")
        refused(400, "tokens[1]", tokens=[70, 2])
        refused(400, "tokens[0]", tokens=["a"])
        refused(400, "tokens[0]", tokens=[100000])
        refused(400, "text", text="too short", warm=True)
        refused(400, "text", text=DOCUMENT * 40, warm=True)
        self.assertRefused(self.chat([part(NOWHERE)]), 404, "messages[0].content[0].segment_id")
        self.assertRefused(self.chat([part("what")]), 404, "messages[0].content[0].segment_id")
        self.assertRefused(self.chat([{"type": "segment"}]), 400,
                           "messages[0].content[0].segment_id")
        self.assertRefused(self.chat([part(5)]), 400, "messages[0].content[0].segment_id")
        long = self.make(text=DOCUMENT * 8)["id"]
        self.assertRefused(self.chat([part(long)] * 40), 400, code="context_length_exceeded")
        self.assertRefused(self.server.call("GET", "/v1/segments?after=x"), 400)
        self.assertRefused(self.server.call("POST", "/v1/segments/%s/pin" % NOWHERE), 404)


class Tenants(TinyServerTest):
    flags = ("--api-key", "ann=a", "--api-key", "bob=b")

    def test_what_belongs_to_another_tenant_is_not_there(self):
        ann, bob = {"x-api-key": "a"}, {"x-api-key": "b"}
        made = self.server.call("POST", "/v1/segments", {"text": DOCUMENT}, ann)[2]["id"]
        strange = self.server.call("GET", "/v1/segments/" + NOWHERE, headers=bob)
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/pin")):
            answer = self.server.call(method, "/v1/segments/" + made + path, headers=bob)
            error = self.assertRefused(answer, 404)[1]
            self.assertEqual(error["message"].replace(made, NOWHERE),
                             strange[2]["error"]["message"])
        say = lambda path, body: [
            self.assertRefused(self.server.call("POST", path, body(segment), bob), 404)[1]
            for segment in (made, NOWHERE)]
        self.server.chat("hi", bob, session_id="mine")
        for path, body in (
                (CHAT, lambda s: {"messages": [{"role": "user", "content": [part(s)]}]}),
                ("/v1/sessions/mine/turns",
                 lambda s: {"messages": [{"role": "user", "content": [part(s)]}]}),
                ("/v1/sessions/mine/branches", lambda s: {"edits": [
                    {"op": "insert", "item": 0,
                     "message": {"role": "user", "content": [part(s)]}}]})):
            foreign, unknown = say(path, body)
            self.assertEqual(foreign["message"].replace(made, NOWHERE), unknown["message"])
            self.assertEqual((foreign["param"], foreign["code"]), (unknown["param"], unknown["code"]))
            self.assertTrue(foreign["param"].endswith("content[0].segment_id"), foreign)
        self.assertEqual(self.server.call("GET", "/v1/segments", headers=bob)[2]["data"], [])
        self.assertNotEqual(
            self.server.call("POST", "/v1/segments", {"text": DOCUMENT}, bob)[2]["id"], made)


class Budget(TinyServerTest):
    def test_segments_name_as_much_kv_as_they_may(self):
        make = lambda **fields: self.server.call("POST", "/v1/segments", {"warm": True, **fields})
        one = make(text=DOCUMENT, pin=True)[2]["kv_bytes"]
        self.server.kill()
        self.server.command += ["--segments", str(one * 3 // 2)]
        self.server.start()
        listed, = self.server.call("GET", "/v1/segments")[2]["data"]
        self.assertRefused(make(text="Another. " + DOCUMENT), 429, code="quota_exceeded")
        self.server.call("POST", "/v1/segments/%s/pin" % listed["id"], {"pinned": False})
        self.assertEqual(make(text="Another. " + DOCUMENT)[0], 201)
        self.assertRefused(self.server.call("GET", "/v1/segments/" + listed["id"]), 404)


class Reuse(TinyServerTest):
    """With a card that allows everything, but for more than three runs."""
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        write_card(cls.server, os.path.join(cls.folder.name, "data"), max_runs=3)
        cls.server.restart()

    def stitch(self, content, **fields):
        answer = self.server.chat([{"role": "user", "content": content}], **fields)
        stitch = answer["usage"]["stitch"]
        self.assertEqual(sum(stitch["tokens"].values()), answer["usage"]["prompt_tokens"])
        return stitch

    def warm(self, text):
        status, _, made = self.server.call("POST", "/v1/segments", {"text": text, "warm": True})
        self.assertEqual(status, 201, made)
        return made["id"]

    def test_policies_as_far_as_they_go(self):
        id = self.warm(document(1))
        for policy, shifted in (("fast", 0), ("off", 0), ("exact", 0), ("balanced", 1),
                                ("quality", 1), ("verify", 1)):
            stitch = self.stitch([{"type": "text", "text": policy + ": "}, part(id)], reuse=policy)
            self.assertEqual(stitch["policy"], policy)
            self.assertEqual(stitch["tokens"]["shifted"] > 0, bool(shifted), stitch)
            if policy == "fast":  # isolated ones are not for it
                self.assertIn("isolated", stitch["fallback"])

    def test_more_segments_than_the_card_covers(self):
        ids = [self.warm(document(n)) for n in range(10, 15)]
        parts = [{"type": "text", "text": "These: "}]
        for id in ids:
            parts += [part(id), {"type": "text", "text": " Next: "}]
        stitch = self.stitch(parts, reuse="balanced")
        used = [run["used"] for run in stitch["runs"]]
        self.assertEqual(used.count(True), 3, stitch)
        for run in stitch["runs"]:
            if not run["used"]:
                self.assertIn("more runs than the 3 that the card covers", run["reason"])
        self.assertNotIn("fallback", stitch)

    def test_a_contract_that_nothing_keeps(self):
        id = self.warm(document(2))
        stitch = self.stitch([{"type": "text", "text": "So: "}, part(id)],
                             reuse={"policy": "balanced", "max_kl": 0.001})
        self.assertFalse(stitch["approximate"])
        self.assertIn("nothing that the card knows keeps its KL below 0.001", stitch["fallback"])

    def test_a_segment_that_is_deleted_is_still_told_of(self):
        id = self.warm(document(3))
        content = [{"type": "text", "text": "Now: "}, part(id), {"type": "text", "text": "?"}]
        self.assertGreater(self.stitch(content, reuse="balanced", session_id="gone")
                           ["tokens"]["shifted"], 0)
        self.assertEqual(self.server.call("DELETE", "/v1/segments/" + id)[0], 200)
        provenance = self.server.call("GET", "/v1/sessions/gone/provenance")[2]
        self.assertIn(id, [span.get("segment") for span in provenance["spans"]])
        self.server.restart()  # its pages are made again from the turn's own recipe
        status, _, answer = self.server.call("POST", "/v1/sessions/gone/turns", {
            "messages": [{"role": "user", "content": "go on"}], "max_tokens": 4,
            "reuse": "balanced"})
        self.assertEqual(status, 200, answer)
        self.assertTrue(answer["usage"]["stitch"]["remade"], answer["usage"])
        self.assertRefused(self.server.call("POST", CHAT, {
            "messages": [{"role": "user", "content": content}]}), 404,
            "messages[0].content[1].segment_id")

    def test_what_is_wrong_with_reuse_is_named(self):
        for reuse, param in (("fastest", "reuse"), (5, "reuse"), ({"policy": 5}, "reuse.policy"),
                             ({"policy": "no"}, "reuse.policy"), ({"max_kl": -1}, "reuse.max_kl"),
                             ({"max_kl": "x"}, "reuse.max_kl"), ({"budget": 2}, "reuse.budget")):
            self.assertRefused(self.server.call("POST", CHAT, {
                "messages": [{"role": "user", "content": "hi"}], "reuse": reuse}), 400, param)


class OtherModels(unittest.TestCase):
    def test_a_segment_of_another_model_is_refused_by_its_field(self):
        with tempfile.TemporaryDirectory(prefix="holdfast-e2e-") as folder:
            data = os.path.join(folder, "data")
            server = Server(tiny_model(folder), data)
            made = server.call("POST", "/v1/segments", {"text": DOCUMENT})[2]["id"]
            server.kill()
            server = Server(os.path.join(MODELS, SMOL + ".gguf"), data)
            try:
                status, _, body = server.call("POST", CHAT, {
                    "messages": [{"role": "user", "content": [part(made)]}]})
                self.assertEqual(status, 400, body)
                self.assertEqual(body["error"]["param"], "messages[0].content[0].segment_id")
                self.assertEqual(body["error"]["code"], "segment_of_another_model")
                self.assertEqual(server.call("GET", "/v1/segments/" + made)[0], 404)
                self.assertEqual(server.call("GET", "/v1/segments")[2]["data"], [])
            finally:
                server.kill()


if __name__ == "__main__":
    unittest.main()
