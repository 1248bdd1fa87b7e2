#!/usr/bin/env python3
"""Token ids of a corpus of over 1 MB equal llama.cpp's, for each model named.

usage: check_tokens.py PROBE MODELS_DIR NAME...      $HOLDFAST_MODELS goes before MODELS_DIR
       check_tokens.py --from-peer LLAMA_TOKENIZE VERSION MODELS_DIR NAME...   writes the expectations

expected_tokens.json holds the SHA-256 of the peer's ids (little-endian 32-bit), with special tokens
as text ("plain") and parsed ("special"). A missing model is a failure.
"""
import ast
import hashlib
import json
import os
import pathlib
import struct
import subprocess
import sys

import make_corpus
import probe

EXPECTED = pathlib.Path(__file__).with_name("expected_tokens.json")


def entry(ids):
    return {"count": len(ids) // 4, "sha256": hashlib.sha256(ids).hexdigest()}


def from_peer(binary, version, models, names):
    corpus = make_corpus.build()
    expected = {"peer": version, "corpus_sha256": hashlib.sha256(corpus).hexdigest(), "models": {}}
    for name in names:
        entries = {}
        for how, flags in (("plain", ["--no-parse-special"]), ("special", [])):
            command = [binary, "-m", f"{models}/{name}.gguf", "--no-bos", "--no-escape", "--ids", "--stdin"]
            done = subprocess.run(command + flags, input=corpus, stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL, check=True)
            ids = ast.literal_eval(done.stdout.decode())
            entries[how] = entry(struct.pack(f"<{len(ids)}i", *ids))
        expected["models"][name] = entries
    EXPECTED.write_text(json.dumps(expected, indent=2) + "\n")


def check(binary, models, names):
    expected = json.loads(EXPECTED.read_text())
    corpus = make_corpus.build()
    assert hashlib.sha256(corpus).hexdigest() == expected["corpus_sha256"], "the corpus has changed"
    assert len(corpus) >= 1 << 20
    failures = 0
    for name in names:
        peer = probe.Probe(binary)
        peer.load(f"{models}/{name}.gguf")
        for how, want in expected["models"][name].items():
            have = entry(peer.encode(corpus, how))
            verdict = "equal" if have == want else f"DIFFERENT: {have}, expected {want}"
            failures += have != want
            print(f"{name} {how}: {have['count']} tokens of {len(corpus)} bytes, {verdict}")
        peer.close()
    return failures


if __name__ == "__main__":
    if sys.argv[1] == "--from-peer":
        from_peer(sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:])
    else:
        models = os.environ.get("HOLDFAST_MODELS", sys.argv[2])
        sys.exit(check(sys.argv[1], models, sys.argv[3:]) > 0)
