"""The command line's contract on real models: verify on every instruction set, tokenize, eval, bench."""
import json
import os
import subprocess
import tempfile
import unittest

from harness import CODER, MODELS, SMOL, run

TEXT = "The keeper of sessions keeps what was computed, so that nothing is computed twice. " * 40


def flags_of_this_processor():
    with open("/proc/cpuinfo") as f:
        return next(l for l in f if l.startswith("flags")).split()


class Cli(unittest.TestCase):
    def json_of(self, *args, **env):
        status, out, error = run(*args, "--json", **env)
        self.assertEqual(status, 0, error)
        return json.loads(out)

    def test_verify_is_true_on_every_level_with_one_digest(self):
        levels = ["portable"]
        if "avx2" in flags_of_this_processor():
            levels.append("avx2")
        if "avx512_vnni" in flags_of_this_processor():
            levels.append("avx512")
        digests = set()
        for level in levels:
            report = self.json_of("verify", "--model", SMOL, "--tokens", "96", HOLDFAST_CPU=level)
            self.assertEqual(report["cpu"], level)
            for rung in ("E0", "E1", "E2", "E3", "E4", "E5", "E6", "E7"):
                self.assertTrue(report["rungs"][rung]["pass"], (level, rung, report))
                self.assertGreater(report["rungs"][rung]["cases"], 0)
            digests.add(report["numerics_digest"])
        self.assertEqual(len(digests), 1)

    def test_verify_on_a_model_with_other_weight_types(self):
        with tempfile.TemporaryDirectory() as folder:
            plot = os.path.join(folder, "e7.svg")
            report = self.json_of("verify", "--model", CODER, "--tokens", "96", "--plot", plot)
            with open(plot) as f:
                self.assertIn("<polyline", f.read())
        self.assertTrue(report["pass"], report)
        self.assertIn("against F32", report["rungs"]["E5"]["detail"])

    def test_tokenize(self):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
            f.write("Hello <|im_end|> world")
            f.flush()
            tokens = self.json_of("tokenize", "--model", CODER, "--file", f.name)["tokens"]
        self.assertNotIn(151645, tokens)  # <|im_end|> in a text stays text
        self.assertEqual(tokens[0], 9707)  # "Hello"

    def test_perplexity(self):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
            f.write(TEXT)
            f.flush()
            report = self.json_of("eval", "perplexity", "--model", SMOL, "--file", f.name, "--ctx",
                                  "128")
        self.assertGreater(report["tokens"], 100)
        # To the digit: the numerics are fixed (NUMERICS.md), on every machine.
        self.assertAlmostEqual(report["perplexity"], 1.1106002788867493, places=12)

    def test_kl_of_a_kv_type(self):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
            f.write(TEXT)
            f.flush()
            args = ["eval", "kl", "--model", SMOL, "--file", f.name, "--ctx", "128", "--kv-type"]
            same, codes = self.json_of(*args, "f16"), self.json_of(*args, "i8")
        self.assertEqual((same["kl"], same["same_top"]), (0, 1))
        self.assertGreater(codes["tokens"], 100)
        self.assertGreater(codes["kl"], 0)
        self.assertLess(codes["kl"], 0.02)
        self.assertGreater(codes["same_top"], 0.9)

    def test_bench(self):
        self.assertIn("decode@4096", self.json_of("bench", "list")["names"])
        report = self.json_of("bench", "prefill@64", "decode@0", "--model", SMOL, "--reps", "1")
        self.assertEqual([r["name"] for r in report["results"]], ["prefill@64", "decode@0"])
        for r in report["results"]:
            self.assertGreater(r["value"], 0)
            self.assertAlmostEqual(r["share"], r["value"] / r["limit"], places=6)
        self.assertEqual(run("bench", "nonsense@1", "--model", SMOL)[0], 1)

    def test_bench_of_the_machine_needs_no_model(self):
        report = self.json_of("bench", "roofline", "--model", "no-such-model", "--threads", "2")
        figures = {r["name"]: r["value"] for r in report["results"]}
        for what in ("dram_read", "l3_read", "l2_read", "int8", "fp32"):
            for threads in (1, 2):
                self.assertGreater(figures["roofline.%s@%d" % (what, threads)], 0.1)
        self.assertEqual(report["machine"]["threads"], 2)

    def test_bench_notes_a_peer_that_fails(self):
        with tempfile.TemporaryDirectory() as peer:
            program = os.path.join(peer, "llama-bench")
            with open(program, "w") as f:
                f.write("#!/bin/sh\necho broken >&2\nexit 7\n")
            os.chmod(program, 0o755)
            report = self.json_of("bench", "prefill@32", "agents2@32", "--model", SMOL, "--reps", "1",
                                  "--threads", "1", "--peer", "ik_llama=" + peer)
        prefill, agents = report["results"]
        self.assertIn("exit 7: broken", prefill["peers"]["ik_llama"]["note"])
        self.assertIn("llama-batched-bench", agents["peers"]["ik_llama"]["note"])
        self.assertGreater(agents["value"], 0)
        self.assertEqual(run("bench", "decode@0", "--peer", "other=/tmp")[0], 1)

    def test_bench_load_starts_a_server_and_ends_it(self):
        result, = self.json_of("bench", "load", "--model", SMOL, "--reps", "1")["results"]
        self.assertEqual(result["unit"], "s")
        self.assertGreater(result["value"], result["limit"])

    def test_pull_fetches_nothing_twice_and_doctor_is_content(self):
        pulled = self.json_of("pull", SMOL)
        self.assertEqual(pulled["path"], os.path.join(MODELS, SMOL + ".gguf"))
        with tempfile.TemporaryDirectory() as data:
            report = self.json_of("doctor", "--model", SMOL, "--data", data)
        self.assertTrue(report["good"])
        status, _, error = run("pull", "no-such-model")
        self.assertEqual(status, 1)
        self.assertIn(SMOL, error)

    def test_calibrate_writes_a_card_and_shows_it(self):
        with tempfile.TemporaryDirectory() as data:
            model = os.path.join(data, "tiny.gguf")
            subprocess.run([os.environ["HOLDFAST_TINY"], "--out", model, "--ctx", "8192"], check=True)
            args = ["calibrate", "--model", model, "--data", data]
            status, _, error = run(*args, "--show")
            self.assertEqual(status, 1)
            self.assertIn("no card", error)
            card = self.json_of(*args, "--quick", "--contexts", "8")
            self.assertEqual(card["name"], "tiny")
            self.assertGreater(len(card["cells"]), 3)
            for cell in card["cells"]:
                self.assertGreaterEqual(cell["kl"]["contexts"], 4)
                self.assertGreaterEqual(cell["kl"]["bound"], cell["kl"]["median"])
            self.assertTrue(card.pop("path").endswith(card["model"] + ".json"))
            self.assertEqual(self.json_of(*args, "--show"), card)
            self.assertEqual(run(*args, "--show", "--kv-type", "i8")[0], 1)  # another fingerprint
            self.assertIn("SETTING", run(*args, "--show")[1])

    def test_an_unknown_level_is_refused(self):
        status, _, error = run("verify", "--model", SMOL, HOLDFAST_CPU="sse9")
        self.assertEqual(status, 1)
        self.assertIn("sse9", error)

    def test_chat_goes_on_with_its_session(self):
        with tempfile.TemporaryDirectory() as data:
            say = lambda text: self.json_of("chat", "--model", SMOL, "--data", data, "--session",
                                            "me", "--max-tokens", "8", "--temperature", "0",
                                            "-m", text)
            first, second = say("Hello!"), say("And now?")
        self.assertEqual(first["keeper"]["session_id"], second["keeper"]["session_id"])
        self.assertGreater(second["keeper"]["tokens"]["kept"], 0)


if __name__ == "__main__":
    unittest.main()
