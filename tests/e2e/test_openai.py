"""The `openai` package for Python, unmodified, against a real model."""
import json
import os
import tempfile
import time
import unittest

import openai

from harness import CODER, Server

WEATHER = [{"type": "function", "function": {
    "name": "get_weather", "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}},
                   "required": ["city"], "additionalProperties": False}}}]


class OpenAi(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="holdfast-e2e-")
        cls.server = Server(CODER, os.path.join(cls.folder.name, "data"))
        cls.client = openai.OpenAI(base_url=cls.server.url + "/v1", api_key="none", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.server.kill()
        cls.folder.cleanup()

    def ask(self, text, **fields):
        return self.client.chat.completions.create(
            model=CODER, messages=[{"role": "user", "content": text}], temperature=0,
            max_tokens=fields.pop("max_tokens", 24), **fields)

    def test_chat(self):
        answer = self.ask("What is the capital of France? One word.")
        self.assertIn("Paris", answer.choices[0].message.content)
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual(answer.usage.total_tokens,
                         answer.usage.prompt_tokens + answer.usage.completion_tokens)

    def test_streaming_gives_the_same_text(self):
        whole = self.ask("Count from one to five in words.").choices[0].message.content
        parts = [c.choices[0].delta.content or "" for c in
                 self.ask("Count from one to five in words.", stream=True) if c.choices]
        self.assertGreater(len(parts), 3)
        self.assertEqual("".join(parts), whole)

    def test_a_tool_round_trip(self):
        question = {"role": "user", "content": "What is the weather in Paris? Use the tool."}
        first = self.client.chat.completions.create(
            model=CODER, messages=[question], tools=WEATHER, temperature=0, max_tokens=64)
        # The model writes its call in a shape of its own; it comes back as a tool call all the same.
        self.assertEqual(first.choices[0].finish_reason, "tool_calls")
        call = first.choices[0].message.tool_calls[0]
        self.assertEqual(call.function.name, "get_weather")
        self.assertIn("Paris", json.loads(call.function.arguments)["city"])
        second = self.client.chat.completions.create(
            model=CODER, temperature=0, max_tokens=48, tools=WEATHER, tool_choice="none", messages=[
                question, first.choices[0].message.model_dump(exclude_none=True),
                {"role": "tool", "tool_call_id": call.id, "content": "17 degrees and rain"},
                {"role": "user", "content": "So how many degrees is it? Answer in words."}])
        self.assertIn("17", second.choices[0].message.content)
        self.assertGreater(second.usage.prompt_tokens_details.cached_tokens, 0)

    def test_a_named_tool_is_called_streaming_too(self):
        stream = self.client.chat.completions.create(
            model=CODER, messages=[{"role": "user", "content": "Hello!"}], tools=WEATHER,
            tool_choice={"type": "function", "function": {"name": "get_weather"}}, temperature=0,
            max_tokens=64, stream=True)
        name, arguments, finish = "", "", None
        for chunk in stream:
            for piece in chunk.choices[0].delta.tool_calls or []:
                self.assertEqual(piece.index, 0)
                name += piece.function.name or ""
                arguments += piece.function.arguments or ""
            finish = chunk.choices[0].finish_reason or finish
        self.assertEqual((name, finish), ("get_weather", "tool_calls"))
        self.assertIn("city", json.loads(arguments))

    def test_response_format_with_a_schema(self):
        schema = {"type": "object", "properties": {
            "name": {"type": "string"}, "age": {"type": "integer"}},
            "required": ["name", "age"], "additionalProperties": False}
        answer = self.ask("Anna is 31 years old. Give name and age as JSON.", response_format={
            "type": "json_schema", "json_schema": {"name": "p", "strict": True, "schema": schema}})
        self.assertEqual(json.loads(answer.choices[0].message.content), {"name": "Anna", "age": 31})

    def test_errors_have_their_classes(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.ask("x", extra_body={"temperature": 9})
        self.assertEqual(caught.exception.param, "temperature")
        with self.assertRaises(openai.NotFoundError):
            self.ask("x", extra_body={"session_id": "sess_missing"})
        with self.assertRaises(openai.BadRequestError) as caught:
            self.ask("word " * 40000)
        self.assertEqual(caught.exception.code, "context_length_exceeded")

    def test_cancellation(self):
        stream = self.ask("Write a very long story.", max_tokens=2000, stream=True)
        for count, _ in enumerate(stream):
            if count == 5:
                stream.close()
                break
        deadline = time.monotonic() + 20
        while self.server.metric("running_turns") > 0:
            self.assertLess(time.monotonic(), deadline)

    def test_models(self):
        self.assertEqual([m.id for m in self.client.models.list()], [CODER])


if __name__ == "__main__":
    unittest.main()
