#!/usr/bin/env python3
"""Logits of layers of real shape (tests/fixtures/real_shapes.h) are llama.cpp's.

usage: check_logits.py MAKE_TINY_MODEL LOGITS_PROBE [SHAPE...]
       check_logits.py --from-peer LLAMA_SERVER VERSION MAKE_TINY_MODEL SHAPE...   asks the peer

expected_logits.json holds, for each shape and each length of prompt, the peer's 16 likeliest tokens
with the logarithms of their probabilities, and the SHA-256 of the file that it read.
"""
import array
import hashlib
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

EXPECTED = pathlib.Path(__file__).with_name("expected_logits.json")
LENGTHS = [2, 48, 200]  # the window of gemma3 is 48
PORT = 18431

# How far a logarithm may be from the peer's. Logits have a deviation of about 1.
# F16 weights: the peer rounds activations to F16, each by up to 2^-11 of itself; we don't.
# Quantised weights: both round activations to INT8, by up to 1/254 of the largest of 32, but sum up
# in orders of their own, so that codes differ from the second product on.
TOLERANCE = {"f16": 0.005, "q8_0": 0.08, "q4_0": 0.08}


def prompt(length):
    return [(i * i * 31 + i * 389 + 7) % 1021 + 3 for i in range(length)]


def make(program, shape, folder):
    path = pathlib.Path(folder, "model.gguf")
    subprocess.run([program, "--out", path, "--shape", shape], check=True)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def ask(tokens):
    body = {"prompt": tokens, "n_predict": 1, "n_probs": 16, "temperature": 0, "cache_prompt": False}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/completion", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        probs = json.load(reply)["completion_probabilities"][0]["top_logprobs"]
    return [[p["id"], round(p["logprob"], 5)] for p in probs]


def from_peer(server, version, maker, names):
    shapes = {}
    for shape in names:
        with tempfile.TemporaryDirectory() as folder:
            path, digest = make(maker, shape, folder)
            process = subprocess.Popen(
                [server, "-m", path, "--port", str(PORT), "-t", "2", "-c", "512", "-fa", "off",
                 "-np", "1", "--no-warmup"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                while True:
                    try:
                        urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health").close()
                        break
                    except (urllib.error.URLError, ConnectionError):
                        assert process.poll() is None, f"the peer can't read {shape}"
                        time.sleep(0.2)
                shapes[shape] = {"sha256": digest, "top": [ask(prompt(n)) for n in LENGTHS]}
            finally:
                process.terminate()
                process.wait()
    lines = [f"  {json.dumps(name)}: {json.dumps(shape)}" for name, shape in shapes.items()]
    EXPECTED.write_text(f'{{"peer": {json.dumps(version)}, "lengths": {LENGTHS}, "shapes": {{\n'
                        + ",\n".join(lines) + "\n}}\n")


def distances(logits, top):
    largest = max(logits)
    total = largest + math.log(sum(math.exp(x - largest) for x in logits))
    return [abs(logits[token] - total - want) for token, want in top]


def check(maker, probe, shapes):
    expected = json.loads(EXPECTED.read_text())
    failures = 0
    for shape in shapes or expected["shapes"]:
        want = expected["shapes"][shape]
        with tempfile.TemporaryDirectory() as folder:
            path, digest = make(maker, shape, folder)
            assert digest == want["sha256"], f"{shape}: the generator makes another file"
            questions = " -1 ".join(" ".join(map(str, prompt(n))) for n in expected["lengths"])
            done = subprocess.run([probe, path], input=f"{questions} -1".encode(), check=True,
                                  stdout=subprocess.PIPE)
        logits = array.array("f", done.stdout)
        vocab = len(logits) // len(want["top"])
        worst = [max(distances(logits[i * vocab:(i + 1) * vocab], top))
                 for i, top in enumerate(want["top"])]
        bound = TOLERANCE[shape.split("-")[-1]]
        good = max(worst) <= bound
        failures += not good
        print(f"{shape}: at most {', '.join(f'{w:.4f}' for w in worst)} from the peer's, "
              f"{bound} allowed{'' if good else ': TOO FAR'}")
    return failures


if __name__ == "__main__":
    if sys.argv[1] == "--from-peer":
        from_peer(sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:])
    else:
        sys.exit(check(sys.argv[1], sys.argv[2], sys.argv[3:]) > 0)
