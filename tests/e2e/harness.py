"""What the end-to-end tests share: a server on a free port, a tiny model, plain HTTP.

CTest sets HOLDFAST (the binary), HOLDFAST_TINY (make_tiny_model), HOLDFAST_MODELS (pulled models).
A model or a program that is missing is a failure, never a skip.
"""
import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import unittest

HOLDFAST = os.environ["HOLDFAST"]
MODELS = os.environ["HOLDFAST_MODELS"]
CODER = "qwen2.5-coder-0.5b-instruct"
SMOL = "smollm2-135m-instruct"


def run(*args, **env):
    """A command of the binary: (exit status, standard output, standard error)."""
    done = subprocess.run([HOLDFAST, *args], capture_output=True, text=True, timeout=600,
                          env={**os.environ, **env})
    return done.returncode, done.stdout, done.stderr


def tiny_model(folder, *options):
    path = os.path.join(folder, "tiny.gguf")
    subprocess.run([os.environ["HOLDFAST_TINY"], "--out", path, "--ctx", "2048", "--vocab", "512",
                    *options], check=True)
    return path


class Server:
    """`holdfast serve`; killed at the end whatever happens."""

    def __init__(self, model, data, *flags, **env):
        self.command = [HOLDFAST, "serve", "--model", model, "--data", data, "--port", "0", "--json",
                        "--kv-memory", "256MiB", *flags]
        self.env = {**os.environ, **env}
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True,
                                        env=self.env)
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError("the server did not start, exit %s" % self.process.wait())
        self.hello = json.loads(line)
        self.url = self.hello["listening"]
        self.host, port = self.url.removeprefix("http://").rsplit(":", 1)
        self.port = int(port)

    def kill(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def stop(self):
        self.process.terminate()
        status = self.process.wait(timeout=60)
        self.process.stdout.close()
        return status

    def restart(self):
        self.kill()
        self.start()

    def call(self, method, path, body=None, headers=None, timeout=120):
        """(status, headers, JSON or text)."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            data = body if isinstance(body, (bytes, str, type(None))) else json.dumps(body)
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            text = response.read()
            kind = response.getheader("content-type", "")
            return response.status, response.headers, \
                json.loads(text) if kind.startswith("application/json") else text.decode()
        finally:
            connection.close()

    def chat(self, messages, headers=None, **fields):
        """A chat call that must succeed."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        body = {"model": "any", "messages": messages, "temperature": 0, "max_tokens": 12,
                "return_token_ids": True, **fields}
        status, _, answer = self.call("POST", "/v1/chat/completions", body, headers)
        assert status == 200, (status, answer)
        return answer

    def metric(self, name):
        for line in self.call("GET", "/metrics")[2].splitlines():
            if line.startswith("holdfast_" + name + "{"):
                return float(line.split()[-1])
        raise AssertionError("no metric " + name)

    def raw(self, data, timeout=30):
        """Bytes in, bytes out until the server closes."""
        with socket.create_connection((self.host, self.port), timeout=timeout) as s:
            out = b""
            try:
                s.sendall(data)
                while chunk := s.recv(65536):
                    out += chunk
            except (ConnectionError, TimeoutError):
                pass
            return out


def write_card(server, data, **limits):
    """A card that allows everything, of the server's model, into its data folder: a server that is
    started over that has it."""
    model = server.call("GET", "/v1/models")[2]["data"][0]["fingerprint"]
    kl = {"mean": 0.01, "mean_upper": 0.015, "median": 0.01, "bound": 0.02, "top1": 1,
          "recomputed": 0, "rows": 0, "contexts": 8}
    card = {"version": 1, "model": model, "name": "any", "kv_type": "f16", "seed": 0, "contexts": 8,
            "noise": 0, "max_context": 100000, "min_tokens": 1, "max_runs": 100, "max_generation": 1,
            "cells": [{"kind": kind, "tokens": 0, "runs": 3, "shift": 0, "kl": kl,
                       "setting": {"link": link, "windows": windows}}
                      for kind in ("in_context", "isolated")
                      for link, windows in ((32, 0), (128, 0), (32, 20), (128, 20), (128, 40))]}
    os.makedirs(os.path.join(data, "cards"), exist_ok=True)
    with open(os.path.join(data, "cards", model + ".json"), "w") as f:
        json.dump({**card, **limits}, f)


class EventStream:
    """Server-sent events of one path, as dictionaries of their fields; None at the end."""

    def __init__(self, server, path, headers=None, timeout=30):
        self.connection = http.client.HTTPConnection(server.host, server.port, timeout=timeout)
        self.connection.request("GET", path, headers=headers or {})
        self.response = self.connection.getresponse()
        self.comments = []

    def next(self):
        event = {}
        while line := self.response.readline():
            name, colon, value = line.decode().rstrip("\n").partition(": ")
            if colon and name:
                event[name] = value
            elif colon:
                self.comments.append(value)
            elif event:
                return event
        return None

    def take(self, count):
        return [self.next() for _ in range(count)]

    def close(self):
        self.connection.close()


class TinyServerTest(unittest.TestCase):
    """One server with a tiny model for all tests of a class."""
    flags, env, model_options = (), {}, ()

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="holdfast-e2e-")
        cls.model = tiny_model(cls.folder.name, *cls.model_options)
        cls.server = Server(cls.model, os.path.join(cls.folder.name, "data"), *cls.flags, **cls.env)

    @classmethod
    def tearDownClass(cls):
        cls.server.kill()
        cls.folder.cleanup()

    def assertRefused(self, answer, status, param=None, code=None):
        got, headers, body = answer
        self.assertEqual(got, status, body)
        self.assertEqual(set(body), {"error"})
        self.assertEqual(set(body["error"]), {"message", "type", "param", "code"})
        self.assertTrue(body["error"]["message"])
        if param is not None:
            self.assertEqual(body["error"]["param"], param)
        if code is not None:
            self.assertEqual(body["error"]["code"], code)
        return headers, body["error"]
