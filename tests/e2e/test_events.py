"""The events of a session as a stream: resumed without gap or repeat, live, and when it ends."""
import json
import time
import unittest

from harness import EventStream, TinyServerTest

SSE = {"Accept": "text/event-stream"}


class Events(TinyServerTest):
    def events(self, session, **headers):
        return self.server.call("GET", "/v1/sessions/%s/events?limit=1000" % session,
                                headers=headers)[2]["data"]

    def follow(self, path, headers=SSE):
        stream = EventStream(self.server, path, headers)
        self.addCleanup(stream.close)
        self.assertEqual(stream.response.status, 200)
        self.assertEqual(stream.response.getheader("content-type"),
                         "text/event-stream; charset=utf-8")
        return stream

    def fork(self, session, name):
        self.assertEqual(self.server.call("POST", "/v1/sessions/%s/fork" % session,
                                          {"name": name})[0], 201)

    def test_the_stream_has_what_the_list_has(self):
        self.server.chat("hello", session_id="same")
        for n in range(25):  # more than one page of a list
            self.fork("same", "b%d" % n)
        listed = self.events("same")
        self.assertEqual(len(listed), 27)
        streamed = self.follow("/v1/sessions/same/events").take(27)
        self.assertEqual([json.loads(e["data"]) for e in streamed], listed)
        self.assertEqual([int(e["id"]) for e in streamed], [e["seq"] for e in listed])
        self.assertEqual([e["event"] for e in streamed], [e["type"] for e in listed])

    def test_resumed_without_gap_or_repeat(self):
        self.server.chat("hello", session_id="gap")
        seen = []
        for n in range(6):  # each connection takes one event, and others are added in between
            self.fork("gap", "b%d" % n)
            headers = {**SSE, "Last-Event-ID": seen[-1]} if seen else SSE
            # The header goes before the address, which a browser repeats as it was.
            stream = self.follow("/v1/sessions/gap/events?after=0", headers)
            seen.append(stream.next()["id"])
            stream.close()
        seqs = [str(e["seq"]) for e in self.events("gap")]
        self.assertEqual(seen, seqs[:6])
        rest = self.follow("/v1/sessions/gap/events?stream=true&after=" + seen[-1], {})
        self.assertEqual([e["id"] for e in rest.take(len(seqs) - 6)], seqs[6:])

    def test_live(self):
        self.server.call("POST", "/v1/sessions", {"id": "live"})
        streams = [self.follow("/v1/sessions/live/events") for _ in range(3)]
        for stream in streams:
            self.assertEqual(stream.next()["event"], "session_created")
        before = time.monotonic()
        turn = self.server.chat("hello", session_id="live")["keeper"]["turn_id"]
        for stream in streams:
            event = stream.next()
            self.assertEqual(event["event"], "turn_committed")
            self.assertEqual(json.loads(event["data"])["turn_id"], turn)
        self.fork("live", "side")
        self.assertLess(time.monotonic() - before, 10)
        self.assertEqual([s.next()["event"] for s in streams], ["branch_created"] * 3)

    def test_ends_with_the_session(self):
        self.server.call("POST", "/v1/sessions", {"id": "brief"})
        stream = self.follow("/v1/sessions/brief/events")
        self.assertEqual(stream.next()["event"], "session_created")
        self.server.call("DELETE", "/v1/sessions/brief")
        # Another one under the same name is not what was followed.
        self.server.call("POST", "/v1/sessions", {"id": "brief"})
        self.assertIsNone(stream.next())

    def test_silence_is_broken_by_comments(self):
        self.server.call("POST", "/v1/sessions", {"id": "mute", "ttl_s": 17})
        stream = self.follow("/v1/sessions/mute/events")
        self.assertIsNotNone(stream.next())
        self.assertIsNone(stream.next())  # it has expired
        self.assertIn("ping", stream.comments)

    def test_refusals(self):
        self.server.call("POST", "/v1/sessions", {"id": "r"})
        get = lambda path, headers=SSE: self.server.call("GET", path, headers=headers)
        self.assertRefused(get("/v1/sessions/sess_nothere/events"), 404)
        self.assertRefused(get("/v1/sessions/r/events?after=x"), 400)
        self.assertRefused(get("/v1/sessions/r/events", {**SSE, "Last-Event-ID": "-4"}), 400)
        self.assertRefused(get("/v1/sessions/r/events?stream=maybe"), 400, "stream")
        # The parameter goes before the header.
        self.assertEqual(get("/v1/sessions/r/events?stream=false")[2]["object"], "list")

    def test_a_client_that_leaves_frees_its_connection(self):
        self.server.call("POST", "/v1/sessions", {"id": "left"})
        stream = self.follow("/v1/sessions/left/events")
        stream.next()
        open_now = self.server.metric("http_connections")
        stream.close()
        deadline = time.monotonic() + 10
        while self.server.metric("http_connections") >= open_now:
            self.assertLess(time.monotonic(), deadline)


class Tenants(TinyServerTest):
    flags = ("--api-key", "a=key-of-a", "--api-key", "b=key-of-b")

    def test_another_tenants_session_is_not_there(self):
        a, b = ({"x-api-key": "key-of-" + t, **SSE} for t in "ab")
        made = self.server.call("POST", "/v1/sessions", {"id": "s"}, a)[2]
        for name in ("s", made["id"]):
            self.assertRefused(self.server.call("GET", "/v1/sessions/%s/events" % name, headers=b),
                               404)
        stream = EventStream(self.server, "/v1/sessions/s/events", a)
        self.assertEqual(stream.next()["event"], "session_created")
        stream.close()


class Stop(TinyServerTest):
    def test_a_server_that_stops_ends_the_stream(self):
        self.server.call("POST", "/v1/sessions", {"id": "s"})
        stream = EventStream(self.server, "/v1/sessions/s/events", SSE)
        stream.next()
        self.assertEqual(self.server.stop(), 0)
        self.assertIsNone(stream.next())
        stream.close()


if __name__ == "__main__":
    unittest.main()
