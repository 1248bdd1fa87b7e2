"""The examples, on a tiny model: what they say of themselves holds."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

from harness import HOLDFAST

EXAMPLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../examples")


class RagSplice(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with tempfile.TemporaryDirectory(prefix="holdfast-e2e-") as folder:
            model = os.path.join(folder, "tiny.gguf")
            subprocess.run([os.environ["HOLDFAST_TINY"], "--out", model, "--ctx", "8192", "--vocab",
                            "512"], check=True)
            done = subprocess.run([sys.executable, os.path.join(EXAMPLES, "rag_splice.py"), "--json",
                                   "--model", model, "--holdfast", HOLDFAST], text=True,
                                  capture_output=True, timeout=600)
        assert done.returncode == 0, done.stderr
        cls.result = json.loads(done.stdout)

    def test_chunks_come_in_changing_order(self):
        orders = [tuple(row["documents"]) for row in self.result["questions"]]
        self.assertEqual(len(set(orders)), len(orders))
        self.assertLess(len(set(sum(orders, ()))), sum(map(len, orders)))

    def test_what_is_exact_equals_what_is_computed(self):
        for row in self.result["questions"]:
            off, exact = row["policies"]["off"], row["policies"]["exact"]
            self.assertEqual(exact["token_ids"], off["token_ids"])
            self.assertEqual(off["stitch"]["tokens"]["fresh"], off["prompt_tokens"])
            self.assertFalse(exact["stitch"]["approximate"])

    def test_reuse_is_told_token_by_token(self):
        self.assertTrue(self.result["card"])
        for n, row in enumerate(self.result["questions"]):
            for policy, answer in row["policies"].items():
                tokens = answer["stitch"]["tokens"]
                self.assertEqual(sum(tokens.values()), answer["prompt_tokens"])
                self.assertEqual(answer["stitch"]["policy"], policy)
                shifted = {"balanced": True, "fast": n > 0}.get(policy, False)
                self.assertEqual(tokens["shifted"] > 0, shifted, (n, policy, answer["stitch"]))
            self.assertEqual(set(self.result["median_ms"]), set(row["policies"]))


if __name__ == "__main__":
    unittest.main()
