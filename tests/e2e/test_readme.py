"""The curl lines of the README, as they stand there, against a running server."""
import json
import os
import re
import subprocess
import tempfile
import unittest

from harness import TinyServerTest, write_card

README = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../README.md")
# Says of each call what came of it. An event stream that -m ends is a good one (28).
WRAPPER = """
set -e
curl() {
  local status=0
  command curl -sS --fail-with-body "$@" >body || status=$?
  case "$status $*" in "28 "*"-m 3"*) status=0 ;; esac
  echo "$status $*" | tr '\\n' ' ' >>calls; echo >>calls
  cat body
  return "$status"
}
"""


class Readme(TinyServerTest):
    def blocks(self, heading):
        with open(README) as f:
            text = f.read()
        section = text[text.index("## " + heading):]
        return re.findall(r"^```\n(.*?)^```", section[:section.index("\n## ", 5)], re.S | re.M)

    def run_lines(self, blocks):
        """Runs them in one shell; what each curl call was, and all that was printed."""
        script = "".join(line for line in "".join(blocks).splitlines(True)
                         if not line.startswith(("build/holdfast serve", "H=")))
        head = "H=%s; J='content-type: application/json'\n" % self.server.url
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(["bash", "-c", WRAPPER + head + script], cwd=folder, text=True,
                                  capture_output=True, timeout=300)
            with open(os.path.join(folder, "calls")) as f:
                calls = f.read().splitlines()
        self.assertEqual(done.returncode, 0, (done.stdout, done.stderr, calls[-1:]))
        self.assertEqual(len(calls), sum(len(re.findall(r"\bcurl ", b)) for b in blocks))
        return done.stdout

    def test_every_line_works(self):
        blocks = self.blocks("The session API in twelve curl lines")
        self.assertEqual(len(re.findall(r"^curl ", blocks[0], re.M)), 12)
        self.assertEqual(len(blocks), 2)
        self.run_lines(blocks)

    def test_reuse_is_used(self):
        write_card(self.server, os.path.join(self.folder.name, "data"))
        self.server.restart()
        printed = self.run_lines(self.blocks("Reuse behind an edit"))
        answers = []
        while printed:
            answer, end = json.JSONDecoder().raw_decode(printed)
            answers.append(answer)
            printed = printed[end:].lstrip()
        chat, provenance, harden = answers  # the segment's answer went to grep
        stitch = chat["usage"]["stitch"]
        self.assertEqual(stitch["policy"], "balanced")
        self.assertGreater(stitch["tokens"]["shifted"], 100, stitch)
        self.assertGreater(provenance["totals"]["shifted"], 100)
        self.assertTrue(harden["begun"])


if __name__ == "__main__":
    unittest.main()
