"""The curl lines of the README, as they stand there, against a running server."""
import os
import re
import subprocess
import tempfile
import unittest

from harness import TinyServerTest

README = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../README.md")
# Says of each call what came of it. An event stream that -m ends is a good one (28).
WRAPPER = """
set -e
curl() {
  local status=0
  command curl -sS --fail-with-body "$@" >body || status=$?
  case "$status $*" in "28 "*"-m 3"*) status=0 ;; esac
  echo "$status $*" | tr '\\n' ' ' >>calls; echo >>calls
  [ "$status" = 0 ] || { cat body; return "$status"; }
}
"""


class Readme(TinyServerTest):
    def blocks(self):
        with open(README) as f:
            text = f.read()
        section = text[text.index("## The session API in twelve curl lines"):]
        return re.findall(r"^```\n(.*?)^```", section[:section.index("\n## ", 5)], re.S | re.M)

    def test_every_line_works(self):
        first, more = self.blocks()
        script = "".join(line for line in (first + more).splitlines(True)
                         if not line.startswith(("build/holdfast serve", "H=")))
        head = "H=%s; J='content-type: application/json'\n" % self.server.url
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(["bash", "-c", WRAPPER + head + script], cwd=folder, text=True,
                                  capture_output=True, timeout=300)
            with open(os.path.join(folder, "calls")) as f:
                calls = f.read().splitlines()
        self.assertEqual(done.returncode, 0, (done.stdout, done.stderr, calls[-1:]))
        written = [len(re.findall(r"^curl ", block, re.M)) for block in (first, more)]
        self.assertEqual(written[0], 12)
        self.assertEqual(len(calls), sum(written))


if __name__ == "__main__":
    unittest.main()
