#!/usr/bin/env python3
"""An agent whose server is killed in the middle of an answer, and goes on as if nothing had happened.

The agent is plain `openai` code with three tools over this source tree. Each question is one call that
must use a tool and one that answers from its result. During one answer the server gets SIGKILL and is
started again; the agent sends the same request once more. Then the whole conversation is run again on
a fresh server that nobody kills, and the token ids of both runs are compared; and the last request is
sent to a third, empty server, to see what the first token costs when nothing is remembered.

  examples/resume_after_kill.py [--model NAME] [--holdfast build/holdfast] [--json]
"""
import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from openai import OpenAI

ROOT = pathlib.Path(__file__).resolve().parent.parent
KILL_AT_TURN = 6      # counted from 1; an answer, so that there are words to be cut off
KILL_AFTER_CHUNKS = 8
MAX_TOOL_BYTES = 1500
SESSION = "resume-after-kill"

QUESTIONS = [
    "Which folders does this project have?",
    "What does the file stitcher/plan.h define?",
    "Where is the word 'kPageTokens' used?",
    "What does the README of the engine/kv folder say?",
]

TOOLS = [
    {"type": "function", "function": {
        "name": "list_dir", "description": "List the entries of a folder of the source tree.",
        "parameters": {"type": "object", "properties": {
            "path": {"type": "string", "description": "Folder, '.' for the top"}},
            "required": ["path"], "additionalProperties": False}}},
    {"type": "function", "function": {
        "name": "read_file", "description": "Read the beginning of a text file.",
        "parameters": {"type": "object", "properties": {
            "path": {"type": "string", "description": "File, from the top of the tree"}},
            "required": ["path"], "additionalProperties": False}}},
    {"type": "function", "function": {
        "name": "search", "description": "Find lines that contain a text.",
        "parameters": {"type": "object", "properties": {
            "text": {"type": "string", "description": "What to look for"}},
            "required": ["text"], "additionalProperties": False}}},
]

SYSTEM = ("You are a careful assistant that answers questions about a C++ source tree. "
          "Use the tools to look things up. Answer in two or three sentences.")


# ---- the tools -------------------------------------------------------------------------------------

def inside(path):
    full = (ROOT / path.lstrip("/")).resolve()
    if full != ROOT and ROOT not in full.parents:
        raise ValueError("outside of the tree")
    return full


def list_dir(path):
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in inside(path).iterdir()
                   if not p.name.startswith(".") and p.name not in ("build", "models"))
    return "\n".join(names)


def read_file(path):
    return inside(path).read_text(errors="replace")


def search(text):
    found = []
    for folder in ("engine", "stitcher", "sessions", "api"):
        for file in sorted((ROOT / folder).rglob("*.h")):
            for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
                if text and text in line:
                    found.append("%s:%d: %s" % (file.relative_to(ROOT), number, line.strip()))
    return "\n".join(found) or "no line contains it"


def run_tool(name, arguments):
    try:
        result = {"list_dir": list_dir, "read_file": read_file, "search": search}[name](**arguments)
    except (OSError, ValueError, TypeError, KeyError) as error:
        result = "error: %s" % error
    return result[:MAX_TOOL_BYTES]


# ---- the server ------------------------------------------------------------------------------------

class Server:
    """`holdfast serve` on a free port, with a data folder that outlives it."""

    def __init__(self, args, data):
        self.command = [args.holdfast, "serve", "--model", args.model, "--data", data, "--port", "0",
                        "--json"]
        self.start()

    def start(self):
        began = time.monotonic()
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the server did not start: " + " ".join(self.command))
        self.hello = json.loads(line)
        self.start_s = time.monotonic() - began
        self.client = OpenAI(base_url=self.hello["listening"] + "/v1", api_key="none", max_retries=0)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.terminate()
        self.process.wait()


# ---- the agent -------------------------------------------------------------------------------------

class Turn:
    """What one call brought."""

    def __init__(self, kind):
        self.kind, self.ttft_s, self.tokens, self.keeper = kind, None, [], None
        self.text, self.calls = "", {}


class Killed(Exception):
    pass


def call_model(client, messages, must_call, kill=None):
    """One streamed call. `kill()` is called after some chunks, where given."""
    turn = Turn("tool call" if must_call else "answer")
    began = time.monotonic()
    stream = client.chat.completions.create(
        model="any", messages=messages, tools=TOOLS, temperature=0, max_tokens=96,
        tool_choice="required" if must_call else "none", parallel_tool_calls=False, stream=True,
        extra_body={"session_id": SESSION, "return_token_ids": True})
    chunks = 0
    try:
        for chunk in stream:
            if not chunk.choices:
                continue
            choice = chunk.choices[0]
            ids = getattr(choice, "token_ids", None) or []
            if ids and turn.ttft_s is None:
                turn.ttft_s = time.monotonic() - began
            turn.tokens += ids
            turn.text += choice.delta.content or ""
            for piece in choice.delta.tool_calls or []:
                call = turn.calls.setdefault(piece.index, {"id": "", "name": "", "arguments": ""})
                call["id"] += piece.id or ""
                call["name"] += (piece.function.name or "") if piece.function else ""
                call["arguments"] += (piece.function.arguments or "") if piece.function else ""
            turn.keeper = getattr(chunk, "keeper", None) or turn.keeper
            chunks += bool(ids)
            if kill and chunks == KILL_AFTER_CHUNKS:
                kill()
                kill = None
    except Exception as error:  # the connection broke: the server is gone
        raise Killed(str(error)) from error
    if turn.keeper is None:
        raise Killed("the stream ended early")
    return turn


def assistant_message(turn):
    if not turn.calls:
        return {"role": "assistant", "content": turn.text}
    return {"role": "assistant", "content": None, "tool_calls": [
        {"id": c["id"], "type": "function",
         "function": {"name": c["name"], "arguments": c["arguments"]}}
        for _, c in sorted(turn.calls.items())]}


def run_agent(server, kill_at=0, say=lambda *a: None):
    """The whole conversation; returns its turns and the messages before the turn that was killed."""
    messages, turns = [{"role": "system", "content": SYSTEM}], []
    resumed = None

    def one_turn(must_call):
        nonlocal resumed
        number = len(turns) + 1
        kill = server.kill if number == kill_at else None
        try:
            turn = call_model(server.client, messages, must_call, kill)
        except Killed:
            if number != kill_at:
                raise
            say("turn %d: the server is killed in the middle of its answer; starting it again" % number)
            server.start()
            turn = call_model(server.client, messages, must_call)
            resumed = (turn, list(messages), must_call)
        turns.append(turn)
        messages.append(assistant_message(turn))
        say("turn %d: %s, %d tokens" % (number, turn.kind, len(turn.tokens)))
        return turn

    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        for _, call in sorted(one_turn(must_call=True).calls.items()):
            try:
                arguments = json.loads(call["arguments"])
            except json.JSONDecodeError:  # cut by max_tokens
                arguments = {}
            messages.append({"role": "tool", "tool_call_id": call["id"],
                             "content": run_tool(call["name"], arguments)})
        one_turn(must_call=False)
    return turns, resumed


def rows_of(turns, fresh):
    rows = []
    for number, (turn, other) in enumerate(zip(turns, fresh), 1):
        kept = turn.keeper["tokens"]
        rows.append({"turn": number, "kind": turn.kind, "reused": kept["warm"] + kept["pool"],
                     "restored": kept["disk"], "computed": kept["computed"],
                     "generated": len(turn.tokens), "ttft_ms": round(1000 * turn.ttft_s, 1),
                     "identical": turn.tokens == other.tokens, "killed": number == KILL_AT_TURN})
    return rows


def print_table(rows, resumed_ms, cold_ms, start_s):
    print("\n%4s  %-9s %7s %9s %9s %10s %10s  %s" %
          ("turn", "kind", "reused", "restored", "computed", "generated", "TTFT", "identical"))
    for r in rows:
        print("%4d  %-9s %7d %9d %9d %10d %7.0f ms  %s%s" %
              (r["turn"], r["kind"], r["reused"], r["restored"], r["computed"], r["generated"],
               r["ttft_ms"], "yes" if r["identical"] else "NO",
               "   <- killed with SIGKILL, sent again" if r["killed"] else ""))
    print("\nfirst token after the restart: %.0f ms; with nothing remembered: %.0f ms (%.0f x)" %
          (resumed_ms, cold_ms, cold_ms / resumed_ms))
    print("the server was ready again %.1f s after it was started" % start_s)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--holdfast", default=str(ROOT / "build" / "holdfast"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    say = lambda text: print(text, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="holdfast-demo-") as data:
        server = Server(args, os.path.join(data, "killed"))
        try:
            turns, resumed = run_agent(server, KILL_AT_TURN, say)
            start_s = server.start_s
        finally:
            server.kill()
        say("the same conversation on a fresh server that nobody kills")
        server = Server(args, os.path.join(data, "fresh"))
        try:
            fresh, _ = run_agent(server)
        finally:
            server.stop()
        say("the resumed request on a server that remembers nothing")
        server = Server(args, os.path.join(data, "cold"))
        try:
            turn, messages, must_call = resumed
            cold = call_model(server.client, messages, must_call)
        finally:
            server.stop()

    rows = rows_of(turns, fresh)
    identical = len(turns) == len(fresh) and all(r["identical"] for r in rows) and \
        cold.tokens == turn.tokens
    if args.json:
        print(json.dumps({"turns": rows, "identical": identical,
                          "ttft_resumed_ms": round(1000 * turn.ttft_s, 1),
                          "ttft_cold_ms": round(1000 * cold.ttft_s, 1)}))
    else:
        print_table(rows, 1000 * turn.ttft_s, 1000 * cold.ttft_s, start_s)
        print("all token ids identical to an uninterrupted run: %s" % ("yes" if identical else "NO"))
    return 0 if identical else 1


sys.exit(main())
