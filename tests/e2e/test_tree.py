"""Sessions as trees over HTTP: pages of lists, the tree, snapshots, turns that others cancel, names."""
import http.client
import json
import os
import threading
import unittest
from urllib.parse import quote

import openai
from openai.pagination import SyncCursorPage
from openai.types import Model

from harness import TinyServerTest, run

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
LONG = {"messages": HELLO, "max_tokens": 8000, "logit_bias": {"2": -100}}  # until it is cancelled
ODD = "a b/c?d#e%"


class RunningTurn:
    """A streamed answer that goes on until it is cancelled, or its client leaves."""

    def __init__(self, server, session):
        self.connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
        self.connection.request("POST", CHAT, json.dumps(
            {**LONG, "session_id": session, "stream": True}))
        self.response = self.connection.getresponse()
        self.response.read(200)  # it has begun

    def rest(self):
        lines = self.response.read().decode().split("\n")
        self.connection.close()
        return [json.loads(l[6:]) for l in lines if l.startswith("data: {")]


class SessionsTest(TinyServerTest):
    def get(self, path, status=200):
        got = self.server.call("GET", path)
        self.assertEqual(got[0], status, got[2])
        return got[2]

    def post(self, path, body=None, status=200):
        got = self.server.call("POST", path, body)
        self.assertEqual(got[0], status, got[2])
        return got[2]

    def command(self, *args):
        status, out, error = run(*args, "--json", "--model", self.model, "--data",
                                 os.path.join(self.folder.name, "data"))
        self.assertEqual(status, 0, error)
        return json.loads(out)


class Lists(SessionsTest):
    def walk(self, path, id_of, order, limit=2):
        """Every id of a list, by pages, the last id of one being the `after` of the next."""
        seen, after = [], ""
        while True:
            page = self.get("%s%slimit=%d&order=%s%s" % (
                path, "&" if "?" in path else "?", limit, order,
                after and "&after=" + quote(after, safe="")))
            rows = [str(id_of(r)) for r in page["data"]]
            self.assertLessEqual(len(rows), limit)
            self.assertEqual((page["first_id"], page["last_id"]),
                             (rows[0], rows[-1]) if rows else (None, None))
            self.assertEqual(page["has_more"], page["next"] is not None)
            seen += rows
            if not page["has_more"]:
                return seen
            after = page["last_id"]

    def test_every_list_pages_by_the_last_id_both_ways(self):
        for i in range(5):
            self.post("/v1/sessions", {"id": "page%d" % i}, 201)
        history = []
        for text in ("one", "two", "three"):
            history.append({"role": "user", "content": text})
            history.append(self.server.chat(history, session_id="s")["choices"][0]["message"])
        for name in ("3", ODD, "main2"):  # "3" is a name, not a position
            self.post("/v1/sessions/s/fork", {"at_item": 2, "name": name}, 201)
            self.post("/v1/sessions/s/snapshot", {"label": name}, 201)
        for word in ("apple ", "pear ", "plum "):
            self.post("/v1/segments", {"text": word * 80}, 201)
            self.post("/v1/replays", {"session_id": "s"}, 202)
        names = [b["name"] for b in self.get("/v1/sessions/s/branches")["data"]]
        self.assertEqual(names, ["main", "3", ODD, "main2"])
        s = "/v1/sessions/s/"
        for path, id_of, least in [
                ("/v1/sessions", lambda r: r["id"], 6), (s + "branches", lambda r: r["name"], 4),
                (s + "snapshots", lambda r: r["id"], 3), (s + "turns", lambda r: r["turn_id"], 3),
                (s + "items?branch=main", lambda r: r["index"], 6),
                (s + "events", lambda r: r["seq"], 9),
                ("/v1/segments", lambda r: r["id"], 3), ("/v1/replays", lambda r: r["id"], 3)]:
            with self.subTest(path=path):
                up, down = self.walk(path, id_of, "asc"), self.walk(path, id_of, "desc")
                self.assertGreaterEqual(len(up), least)
                self.assertEqual(len(set(up)), len(up))
                self.assertEqual(down, up[::-1])
                self.assertEqual(self.walk(path, id_of, "desc", 1000), down)
                join = "&" if "?" in path else "?"
                self.assertRefused(self.server.call("GET", path + join + "order=up"), 400, "order")
                self.assertRefused(self.server.call("GET", path + join + "after=no%20such"), 400)
                self.assertRefused(self.server.call("GET", path + join + "limit=0"), 400, "limit")

    def test_next_goes_on_as_well(self):
        for i in range(3):
            self.post("/v1/sessions", {"id": "next%d" % i}, 201)
        first = self.get("/v1/sessions?limit=2")
        second = self.get("/v1/sessions?limit=2&after=" + first["next"])
        self.assertEqual(second, self.get("/v1/sessions?limit=2&after=" + first["last_id"]))
        self.assertRefused(self.server.call("GET", "/v1/sessions?after=sess_nothere"), 400)

    def test_the_openai_client_pages_through_sessions(self):
        for i in range(5):
            self.post("/v1/sessions", {"id": "sdk%d" % i}, 201)
        client = openai.OpenAI(base_url=self.server.url + "/v1", api_key="none", max_retries=0)
        pages = client.get_api_list("/sessions", model=Model, page=SyncCursorPage[Model],
                                    options={"params": {"limit": 2}})
        ids = [row.id for row in pages]  # fetches the following pages by itself
        self.assertEqual(ids, [s["id"] for s in self.get("/v1/sessions?limit=1000")["data"]])
        self.assertGreaterEqual(len(ids), 5)


class Trees(SessionsTest):
    def test_the_tree_says_where_branches_leave_and_what_each_has_alone(self):
        history = [{"role": "user", "content": "one"}]
        history.append(self.server.chat(history, session_id="tree")["choices"][0]["message"])
        fork = self.post("/v1/sessions/tree/fork", {"at_item": 1, "name": "side"}, 201)
        history.append({"role": "user", "content": "two"})
        self.server.chat(history, session_id="tree")
        self.post("/v1/sessions/tree/turns", {"branch": "side", "messages": HELLO, "max_tokens": 4})
        snapshot = self.post("/v1/sessions/tree/snapshot", {"label": "here"}, 201)
        tree = self.get("/v1/sessions/tree/tree")
        self.assertEqual(tree["default_branch"], "main")
        self.assertEqual(tree["snapshots"], [snapshot])
        branches = {b["branch"]["name"]: b for b in tree["branches"]}
        self.assertEqual([b["branch"] for b in tree["branches"]],
                         self.get("/v1/sessions/tree/branches")["data"])
        side = branches["side"]
        self.assertEqual((side["branch"]["parent"], side["parent_items"]), ("main", 1))
        self.assertEqual(side["branch"]["parent_tokens"], fork["tokens"])
        for name, b in branches.items():
            items = self.get("/v1/sessions/tree/items?limit=1000&branch=" + name)["data"]
            own = [{**i, "message": None} for i in items[b["parent_items"]:]]
            self.assertEqual(b["own_items"], own, name)
            self.assertEqual(b["parent_items"] + len(own), b["branch"]["items"])
        self.assertEqual(self.command("sessions", "tree", "tree"), tree)
        self.assertRefused(self.server.call("GET", "/v1/sessions/nobody/tree"), 404)

    def test_a_session_shows_its_head(self):
        session = self.post("/v1/sessions", {"id": "head"}, 201)
        self.assertEqual((session["generation"], session["head"]), (0, "main:0"))
        self.server.chat("hello", session_id="head")
        self.assertEqual(self.get("/v1/sessions/head")["head"], "main:1")
        self.post("/v1/sessions/head/rewind", {"at_item": 1, "name": "again"}, 201)
        session = self.get("/v1/sessions/head")
        self.assertEqual((session["generation"], session["head"]), (0, "again:0"))


class Names(SessionsTest):
    def test_the_command_line_takes_any_name(self):
        self.server.chat("hello", session_id=ODD)
        fork = self.command("sessions", "fork", ODD, "--at-item", "1", "--name", ODD)
        self.assertEqual(fork["name"], ODD)
        shown = self.command("sessions", "show", ODD, "--branch", ODD)
        self.assertEqual((shown["external_id"], len(shown["item_list"])), (ODD, 1))
        names = [b["branch"]["name"] for b in self.command("sessions", "tree", ODD)["branches"]]
        self.assertEqual(names, ["main", ODD])
        self.assertFalse(self.command("replay", ODD, "--branch", "main")["diverged"])
        self.command("sessions", "snapshot", ODD, "--label", ODD)
        self.assertEqual(self.command("sessions", "snapshots", ODD)["data"][0]["label"], ODD)
        self.assertTrue(self.command("sessions", "rm", ODD)["deleted"])

    def test_names_that_no_header_can_carry_are_refused(self):
        self.server.chat("hello", session_id="names")
        for bad in ('a"b', "a\\b", "a\r\nx: y", "a\x00b", "\x7f", "tab\t", "x" * 257):
            for path, body in [("branches", {"name": bad}), ("fork", {"name": bad}),
                               ("rewind", {"name": bad}),
                               ("branches", {"name": bad, "edits": [
                                   {"op": "replace", "item": 0, "content": "x"}]}),
                               ("replay", {"mode": "free", "name": bad})]:
                with self.subTest(name=bad, path=path):
                    self.assertRefused(self.server.call("POST", "/v1/sessions/names/" + path, body),
                                       400, "name")
        self.assertEqual(len(self.get("/v1/sessions/names/branches")["data"]), 1)
        self.post("/v1/sessions/names/fork", {"name": "grün/Δ:7"}, 201)


class Snapshots(SessionsTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        history = []
        for text in ("one two three", "four"):
            history.append({"role": "user", "content": text})
            history.append(cls.server.chat(history, session_id="s")["choices"][0]["message"])
            if text != "four":
                cls.snapshot = cls.server.call("POST", "/v1/sessions/s/snapshot",
                                               {"label": "first"})[2]
        cls.path = "/v1/sessions/s/snapshots/" + cls.snapshot["id"]

    def test_one_is_read_pinned_and_verified(self):
        self.assertEqual(self.get(self.path), self.snapshot)
        self.assertFalse(self.snapshot["pinned"])
        self.assertTrue(self.post(self.path + "/pin")["pinned"])
        self.assertTrue(self.get(self.path)["pinned"])
        self.assertFalse(self.post(self.path + "/pin", {"pinned": False})["pinned"])
        report = self.post(self.path + "/verify")
        self.assertEqual((report["mode"], report["diverged"]), ("verify", False))
        self.assertEqual(report["tokens"], self.snapshot["tokens"])
        self.assertEqual(len(report["turns"]), 1)  # as the branch was then
        for body, param in [({"mode": "forced"}, "mode"), ({"branch": "main"}, "branch"),
                            ({"snapshot": "x"}, "snapshot")]:
            self.assertRefused(self.server.call("POST", self.path + "/verify", body), 400, param)
        self.assertRefused(self.server.call("POST", "/v1/sessions/s/replay", {
            "branch": "main", "snapshot": self.snapshot["id"]}), 400, "snapshot")

    def test_a_bundle_ends_at_it(self):
        key = {"x-bundle-key": "ab" * 16}
        connection = http.client.HTTPConnection(self.server.host, self.server.port, timeout=60)
        connection.request("GET", "/v1/sessions/s/export?snapshot=" + self.snapshot["id"],
                           headers=key)
        bundle = connection.getresponse().read()
        connection.close()
        self.assertIn(b"one two three", bundle)
        self.assertNotIn(b"four", bundle)
        status, _, done = self.server.call("POST", "/v1/sessions/import?as=ended", bundle, key)
        self.assertEqual(status, 201, done)
        self.assertEqual(done["session"]["turns"], 1)
        self.assertEqual([b["name"] for b in self.get("/v1/sessions/ended/branches")["data"]],
                         ["main"])
        tokens = self.get("/v1/sessions/s/tokens")["tokens"][:self.snapshot["tokens"]]
        self.assertEqual(self.get("/v1/sessions/ended/tokens")["tokens"], tokens)
        self.assertFalse(self.post("/v1/sessions/ended/replay")["diverged"])
        out = os.path.join(self.folder.name, "ended.bundle")
        made = self.command("sessions", "export", "s", "-o", out, "--snapshot", self.snapshot["id"],
                            "--no-pages")
        with open(out, "rb") as f:
            self.assertNotIn(b"four", f.read())
        self.assertEqual(made["file"], out)
        self.assertRefused(self.server.call("GET", "/v1/sessions/s/export?snapshot=snap_no"), 404)

    def test_one_is_deleted(self):
        made = self.post("/v1/sessions/s/snapshot", {"label": "brief"}, 201)
        path = "/v1/sessions/s/snapshots/" + made["id"]
        self.assertEqual(self.server.call("DELETE", path)[2],
                         {"id": made["id"], "object": "snapshot.deleted", "deleted": True})
        for method, rest in [("GET", ""), ("DELETE", ""), ("POST", "/pin"), ("POST", "/verify")]:
            self.assertRefused(self.server.call(method, path + rest), 404)
        ids = [n["id"] for n in self.get("/v1/sessions/s/snapshots")["data"]]
        self.assertIn(self.snapshot["id"], ids)
        self.assertNotIn(made["id"], ids)
        events = self.get("/v1/sessions/s/events?order=desc&limit=1")["data"]
        self.assertEqual((events[0]["type"], events[0]["detail"]), ("snapshot_deleted", made["id"]))

    def test_the_command(self):
        made = self.command("sessions", "snapshot", "s", "--label", "cli")
        self.assertTrue(self.command("sessions", "snapshot", "s", "--pin", made["id"])["pinned"])
        self.assertFalse(self.command("sessions", "snapshot", "s", "--unpin", made["id"])["pinned"])
        self.assertFalse(self.command("replay", "s", "--snapshot", made["id"])["diverged"])
        self.assertTrue(self.command("sessions", "snapshot", "s", "--rm", made["id"])["deleted"])


class Cancelling(SessionsTest):
    # Slow enough that 8,000 tokens take seconds.
    model_options = ("--layers", "12", "--width", "256", "--ctx", "8192")

    def running(self, session):
        return [b["running_turn"] for b in self.get("/v1/sessions/%s/branches" % session)["data"]]

    def test_a_busy_head_is_refused_where_the_client_wants_that(self):
        turn = RunningTurn(self.server, "busy")
        refused = self.server.call("POST", CHAT, {"messages": HELLO, "session_id": "busy",
                                                  "on_busy": "reject", "branch": "main"})
        headers, error = self.assertRefused(refused, 409)
        self.assertIn("main", error["message"])
        self.assertEqual(headers["x-should-retry"], "false")
        append = self.server.call("POST", "/v1/sessions/busy/turns", {"messages": HELLO,
                                                                      "on_busy": "reject"})
        self.assertRefused(append, 409)
        self.server.call("DELETE", "/v1/sessions/busy?cancel=true")
        turn.rest()

    def test_a_turn_is_cancelled_and_asked_again(self):
        turn = RunningTurn(self.server, "c")
        running, = self.running("c")
        path = "/v1/sessions/c/turns/%s/cancel" % running
        self.assertEqual(self.post(path), {"id": running, "object": "turn.cancelled",
                                           "status": "aborted"})
        self.assertEqual(self.running("c"), [None])
        last = turn.rest()[-1]
        self.assertEqual(last["choices"][0]["finish_reason"], "cancelled")
        self.assertEqual((last["keeper"]["turn_id"], last["keeper"]["committed"]), (running, False))
        self.assertEqual(self.post(path)["status"], "aborted")  # it stays as it is
        self.assertEqual(self.get("/v1/sessions/c")["turns"], 0)
        done = self.server.chat("hello", session_id="c")["keeper"]
        self.assertEqual(self.post("/v1/sessions/c/turns/%s/cancel" % done["turn_id"])["status"],
                         "committed")
        for path in ("/v1/sessions/c/turns/turn_no", "/v1/sessions/no/turns/" + running):
            self.assertRefused(self.server.call("POST", path + "/cancel"), 404)
        self.post("/v1/sessions", {"id": "other"}, 201)  # of another session
        self.assertRefused(self.server.call(
            "POST", "/v1/sessions/other/turns/%s/cancel" % running), 404)

    def test_who_waits_for_the_whole_answer_is_told(self):
        self.post("/v1/sessions", {"id": "w"}, 201)
        answers = []
        waiter = threading.Thread(target=lambda: answers.append(
            self.server.call("POST", CHAT, {**LONG, "session_id": "w"})))
        waiter.start()
        while (running := self.running("w")[0]) is None:
            self.assertTrue(waiter.is_alive())
        self.assertEqual(self.post("/v1/sessions/w/turns/%s/cancel" % running)["status"], "aborted")
        waiter.join()
        self.assertRefused(answers[0], 409, code="turn_cancelled")

    def test_a_session_is_deleted_with_what_runs_and_waits_on_it(self):
        turn = RunningTurn(self.server, "d")
        self.assertRefused(self.server.call("DELETE", "/v1/sessions/d"), 409)
        self.assertRefused(self.server.call("DELETE", "/v1/sessions/d?cancel=yes"), 400, "cancel")
        answers = []
        waiter = threading.Thread(target=lambda: answers.append(self.server.call(
            "POST", CHAT, {"messages": HELLO, "session_id": "d", "on_busy": "queue",
                           "branch": "main"})))
        waiter.start()
        status, _, gone = self.server.call("DELETE", "/v1/sessions/d?cancel=true")
        self.assertEqual((status, gone.get("deleted")), (200, True), gone)
        waiter.join()
        self.assertEqual(turn.rest()[-1]["choices"][0]["finish_reason"], "cancelled")
        self.assertIn(answers[0][0], (200, 404))  # 200: it came later, and made another session
        if answers[0][0] == 404:
            self.assertRefused(self.server.call("GET", "/v1/sessions/d"), 404)
        self.assertEqual(self.server.metric("running_turns"), 0)


class DurableKv(SessionsTest):
    def test_an_answer_says_whether_its_pages_are_on_disk(self):
        keeper = self.server.chat("hello " * 60, session_id="kv", durability="kv")["keeper"]
        self.assertEqual((keeper["durable"], keeper["durable_kv"]), (True, True))
        keeper = self.server.chat("hello", session_id="turn")["keeper"]
        self.assertIsNone(keeper["durable_kv"])
        self.assertEqual(self.server.metric("kv_failures_total"), 0)


if __name__ == "__main__":
    unittest.main()
