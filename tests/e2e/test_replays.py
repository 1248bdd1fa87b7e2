"""/v1/replays: jobs in the background, their steps as a list and as a stream that resumes."""
import json
import time
import unittest

from harness import EventStream, TinyServerTest

SSE = {"Accept": "text/event-stream"}


class Jobs(TinyServerTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server.chat("word " * 300, session_id="s", temperature=1.0, max_tokens=40,
                        logit_bias={"0": -100, "2": -100})  # it does not end before

    def create(self, **body):
        status, _, job = self.server.call("POST", "/v1/replays", {"session_id": "s", **body})
        self.assertEqual(status, 202, job)
        self.assertEqual((job["object"], job["state"]), ("replay.job", "queued"))
        return "/v1/replays/" + job["id"]

    def wait(self, path):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            job = self.server.call("GET", path)[2]
            if job["ended_at"]:
                return job
            time.sleep(0.01)
        self.fail("the job does not end")

    def test_a_job_says_what_the_call_that_waits_says(self):
        for body in ({}, {"seed": 5}, {"mode": "forced", "top_k": 3}, {"mode": "free"}):
            job = self.wait(self.create(**body))
            self.assertEqual(job["state"], "done", job)
            self.assertEqual(job["progress"]["done"], job["progress"]["total"])
            waited = self.server.call("POST", "/v1/sessions/s/replay", body)[2]
            for name in ("mode", "diverged", "tokens", "changed", "divergence"):
                self.assertEqual(job["result"].get(name), waited.get(name), (body, name))
            self.assertEqual(job["session_id"], waited["session_id"])
            if body.get("mode") == "forced":
                listed = self.server.call("GET", "/v1/replays/%s/steps?limit=1000" % job["id"])[2]
                self.assertEqual(listed["data"], waited["data"])
                self.assertEqual(job["steps"], 40)

    def test_the_stream_resumes_and_ends_with_the_job(self):
        for _ in range(10):  # so that it has not ended before it is listened to
            self.create()
        path = self.create(mode="forced", top_k=1)
        stream = EventStream(self.server, path + "/steps", SSE)
        events = []
        while event := stream.next():
            events.append(event)
        steps = [e for e in events if e["event"] == "step"]
        self.assertEqual([int(e["id"]) for e in steps], list(range(40)))
        self.assertEqual(events[-1]["event"], "done")
        self.assertEqual(json.loads(events[-1]["data"]), self.server.call("GET", path)[2])
        self.assertIn("progress", {e["event"] for e in events})
        rest = EventStream(self.server, path + "/steps?after=0", {**SSE, "Last-Event-ID": "36"})
        self.assertEqual([e["event"] for e in rest.take(4)], ["step", "step", "step", "done"])
        self.assertIsNone(rest.next())

    def test_cancel_and_delete(self):
        paths = [self.create() for _ in range(20)]
        self.assertEqual(self.server.call("POST", paths[-1] + "/cancel")[2]["state"], "cancelled")
        for path in paths[1:-1]:
            self.assertEqual(self.server.call("DELETE", path)[2]["deleted"], True)
            self.assertRefused(self.server.call("GET", path), 404)
        self.assertEqual(self.wait(paths[0])["state"], "done")
        listed = self.server.call("GET", "/v1/replays?limit=1000")[2]["data"]
        states = {"/v1/replays/" + j["id"]: j["state"] for j in listed}
        self.assertEqual(states[paths[-1]], "cancelled")
        self.assertNotIn(paths[1], states)

    def test_refusals(self):
        post = lambda body: self.server.call("POST", "/v1/replays", body)
        self.assertRefused(post({}), 400, "session_id")
        self.assertRefused(post({"session_id": "s", "mode": "x"}), 400, "mode")
        self.assertRefused(post({"session_id": "nobody"}), 404)
        for call in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/steps"),
                     ("GET", "/steps?stream=true")):
            self.assertRefused(self.server.call(call[0], "/v1/replays/rep_no" + call[1]), 404)
        path = self.create()
        for query in ("after=x", "limit=0", "stream=maybe", "stream=true&after=-1"):
            self.assertRefused(self.server.call("GET", path + "/steps?" + query), 400)
        failed = self.wait(self.create(to=1 << 30))
        self.assertEqual((failed["state"], failed["error"]["param"]), ("failed", "from"))


class Tenants(TinyServerTest):
    flags = ("--api-key", "a=key-of-a", "--api-key", "b=key-of-b")

    def test_jobs_stay_with_their_tenant(self):
        a, b = ({"x-api-key": "key-of-" + t} for t in "ab")
        self.server.chat("hello", a, session_id="s")
        job = self.server.call("POST", "/v1/replays", {"session_id": "s"}, a)[2]
        self.assertRefused(self.server.call("POST", "/v1/replays", {"session_id": "s"}, b), 404)
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/steps")):
            self.assertRefused(self.server.call(method, "/v1/replays/" + job["id"] + path,
                                                headers=b), 404)
        self.assertEqual(self.server.call("GET", "/v1/replays", headers=b)[2]["data"], [])
        self.assertEqual(len(self.server.call("GET", "/v1/replays", headers=a)[2]["data"]), 1)


class Stop(TinyServerTest):
    def test_a_server_that_stops_waits_for_no_job(self):
        self.server.chat("word " * 300, session_id="s", max_tokens=4)
        for _ in range(20):
            self.server.call("POST", "/v1/replays", {"session_id": "s"})
        before = time.monotonic()
        self.assertEqual(self.server.stop(), 0)
        self.assertLess(time.monotonic() - before, 5)


if __name__ == "__main__":
    unittest.main()
