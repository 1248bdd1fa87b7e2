"""Bundles between two servers by curl's way and by the command line; fsck, gc and backup."""
import json
import os
import tempfile
import unittest

from harness import Server, run, tiny_model

TEXT = "a long enough prompt to fill some pages of the cache " * 12
KEY = "a key of enough bytes"


class Bundle(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="holdfast-e2e-")
        self.addCleanup(self.folder.cleanup)
        self.model = tiny_model(self.folder.name)
        self.key_file = self.path("key")
        with open(self.key_file, "w") as f:
            f.write(KEY + "\n")

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def serve(self, name, *flags, **env):
        server = Server(self.model, self.path(name), *flags, **env)
        self.addCleanup(server.kill)
        return server

    def sessions(self, verb, data, *args, status=0, **env):
        got, out, error = run("sessions", verb, *args, "--data", self.path(data), "--model",
                              self.model, "--json", **env)
        self.assertEqual(got, status, error + out)
        return json.loads(out)

    def talk(self, server):
        first = server.chat(TEXT, session_id="s")
        return [{"role": "user", "content": TEXT}, first["choices"][0]["message"],
                {"role": "user", "content": "more"}]

    def test_by_command_line_to_another_machine_and_instruction_set(self):
        home, away = self.serve("home"), self.serve("away", HOLDFAST_CPU="portable")
        history = self.talk(home)
        file = self.path("s.bundle")
        made = self.sessions("export", "home", "s", "-o", file, "--key-file", self.key_file)
        self.assertTrue(made["signed"])
        self.assertEqual(made["bytes"], os.path.getsize(file))
        self.assertFalse(os.path.exists(file + ".part"))
        done = self.sessions("import", "away", file, HOLDFAST_BUNDLE_KEY=KEY)
        self.assertTrue(done["authentic"])
        self.assertGreater(done["pages_taken"], 3)
        want, got = home.chat(history, session_id="s"), away.chat(history, session_id="s")
        self.assertEqual(got["choices"][0]["token_ids"], want["choices"][0]["token_ids"])
        self.assertGreater(got["keeper"]["tokens"]["disk"], 0)
        # Again: it is there. Under another id, with another key: its tokens only.
        refused = self.sessions("import", "away", file, status=1)
        self.assertIn("--as", refused["error"]["message"])
        again = self.sessions("import", "away", file, "--as", "t", HOLDFAST_BUNDLE_KEY="x" * 16)
        self.assertEqual(again["pages_taken"], 0)
        self.assertIn("not of this key", again["pages_left_why"])
        self.assertEqual(again["session"]["external_id"], "t")
        self.sessions("export", "home", "nobody", "-o", file + "2", status=1)
        self.assertFalse(os.path.exists(file + "2"))
        self.assertFalse(os.path.exists(file + "2.part"))

    def test_without_a_server_and_damaged(self):
        server = self.serve("home")
        self.talk(server)
        self.assertEqual(server.stop(), 0)
        file = self.path("s.bundle")
        self.sessions("export", "home", "s", "-o", file)
        done = self.sessions("import", "away", file, "--as", "t")
        self.assertFalse(done["signed"])
        self.assertEqual(done["session"]["turns"], 1)
        with open(file, "r+b") as f:
            f.seek(100)
            f.write(b"damage")
        refused = self.sessions("import", "away", file, "--as", "u", status=1)
        self.assertIn("checksum", refused["error"]["message"])
        self.assertEqual(len(self.sessions("ls", "away")["data"]), 1)

    def test_over_http(self):
        server = self.serve("home")
        self.talk(server)
        key = {"x-bundle-key": KEY.encode().hex()}
        import http.client
        connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
        connection.request("GET", "/v1/sessions/s/export", headers=key)
        bundle = connection.getresponse().read()
        connection.close()
        status, _, done = server.call("POST", "/v1/sessions/import?as=copy", bundle, key)
        self.assertEqual(status, 201, done)
        self.assertEqual(done["pages"], done["pages_taken"])
        self.assertEqual(server.call("GET", "/v1/sessions/copy/tokens")[2],
                         server.call("GET", "/v1/sessions/s/tokens")[2])
        for body, headers, says in ((bundle[:-1], key, "left"), (b"", key, "shorter"),
                                    (b"x" * 5000, key, "magic"),
                                    (bundle, {"x-bundle-key": "zz"}, "hexadecimal")):
            status, _, refused = server.call("POST", "/v1/sessions/import?as=no", body, headers)
            self.assertEqual(status, 400, refused)
            self.assertIn(says, refused["error"]["message"])
        self.assertEqual(server.call("GET", "/v1/sessions/no")[0], 404)

    def test_upkeep(self):
        server = self.serve("home")
        history = self.talk(server)
        for verb in ("fsck", "gc", "backup"):  # without the token of server.json
            self.assertEqual(server.call("POST", "/v1/admin/" + verb, {})[0], 403)
        self.assertTrue(self.sessions("fsck", "home")["clean"])
        self.assertGreater(self.sessions("backup", "home", self.path("copy"))["pages"], 3)
        self.sessions("backup", "home", self.path("copy"), status=1)
        server.call("POST", "/v1/sessions", {"id": "brief", "ttl_s": 1})
        server.call("DELETE", "/v1/sessions/s")
        collected = self.sessions("gc", "home", "--now")
        self.assertGreater(collected["bytes_freed"], 0)
        self.assertTrue(collected["shredded"])
        # The copy goes on where the original was.
        copy = self.serve("copy")
        answer = copy.chat(history, session_id="s")
        self.assertGreater(answer["keeper"]["tokens"]["disk"], 0)
        copy.kill()
        pages = self.path("copy/pages/pages-000001.hf")
        with open(pages, "r+b") as f:
            f.seek(5000)
            byte = f.read(1)
            f.seek(5000)
            f.write(bytes([byte[0] ^ 1]))
        report = self.sessions("fsck", "copy", status=1)
        self.assertEqual(report["pages"]["damaged"], 1)
        self.sessions("fsck", "copy", "--repair", status=1)
        self.assertTrue(self.sessions("fsck", "copy")["clean"])


if __name__ == "__main__":
    unittest.main()
