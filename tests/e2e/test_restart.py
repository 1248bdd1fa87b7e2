"""What survives: SIGKILL, SIGTERM, locked and foreign data folders, taken ports."""
import os
import re
import subprocess
import tempfile
import unittest

from harness import HOLDFAST, Server, run, tiny_model


class Restart(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="holdfast-e2e-")
        self.addCleanup(self.folder.cleanup)
        self.model = tiny_model(self.folder.name)
        self.data = os.path.join(self.folder.name, "data")

    def serve(self, *flags, data=None):
        server = Server(self.model, data or self.data, *flags)
        self.addCleanup(server.kill)
        return server

    def test_an_acknowledged_turn_survives_sigkill(self):
        text = "a long enough prompt to fill some pages of the cache " * 12

        def first_turn(server):
            first = server.chat(text, session_id="s", durability="kv")
            return [{"role": "user", "content": text}, first["choices"][0]["message"],
                    {"role": "user", "content": "more"}]

        never_killed = self.serve(data=self.data + "-other")
        uninterrupted = never_killed.chat(first_turn(never_killed), session_id="s")
        server = self.serve()
        history = first_turn(server)
        server.restart()
        items = server.call("GET", "/v1/sessions/s/items")[2]["data"]
        self.assertEqual([i["role"] for i in items], ["user", "assistant"])
        resumed = server.chat(history, session_id="s")
        self.assertGreater(resumed["keeper"]["tokens"]["disk"], 0)
        self.assertEqual(resumed["choices"][0]["token_ids"],
                         uninterrupted["choices"][0]["token_ids"])

    def test_sigterm_drains_and_exits_0_and_keeps_the_partial_page(self):
        server = self.serve()
        server.chat("hello", session_id="s")
        self.assertEqual(server.stop(), 0)
        self.assertFalse(os.path.exists(os.path.join(self.data, "server.json")))
        server.start()
        self.assertEqual(server.call("GET", "/v1/sessions/s")[2]["turns"], 1)

    def test_a_folder_that_another_process_holds(self):
        self.serve()
        status, _, error = run("serve", "--model", self.model, "--data", self.data, "--port", "0")
        self.assertEqual(status, 1)
        self.assertIn("locked by process", error)

    def test_a_folder_of_a_newer_version(self):
        self.serve().stop()
        with open(os.path.join(self.data, "version"), "w") as f:
            f.write("holdfast-data 999\n")
        status, _, error = run("serve", "--model", self.model, "--data", self.data, "--port", "0")
        self.assertEqual(status, 1)
        self.assertIn("newer", error)

    def test_a_folder_that_is_not_writable(self):
        status, _, error = run("serve", "--model", self.model, "--data", "/proc/holdfast",
                               "--port", "0")
        self.assertEqual(status, 1)
        self.assertIn("/proc/holdfast", error)

    def test_a_port_that_is_taken(self):
        server = self.serve()
        status, _, error = run("serve", "--model", self.model, "--data", self.data + "2", "--port",
                               str(server.port))
        self.assertEqual(status, 1)
        self.assertIn("taken", error)

    def test_models_that_are_none(self):
        bad = os.path.join(self.folder.name, "bad.gguf")
        with open(self.model, "rb") as f:
            good = f.read()
        for content in (b"", b"GGUF", good[:1000], good[:len(good) // 2], b"X" + good[1:]):
            with open(bad, "wb") as f:
                f.write(content)
            status, _, error = run("serve", "--model", bad, "--data", self.data, "--port", "0")
            self.assertEqual(status, 1, error)
            self.assertTrue(error.startswith("holdfast: "), error)

    def test_beyond_this_machine_a_key_is_needed(self):
        status, _, error = run("serve", "--model", self.model, "--data", self.data, "--host",
                               "0.0.0.0", "--port", "0")
        self.assertEqual(status, 1)
        self.assertIn("--api-key", error)

    def test_sessions_commands_talk_to_the_server_and_without_one_to_the_folder(self):
        server = self.serve()
        server.chat("hello", session_id="s")
        flags = ("--model", self.model, "--data", self.data, "--json", "--kv-memory", "64MiB")
        self.assertEqual(run("sessions", "fork", "s", "--at-item", "1", *flags)[0], 0)
        status, with_server, error = run("sessions", "tree", "s", *flags)
        self.assertEqual(status, 0, error)
        self.assertEqual(server.stop(), 0)
        status, without, error = run("sessions", "tree", "s", *flags)
        self.assertEqual(status, 0, error)
        strip = lambda text: re.sub('"resident":(true|false)|"state":"(resident|cold)"', "", text)
        self.assertEqual(strip(with_server), strip(without))
        status, _, error = run("sessions", "show", "nobody", *flags)
        self.assertEqual(status, 1)
        self.assertEqual(run("sessions", "rm", "s", *flags)[0], 0)

    def test_usage_errors_exit_2(self):
        for args in ((), ("nonsense",), ("serve", "--port", "99999999"), ("tokenize",)):
            self.assertEqual(run(*args)[0], 2, args)
        done = subprocess.run([HOLDFAST, "--help"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0)
        self.assertIn("serve", done.stdout)


if __name__ == "__main__":
    unittest.main()
