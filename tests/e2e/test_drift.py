"""Histories that drift, over HTTP: bodies as agents post them, turn after turn."""
import json
import unittest

from harness import TinyServerTest

CHAT = "/v1/chat/completions"
NO_END = {"0": -100, "2": -100}  # answers end where max_tokens says


def tool(name, **properties):
    return {"type": "function", "function": {
        "name": name, "description": "Does %s." % name,
        "parameters": {"type": "object", "properties": properties, "required": list(properties)}}}


def backwards(value):
    """The same JSON with the keys of every object the other way round."""
    if isinstance(value, dict):
        return {k: backwards(value[k]) for k in reversed(list(value))}
    return [backwards(v) for v in value] if isinstance(value, list) else value


READ = tool("read_file", path={"enum": ["a.c", "b.c"]})
SEARCH = tool("search", text={"type": "string"})


class Drift(TinyServerTest):
    def post(self, body, headers=None):
        status, _, answer = self.server.call("POST", CHAT, {
            "model": "any", "temperature": 0, "max_tokens": 12, "logit_bias": NO_END, **body}, headers)
        self.assertEqual(status, 200, answer)
        return answer

    def assertGoesOn(self, answer, before):
        """All tokens of the turn before stay, on its branch (but for an end token that the template
        does not know)."""
        keeper, usage = answer["keeper"], before["usage"]
        self.assertEqual(keeper["session_id"], before["keeper"]["session_id"])
        self.assertEqual(keeper["branch"], "main")
        self.assertIn(keeper["miss"], (None, {"reason": "absent"}))  # of pages: the new ones
        there = usage["prompt_tokens"] + usage["completion_tokens"]
        self.assertIn(keeper["tokens"]["kept"], (there, there - 1))

    def test_an_agent_of_the_openai_sdk_rebuilds_its_tools_and_arguments(self):
        for session in ({"session_id": "sdk"}, {}):
            body = {"tools": [READ, SEARCH], "max_tokens": 64, "tool_choice": {
                        "type": "function", "function": {"name": "read_file"}},
                    "messages": [{"role": "system", "content": "You are an agent."},
                                 {"role": "user", "content": "Read a.c"}], **session}
            first = self.post({**body, "logit_bias": {}})
            call = first["choices"][0]["message"]["tool_calls"][0]
            arguments = json.loads(call["function"]["arguments"])
            call["function"]["arguments"] = json.dumps(arguments, indent=1)
            body["messages"] += [
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": call["id"],
                 "content": [{"type": "text", "text": "int main;"}]}]
            second = self.post({**body, "tools": backwards([READ, SEARCH])[::-1],
                                "tool_choice": "none"})
            self.assertGoesOn(second, first)
            body["messages"][-1]["content"] = "int main;"
            body["messages"] += [{"role": "assistant", "content": [
                {"type": "text", "text": second["choices"][0]["message"]["content"]}]},
                {"role": "user", "content": "Thanks"}]
            third = self.post({**body, "tool_choice": "none", "tools": [SEARCH, READ]})
            self.assertGoesOn(third, second)
            changed = self.post({**body, "tool_choice": "none", "tools": [READ]})
            if not session:  # other tools: another conversation
                self.assertTrue(changed["keeper"]["new_session"])
                continue
            miss = changed["keeper"]["miss"]
            self.assertEqual(
                (miss["reason"], miss["field"], miss["name"], miss["change"]),
                ("tools_changed", "tools", "search", "removed"))

    def test_a_bridge_gives_calls_ids_of_its_own(self):
        def renamed(call, name):
            arguments = json.dumps(json.loads(call["function"]["arguments"]), indent=1)
            return {**call, "id": name, "function": {**call["function"], "arguments": arguments}}

        for session in ({"session_id": "bridge"}, {}):
            body = {"tools": [READ], "max_tokens": 64, "tool_choice": "none", **session}
            asked = [{"role": "system", "content": "You are an agent."},
                     {"role": "user", "content": "Read a.c and %s" % sorted(session)}]
            first = self.post({**body, "messages": asked, "logit_bias": {}, "tool_choice": {
                "type": "function", "function": {"name": "read_file"}}})
            call = first["choices"][0]["message"]["tool_calls"][0]

            def history(name):
                return asked + [
                    {"role": "assistant", "content": None, "tool_calls": [renamed(call, name)]},
                    {"role": "tool", "tool_call_id": name, "content": "int main;"}]

            second = self.post({**body, "messages": history("D681PevKs")})
            self.assertGoesOn(second, first)
            said = {"role": "assistant", "content": second["choices"][0]["message"]["content"]}
            question = {"role": "user", "content": "Thanks"}
            third = self.post({**body, "messages": history("9Ca1bXyZ0") + [said, question]})
            self.assertGoesOn(third, second)

    def test_messages_that_are_reminders_alone_come_and_go(self):
        def user(content):
            return {"role": "user", "content": content}

        memory = user("<system-reminder>\nBe brief.\n</system-reminder>")
        first = self.post({"session_id": "memory", "messages": [memory, user("hey")]})
        said = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
        second = self.post({"session_id": "memory",
                            "messages": [user("hey"), said, user("list files"), memory]})
        self.assertGoesOn(second, first)
        again = {"role": "assistant", "content": second["choices"][0]["message"]["content"]}
        third = self.post({"session_id": "memory", "messages": [
            memory, user("hey"), memory, said, user("list files"), again, user("bye")]})
        self.assertGoesOn(third, second)

    def test_claude_code_changes_its_header_and_moves_its_reminders(self):
        headers = {"X-Claude-Code-Session-Id": "2f0c1d1e"}
        reminder = {"type": "text", "text":
                    "<system-reminder>\nThe todo list is empty.\n</system-reminder>\n"}

        def system(cch):
            return {"role": "system", "content": [
                {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.37.0d9; "
                                         "cc_entrypoint=cli; cch=%s;" % cch},
                {"type": "text", "text": "You are Claude Code.",
                 "cache_control": {"type": "ephemeral"}}]}

        def text(content):
            return {"type": "text", "text": content}

        def said(answer):
            return {"role": "assistant", "content": answer["choices"][0]["message"]["content"]}

        first = self.post({"messages": [
            system("fa690"), {"role": "user", "content": [reminder, text("hey")]}]}, headers)
        title = self.post({"messages": [
            {"role": "system", "content": "Write a title."},
            {"role": "user", "content": "hey"}]}, headers)
        self.assertEqual(title["keeper"]["session_id"], first["keeper"]["session_id"])
        self.assertNotEqual(title["keeper"]["branch"], "main")
        second = self.post({"messages": [
            system("36ee5"), {"role": "user", "content": "hey"}, said(first),
            {"role": "user", "content": [text("list files"), reminder]}]}, headers)
        self.assertGoesOn(second, first)
        history = [system("0aaa9"), {"role": "user", "content": [text("hey")]}, said(first),
                   {"role": "user", "content": "list files"}, said(second)]
        third = self.post({"messages": history + [{"role": "user", "content": "bye"}]}, headers)
        self.assertGoesOn(third, second)
        as_sent = self.post({"messages": history + [{"role": "user", "content": "bye"}],
                             "history": "as_sent"}, headers)
        self.assertLess(as_sent["usage"]["prompt_tokens"], third["usage"]["prompt_tokens"])
        self.assertEqual(as_sent["keeper"]["miss"]["reason"], "history_as_sent")
        history[3]["content"] = "list fish"
        edited = self.post({"messages": history + [{"role": "user", "content": "bye"}]}, headers)
        miss = edited["keeper"]["miss"]
        self.assertEqual((miss["reason"], miss["message"], miss["field"], miss["at_char"]),
                         ("message_changed", 3, "content", len("list fi")))

    def test_reasoning_that_comes_back_or_does_not(self):
        think = "<think>\nhm\n</think>\n\n"
        body = {"session_id": "qwen", "messages": [{"role": "user", "content": "2+2?"}]}
        first = self.post({**body, "max_tokens": 1})
        answer = first["choices"][0]["message"]["content"]
        for back, question in (({"content": think + answer}, "and 3+3?"),
                               ({"content": answer, "reasoning_content": "hm"}, "and 4+4?")):
            history = body["messages"] + [{"role": "assistant", **back},
                                          {"role": "user", "content": question}]
            second = self.post({**body, "messages": history})
            self.assertEqual(second["keeper"]["tokens"]["kept"],
                             first["usage"]["prompt_tokens"] + first["usage"]["completion_tokens"])


if __name__ == "__main__":
    unittest.main()
