#!/usr/bin/env python3
"""Questions over a document set whose chunks come back in another order each time.

Eight documents are kept as segments. Each question finds four of them, by the words that it shares
with them, and sends them in the order found, which differs from question to question: no prefix
cache helps with that. Every policy is a tenant of its own on one server, so that none finds what
another has computed: `off` computes everything, `exact` uses equal beginnings, `fast` goes on with
what stood in earlier questions, `balanced` also with chunks that were computed alone, ahead of any
question. Printed are the time to the first token, what was reused, and the answers side by side.

Approximate reuse needs a model card. Where there is none it is measured first, quickly (--minutes
at most); with --data DIR it is kept there for the next time.

  examples/rag_splice.py [--model NAME] [--data DIR] [--minutes 30] [--holdfast build/holdfast] [--json]
"""
import argparse
import http.client
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
POLICIES = ["off", "exact", "fast", "balanced"]
DOCUMENT_TOKENS = 480
FOUND = 4            # documents for a question
MAX_ANSWER = 24      # tokens

STATIONS = [  # name, keeper, ferry's day, number of the store's key
    ("Kestrel", "Ilse Tamm", "Monday", 417), ("Morwen", "Jon Hale", "Thursday", 903),
    ("Talland", "Ruth Okoro", "Saturday", 268), ("Brae", "Piet Vos", "Tuesday", 731),
    ("Osk", "Ana Lindt", "Friday", 556), ("Farrow", "Tom Birch", "Sunday", 142),
    ("Lund", "Mara Quist", "Wednesday", 389), ("Skerry", "Abel Finn", "Monday", 674),
]
QUESTIONS = [  # what is asked, and what the answer has to say
    ("We sail from Kestrel to Morwen, Talland and Brae. Who keeps the light at Morwen?", "Jon Hale"),
    ("We sail from Talland to Osk, Brae and Kestrel. On which day does the ferry call at Osk?",
     "Friday"),
    ("We sail from Brae to Morwen, Osk and Talland. Which number has the store key of Brae?", "731"),
    ("We sail from Farrow to Kestrel, Morwen and Osk. Who keeps the light at Farrow?", "Tom Birch"),
    ("We sail from Osk to Lund, Talland and Farrow. On which day does the ferry call at Lund?",
     "Wednesday"),
    ("We sail from Morwen to Farrow, Brae and Lund. Which number has the store key of Farrow?",
     "142"),
]
SYSTEM = "Answer the question from the documents, in a few words."


# ---- the server --------------------------------------------------------------------------------

class Server:
    """`holdfast serve` with a tenant for each policy."""

    def __init__(self, args, data):
        command = [args.holdfast, "serve", "--model", args.model, "--data", data, "--port", "0",
                   "--json"]
        for policy in POLICIES:
            command += ["--api-key", "%s=%s" % (policy, policy)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the server did not start")
        self.host = json.loads(line)["listening"].removeprefix("http://")

    def open(self, path, body, policy):
        connection = http.client.HTTPConnection(self.host, timeout=3600)
        connection.request("POST", path, json.dumps(body), {
            "content-type": "application/json", "authorization": "Bearer " + policy})
        response = connection.getresponse()
        if response.status >= 300:
            raise SystemExit("%s: %d %s" % (path, response.status, response.read().decode()))
        return response

    def post(self, path, body, policy):
        return json.load(self.open(path, body, policy))

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()


# ---- documents and what finds them -------------------------------------------------------------

def document(number, count):
    """Text of about DOCUMENT_TOKENS tokens: what is asked about, and a log."""
    name, keeper, day, key = STATIONS[number]
    lines = ["Station %s. The light at %s is kept by %s." % (name, name, keeper),
             "The ferry calls at %s on %s." % (name, day),
             "The store key of %s has number %d." % (name, key)]
    tokens, at = sum(map(count, lines)), 0
    while tokens < DOCUMENT_TOKENS:
        at += 1
        lines.insert(1 if at % 3 else len(lines), "Day %d at %s: %d mm of rain, wind %d knots." %
                     (at, name, (at * 37 + number * 11) % 29, (at * 53 + number * 7) % 41))
        tokens += count(lines[1 if at % 3 else -1])
    return "\n".join(lines) + "\n\n"


def words(text):
    return [w for w in "".join(c if c.isalnum() else " " for c in text).lower().split()]


def find(question, documents):
    """The documents that share the rarest words with the question, in the order in which it names
    them."""
    bags = [set(words(d)) for d in documents]
    asked = words(question)
    rare = {w: 1 / max(1, sum(w in bag for bag in bags)) ** 2 for w in asked}
    score = [sum(rare[w] for w in set(asked) & bag) for bag in bags]
    best = sorted(range(len(bags)), key=lambda d: -score[d])[:FOUND]
    first = lambda d: min((asked.index(w) for w in bags[d] if w in rare and rare[w] == 1), default=99)
    return sorted(best, key=first)


# ---- a question --------------------------------------------------------------------------------

def ask(server, policy, question, segments):
    """One streamed answer: when its first token came, what it says, what was reused."""
    parts = [{"type": "segment", "segment_id": s} for s in segments]
    body = {"messages": [{"role": "system", "content": SYSTEM},
                         {"role": "user", "content": parts + [
                             {"type": "text", "text": "Question: " + question}]}],
            "reuse": policy, "temperature": 0, "max_tokens": MAX_ANSWER, "stream": True,
            "stream_options": {"include_usage": True}, "return_token_ids": True}
    began, first, tokens, text, usage = time.monotonic(), None, [], "", None
    with server.open("/v1/chat/completions", body, policy) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise SystemExit("%s: %s" % (policy, chunk["error"]["message"]))
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices", []):
                if choice.get("token_ids") and first is None:
                    first = time.monotonic() - began
                tokens += choice.get("token_ids") or []
                text += choice["delta"].get("content") or ""
    return {"ttft_ms": round(1000 * first, 1), "answer": " ".join(text.split()), "token_ids": tokens,
            "prompt_tokens": usage["prompt_tokens"], "stitch": usage["stitch"]}


def card_of(args, data, say):
    """The model's card in words, measured where there is none; None where that failed."""
    calibrate = [args.holdfast, "calibrate", "--model", args.model, "--data", data, "--json"]
    shown = subprocess.run(calibrate + ["--show"], capture_output=True, text=True)
    if shown.returncode != 0:
        say("the model has no card: holdfast calibrate --quick, %g minutes at most" % args.minutes)
        shown = subprocess.run(calibrate + ["--quick", "--minutes", str(args.minutes)],
                               stdout=subprocess.PIPE, text=True)
    if shown.returncode != 0:
        say("no card: fast and balanced will do what exact does. holdfast calibrate --model %s "
            "--data DIR makes one, given more time; then use --data DIR here" % args.model)
        return None
    card = json.loads(shown.stdout)
    return "%d contexts of each edit, up to %d tokens" % (card["contexts"], card["max_context"])


def run(args, data, say):
    card = card_of(args, data, say)
    server = Server(args, data)
    try:
        count = lambda text: server.post("/tokenize", {"text": text}, "off")["count"]
        documents = [document(n, count) for n in range(len(STATIONS))]
        ids = {}
        for policy in POLICIES:  # balanced has its chunks computed ahead, each on its own
            ids[policy] = [server.post("/v1/segments", {"text": d, "warm": policy == "balanced"},
                                       policy)["id"] for d in documents]
        rows = []
        for question, fact in QUESTIONS:
            found = find(question, documents)
            row = {"question": question, "fact": fact, "documents": found, "policies": {}}
            for policy in POLICIES:
                answer = ask(server, policy, question, [ids[policy][d] for d in found])
                answer["right"] = fact.lower() in answer["answer"].lower()
                row["policies"][policy] = answer
            rows.append(row)
            say("question %d of %d" % (len(rows), len(QUESTIONS)))
    finally:
        server.stop()
    # The first question finds nothing that an earlier one has left.
    medians = {p: round(statistics.median(r["policies"][p]["ttft_ms"] for r in rows[1:]), 1)
               for p in POLICIES}
    return {"model": args.model, "card": card, "questions": rows, "median_ms": medians}


# ---- what is printed ---------------------------------------------------------------------------

def print_tables(result):
    rows = result["questions"]
    print("%s, prompts of %d tokens, card: %s\n" %
          (result["model"], rows[0]["policies"]["off"]["prompt_tokens"], result["card"] or "none"))
    print("time to first token  documents    " + "".join("%13s" % p for p in POLICIES))
    for n, row in enumerate(rows, 1):
        print("question %d           %-12s " % (n, "-".join(map(str, row["documents"]))) +
              "".join("%10.0f ms" % row["policies"][p]["ttft_ms"] for p in POLICIES))
    print("median from 2 on                  " +
          "".join("%10.0f ms" % result["median_ms"][p] for p in POLICIES))
    print("\ntokens of the prompt  exact  restored  shifted  link  selected  fresh  expected KL")
    for n, row in enumerate(rows, 1):
        for policy in POLICIES[1:]:
            s = row["policies"][policy]["stitch"]
            t = s["tokens"]
            print("question %d  %-9s %5d  %8d  %7d  %4d  %8d  %5d  %11s  %s" % (
                n, policy, t["exact"], t["restored"], t["shifted"], t["link"], t["selected"],
                t["fresh"], "%.4f" % s["expected_kl"] if t["shifted"] else "0",
                s.get("fallback", "")))
    for n, row in enumerate(rows, 1):
        print("\n%d  %s  (%s)" % (n, row["question"], row["fact"]))
        for policy in POLICIES:
            a = row["policies"][policy]
            print("   %-9s %-5s %s" % (policy, "right" if a["right"] else "wrong", a["answer"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--data", help="folder that keeps the card; default: one that goes away")
    parser.add_argument("--minutes", type=float, default=30, help="for measuring a card, at most")
    parser.add_argument("--holdfast", default=str(ROOT / "build" / "holdfast"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    say = lambda text: print(text, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="holdfast-rag-") as folder:
        result = run(args, args.data or folder, say)
    if args.json:
        print(json.dumps(result))
    else:
        print_tables(result)
    # What is exact is the same to the token.
    same = all(r["policies"]["exact"]["token_ids"] == r["policies"]["off"]["token_ids"]
               for r in result["questions"])
    return 0 if same else 1


sys.exit(main())
