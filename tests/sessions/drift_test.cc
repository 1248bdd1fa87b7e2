// Histories that drift: what real clients change of a conversation when they send it again, in the
// bodies that they post.

#include <doctest/doctest.h>

#include <algorithm>
#include <string>

#include "api/openai_chat.h"
#include "tests/fixtures/tiny_model.h"
#include "tests/sessions/bench.h"

namespace holdfast {
namespace {

// A client that posts chat bodies, and a model that says what a test tells it to.
struct Client {
  explicit Client(SessionBenchOptions options = {}) : bench(std::move(options)) {}

  struct Sent {
    TurnStart start;
    std::string prompt;
    int64_t there = 0;  // tokens of the branch "main" before the turn
  };
  // `said` is sampled byte by byte, as no tokenizer would write it; `calls` are what the API reads
  // out of it.
  Sent Post(const Json& body, const std::string& said, std::vector<ToolCall> calls = {}) {
    ChatCall call;
    const auto error = ReadChatCall(DumpJson(body), {}, &call);
    REQUIRE_MESSAGE(!error, (error ? error->message : ""));
    TurnRequest r = Ask(call.request.session.id, call.request.messages);
    r.tools_json = call.request.tools_json;
    r.template_kwargs_json = call.request.template_kwargs_json;
    r.history = call.request.history;
    Sent out;
    if (!r.session.id.empty()) {
      if (const auto main = bench.keeper().Tokens("ann", r.session.id, "main"); main.ok()) {
        out.there = static_cast<int64_t>(main->size());
      }
    }
    auto turn = bench.Begin(r);
    out.start = turn->start();
    out.prompt = bench.Decode(turn->prompt());
    TurnOutcome o;
    o.message = Assistant(said.substr(0, said.find("<tool_call>")), std::move(calls));
    o.finish = "stop";
    for (const char c : said) o.generated.push_back({TinyByteToken(c), 1, false});
    o.generated.push_back({kTinyTurnEnd, 1, false});
    REQUIRE(bench.keeper().Commit(std::move(turn), std::move(o)).durable);
    return out;
  }
  // A turn that goes on at the head of "main" as it is.
  Sent GoesOn(const Json& body, const std::string& said, std::vector<ToolCall> calls = {}) {
    const Sent sent = Post(body, said, std::move(calls));
    CAPTURE(sent.prompt);
    CHECK(sent.start.branch == "main");
    CHECK_MESSAGE(!sent.start.miss, sent.start.miss->reason << " " << sent.start.miss->message
                                                            << " " << sent.start.miss->field);
    CHECK(sent.start.kept_tokens == sent.there);
    return sent;
  }

  // Whether a branch holds what was said in the tokens that it was sampled in.
  bool HasSampled(const std::string& session, const std::string& branch, const std::string& said) {
    const auto tokens = bench.keeper().Tokens("ann", session, branch);
    REQUIRE(tokens.ok());
    std::vector<TokenId> own;
    for (const char c : said) own.push_back(TinyByteToken(c));
    return std::search(tokens->begin(), tokens->end(), own.begin(), own.end()) != tokens->end();
  }

  SessionBench bench;
};

Json Body(const std::string& text) {
  auto json = ParseJson(text);
  REQUIRE_MESSAGE(json.ok(), json.status().ToString());
  return std::move(json).value();
}

Json Message(const std::string& role, const Json& content) {
  return {{"role", role}, {"content", content}};
}

bool Has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// --- tools ---------------------------------------------------------------------------------------

constexpr char kWeather[] = R"({"type": "function", "function": {"name": "get_weather",
  "description": "Weather of a city.", "parameters": {"type": "object",
  "properties": {"city": {"type": "string"}, "unit": {"enum": ["c", "f"]}}, "required": ["city"]},
  "strict": true}})";
// The same tool from a registry that sorts its keys.
constexpr char kWeatherAgain[] = R"({"function": {"description": "Weather of a city.",
  "name": "get_weather", "parameters": {"properties": {"unit": {"enum": ["c", "f"]},
  "city": {"type": "string"}}, "required": ["city"], "type": "object"}, "strict": true},
  "type": "function", "cache_control": {"type": "ephemeral"}})";
constexpr char kTime[] = R"({"type": "function", "function": {"name": "get_time",
  "description": "Time of a city.", "parameters": {"type": "object",
  "properties": {"city": {"type": "string"}}, "required": ["city"]}, "strict": true}})";
constexpr char kTimeChanged[] = R"({"type": "function", "function": {"name": "get_time",
  "description": "Time of a town.", "parameters": {"type": "object",
  "properties": {"city": {"type": "string"}}, "required": ["city"]}, "strict": true}})";
constexpr char kAlarm[] = R"({"type": "function", "function": {"name": "set_alarm",
  "parameters": {"type": "object", "properties": {}}}})";

Json Tools(std::initializer_list<const char*> tools) {
  Json list = Json::array();
  for (const char* tool : tools) list.push_back(Body(tool));
  return list;
}

TEST_CASE("the same tools in another order and written otherwise are the same tools") {
  Client client;
  Json body = Body(R"({"model": "m", "session_id": "agent", "messages": [
      {"role": "system", "content": "You are a helpful assistant."},
      {"role": "user", "content": "Weather in Oslo?"}]})");
  SUBCASE("in a session that the client names") {}
  SUBCASE("in one that is found by its history") { body.erase("session_id"); }
  body["tools"] = Tools({kWeather, kTime});
  const auto first = client.Post(body, "it rains");
  const std::string tools = first.prompt.substr(0, first.prompt.find("<|im_end|>"));
  body["messages"].push_back(Message("assistant", "it rains"));
  body["messages"].push_back(Message("user", "And the time?"));
  body["tools"] = Tools({kTime, kWeatherAgain});
  const auto second = client.Post(body, "noon");
  CHECK(second.start.session_id == first.start.session_id);
  CHECK(second.start.branch == "main");
  CHECK_FALSE(second.start.miss);
  CHECK(second.start.kept_tokens == first.start.prompt_tokens + 9);
  CHECK(second.prompt.starts_with(tools));
  body["messages"].push_back(Message("assistant", "noon"));
  body["messages"].push_back(Message("user", "Thanks."));
  const auto third = client.Post(body, "bye");
  CHECK(third.start.branch == "main");
  CHECK_FALSE(third.start.miss);
  CHECK(third.start.kept_tokens == second.start.prompt_tokens + 5);
  // What the log says was rendered is what was rendered.
  const auto recording = client.bench.keeper().Recorded("ann", third.start.session_id, "");
  REQUIRE(recording.ok());
  REQUIRE(recording->turns.size() == 3);
  for (const RecordedTurn& turn : recording->turns) {
    CHECK(turn.tools == DumpJson(Tools({kWeather, kTime})));
  }
  SUBCASE("but not when they are to be as sent") {
    body["messages"].push_back(Message("assistant", "bye"));
    body["messages"].push_back(Message("user", "Really?"));
    body["history"] = "as_sent";
    const auto as_sent = client.Post(body, "yes");
    CHECK_FALSE(as_sent.prompt.starts_with(tools));
    CHECK(as_sent.start.miss->reason == "tools_changed");
  }
}

TEST_CASE("the tool that was added, removed or changed is named") {
  struct Case {
    Json tools;
    const char *name, *change;
  };
  for (const Case& c : {Case{Tools({kWeather, kTime, kAlarm}), "set_alarm", "added"},
                        Case{Tools({kAlarm, kWeather, kTime}), "set_alarm", "added"},
                        Case{Tools({kTime}), "get_weather", "removed"},
                        Case{Tools({kWeather}), "get_time", "removed"},
                        Case{Tools({kTimeChanged, kWeather}), "get_time", "changed"},
                        Case{Json::array(), "get_time", "removed"}}) {
    CAPTURE(c.name);
    Client client;
    Json body = Body(R"({"session_id": "agent", "messages": [{"role": "user", "content": "hi"}]})");
    body["tools"] = Tools({kWeather, kTime});
    client.Post(body, "hello");
    body["messages"].push_back(Message("assistant", "hello"));
    body["messages"].push_back(Message("user", "more"));
    body["tools"] = c.tools;
    const TurnStart start = client.Post(body, "yes").start;
    CHECK(start.branch != "main");
    REQUIRE(start.miss);
    CHECK(start.miss->reason == "tools_changed");
    CHECK(start.miss->field == "tools");
    CHECK(start.miss->name == c.name);
    CHECK(start.miss->change == c.change);
  }
}

TEST_CASE("other template arguments are not taken for other tools") {
  Client client;
  Json body = Body(R"({"session_id": "agent", "messages": [{"role": "user", "content": "hi"}]})");
  body["tools"] = Tools({kWeather});
  client.Post(body, "hello");
  body["messages"].push_back(Message("assistant", "hello"));
  body["messages"].push_back(Message("user", "more"));
  body["chat_template_kwargs"] = {{"enable_thinking", false}};
  const TurnStart start = client.Post(body, "yes").start;
  REQUIRE(start.miss);
  CHECK(start.miss->field == "chat_template_kwargs");
}

// --- Claude Code, through a gateway that turns its requests into chat completions ----------------

// Its system blocks; the checksum is another one in each request.
Json ClaudeSystem(const std::string& cch) {
  Json blocks = Body(R"([{"type": "text", "text": ""},
      {"type": "text", "text": "You are Claude Code, Anthropic's official CLI for Claude.",
       "cache_control": {"type": "ephemeral"}},
      {"type": "text", "text": "\nYou help with software.", "cache_control": {"type": "ephemeral"}}
      ])");
  blocks[0]["text"] =
      "x-anthropic-billing-header: cc_version=2.1.37.0d9; cc_entrypoint=cli; cch=" + cch + ";";
  return Message("system", blocks);
}

const char kTodoReminder[] =
    "<system-reminder>\nThe todo list is empty. Do not mention this.\n</system-reminder>";
const char kSkillsReminder[] =
    "<system-reminder>\nThe following skills are available: none.\n</system-reminder>\n";

Json Parts(std::initializer_list<std::string> texts) {
  Json parts = Json::array();
  for (const std::string& text : texts) parts.push_back({{"type", "text"}, {"text", text}});
  return parts;
}

TEST_CASE("a billing header that changes with each request changes nothing") {
  Client client;
  Json body = {{"session_id", "cc"},
               {"messages", {ClaudeSystem("fa690"), Message("user", "hey")}}};
  const auto first = client.Post(body, "hi");
  CHECK(Has(first.prompt, "cch=fa690;You are"));
  body["messages"][0] = ClaudeSystem("36ee5");
  body["messages"].push_back(Message("assistant", "hi"));
  body["messages"].push_back(Message("user", "list the files"));
  CHECK(Has(client.GoesOn(body, "a b").prompt, "cch=fa690;"));
  body["messages"][0] = ClaudeSystem("0aaa9");
  body["messages"].push_back(Message("assistant", "a b"));
  body["messages"].push_back(Message("user", "thanks"));
  CHECK(Has(client.GoesOn(body, "ok").prompt, "cch=fa690;"));

  SUBCASE("also where the first turn is asked for again") {
    Json again = {{"session_id", "cc"},
                  {"messages", {ClaudeSystem("11111"), Message("user", "hey")}}};
    const auto sent = client.Post(again, "hello");
    CHECK(sent.start.miss->reason == "history_shorter");
    CHECK(Has(sent.prompt, "cch=fa690;"));
    CHECK(sent.start.kept_tokens ==
          first.start.prompt_tokens -
              static_cast<int64_t>(client.bench.Encode("<|im_start|>assistant\n").size()));
  }
  SUBCASE("but for one who wants it as sent") {
    body["messages"][0] = ClaudeSystem("22222");
    body["history"] = "as_sent";
    const auto sent = client.Post(body, "ok");
    CHECK(Has(sent.prompt, "cch=22222;"));
    CHECK(sent.start.branch != "main");
    CHECK(sent.start.miss->reason == "history_as_sent");
  }
  SUBCASE("and what stands behind it counts") {
    body["messages"][0]["content"][2]["text"] = "\nYou help with cooking.";
    const auto sent = client.Post(body, "ok");
    REQUIRE(sent.start.miss);
    CHECK(sent.start.miss->reason == "message_changed");
    CHECK(sent.start.miss->message == 0);
    std::string text;
    for (const Json& part : body["messages"][0]["content"]) text += part["text"];
    CHECK(sent.start.miss->at_char == static_cast<int64_t>(text.find("cooking")));
  }
  SUBCASE("in a session that is found by its history too") {
    body.erase("session_id");
    const auto alone = client.Post(body, "fine");
    body["messages"][0] = ClaudeSystem("33333");
    body["messages"].push_back(Message("assistant", "fine"));
    body["messages"].push_back(Message("user", "bye"));
    const auto sent = client.Post(body, "bye");
    CHECK(sent.start.session_id == alone.start.session_id);
    CHECK(sent.start.branch == "main");
    CHECK_FALSE(sent.start.miss);
  }
}

TEST_CASE("reminders that move between messages leave earlier turns as they were") {
  Client client;
  Json body = {{"session_id", "cc"}, {"messages", Json::array()}};
  Json& messages = body["messages"];
  messages.push_back(ClaudeSystem("fa690"));
  messages.push_back(Message("user", Parts({kSkillsReminder, kTodoReminder, "fix the bug"})));
  const auto first = client.Post(
      body, R"(<tool_call>{"name":"Read","arguments":{"file_path":"a.c"}}</tool_call>)",
      {{"call_1", "Read", R"({"file_path":"a.c"})"}});
  CHECK(Has(first.prompt, "skills"));
  // The same message without them, as a string; the call written otherwise; the result with one.
  messages[1] = Message("user", "fix the bug");
  messages.push_back(Body(R"({"role": "assistant", "content": null, "tool_calls": [{"id": "call_1",
      "type": "function", "function": {"name": "Read",
      "arguments": "{\"file_path\": \"a.c\"}"}}]})"));
  messages.push_back(Body(R"({"role": "tool", "tool_call_id": "call_1"})"));
  const std::string file = "1 int main;";
  messages[3]["content"] = file + "\n\n" + kTodoReminder;
  const auto second = client.GoesOn(body, "done");
  CHECK(Has(second.prompt, "skills"));
  CHECK(Has(second.prompt, file + "\n\n<system-reminder>"));  // the newest, as sent
  // It goes from the result and comes to the new message.
  messages[0] = ClaudeSystem("36ee5");
  messages[3]["content"] = file;
  messages.push_back(Message("assistant", "done"));
  messages.push_back(Message("user", Parts({"run it", kTodoReminder})));
  const auto third = client.GoesOn(body, "ok");
  CHECK(Has(third.prompt, "run it<system-reminder>"));

  SUBCASE("also a first one for an earlier message") {
    messages[1] = Message("user", Parts({"fix the bug", kTodoReminder}));
    messages.push_back(Message("assistant", "ok"));
    messages.push_back(Message("user", "bye"));
    client.GoesOn(body, "bye");
  }
  SUBCASE("but where the newest message is sent again with another, it is rendered") {
    messages[5] = Message("user", Parts({"run it", kSkillsReminder}));
    const auto again = client.Post(body, "no");
    CHECK(again.start.branch != "main");
    CHECK(Has(again.prompt, std::string("run it") + kSkillsReminder));
    REQUIRE(again.start.miss);
    CHECK(again.start.miss->reason == "message_changed");
    CHECK(again.start.miss->message == 5);
    CHECK(again.start.miss->field == "content");
    CHECK(again.start.miss->at_char ==
          static_cast<int64_t>(std::string("run it<system-reminder>\nThe ").size()));
    CHECK(again.start.kept_tokens == second.start.prompt_tokens + 5);
  }
  SUBCASE("and an edit beside a reminder is an edit") {
    messages[1] = Message("user", Parts({kTodoReminder, "fix the bag"}));
    const auto edited = client.Post(body, "no");
    REQUIRE(edited.start.miss);
    CHECK(edited.start.miss->message == 1);
    CHECK(edited.start.miss->at_char ==
          static_cast<int64_t>(std::string(kTodoReminder).size()) + 9);
  }
  SUBCASE("as sent is as sent") {
    messages.push_back(Message("assistant", "ok"));
    messages.push_back(Message("user", "bye"));
    body["history"] = "as_sent";
    const auto sent = client.Post(body, "bye");
    CHECK_FALSE(Has(sent.prompt, "skills"));
    CHECK(sent.start.miss->reason == "history_as_sent");
  }
}

TEST_CASE("titles and side prompts under one id leave the conversation alone") {
  Client client;
  Json body = {{"session_id", "cc"},
               {"messages", {ClaudeSystem("fa690"), Message("user", "fix the bug")}}};
  Json title = Body(R"({"session_id": "cc", "max_tokens": 32, "messages": [
      {"role": "system", "content": "Write a title of at most five words for this conversation."},
      {"role": "user", "content": "fix the bug"}]})");
  client.Post(body, "which");
  const auto first = client.Post(title, "A bug");
  CHECK(first.start.branch != "main");
  CHECK(first.start.kept_tokens == 0);
  CHECK_FALSE(first.start.new_session);
  body["messages"].push_back(Message("assistant", "which"));
  body["messages"].push_back(Message("user", "that one"));
  client.GoesOn(body, "done");
  title["messages"][1]["content"] = "fix the bug. which. that one";
  const auto second = client.Post(title, "Another bug");
  CHECK(second.start.branch != "main");
  CHECK(second.start.kept_tokens > 0);  // of the title prompt before it
  body["messages"].push_back(Message("assistant", "done"));
  body["messages"].push_back(Message("user", "thanks"));
  client.GoesOn(body, "ok");
  CHECK(client.bench.keeper().Get("ann", "cc")->default_branch == "main");
  CHECK(client.bench.keeper().Get("ann", "cc")->branches == 3);
}

// --- reasoning -----------------------------------------------------------------------------------

// As Qwen3's template does it: reasoning is shown behind the last question, and nowhere else.
constexpr char kDropsReasoning[] =
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}"
    "{% if loop.index0 > ns.last %}"
    "{% if parts | length > 1 %}{{ parts[0] }}</think>\n\n"
    "{% elif loop.last %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    "{{ parts[-1].lstrip('\n') }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.name }}</tool_call>"
    "{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

TEST_CASE("an answer that comes back without its reasoning is the answer") {
  // vLLM's clients get the two apart and may send either, both, or the answer alone.
  for (const char* back : {R"({"role": "assistant", "content": "four"})",
                           R"({"role": "assistant", "content": "\n\nfour\n"})",
                           R"({"role": "assistant", "content": "four", "reasoning_content": "hm"})",
                           R"({"role": "assistant", "content": "<think>\nhm\n</think>\n\nfour"})"}) {
    CAPTURE(back);
    Client client;
    Json body =
        Body(R"({"session_id": "qwen", "messages": [{"role": "user", "content": "2+2?"}]})");
    client.Post(body, "<think>\nhm\n</think>\n\nfour");
    body["messages"].push_back(Body(back));
    body["messages"].push_back(Message("user", "and 3+3?"));
    CHECK(Has(client.GoesOn(body, "<think>\nso\n</think>\n\nsix").prompt, "hm\n</think>"));
    body["messages"].push_back(Message("assistant", "six"));
    body["messages"].push_back(Message("user", "thanks"));
    client.GoesOn(body, "ok");
  }
}

TEST_CASE("reasoning that the client drops between tool calls stays where the template shows it") {
  SessionBenchOptions options;
  options.chat_template = kDropsReasoning;
  Client client(options);
  Json body = Body(R"({"session_id": "qwen", "messages": [{"role": "user", "content": "go"}]})");
  const auto first = client.Post(body, "<think>\nhm\n</think>\n\n<tool_call>look</tool_call>",
                                 {{"call_1", "look", "{}"}});
  // As Qwen-Agent sends it: the call, with nothing around it.
  body["messages"].push_back(Body(R"({"role": "assistant", "content": "", "tool_calls": [
      {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]})"));
  body["messages"].push_back(Body(R"({"role": "tool", "tool_call_id": "call_1", "content": "x"})"));
  const auto second = client.Post(body, "<think>\nso\n</think>\n\nthe end");
  CHECK(second.start.branch == "main");
  CHECK_FALSE(second.start.miss);
  CHECK(second.start.kept_tokens == second.there);
  CHECK(Has(second.prompt, "<think>\nhm\n</think>\n\n<tool_call>look"));

  // The next question: the template drops it, on a branch, and the answers' own tokens stay.
  body["messages"].push_back(Message("assistant", "the end"));
  body["messages"].push_back(Message("user", "go on"));
  const auto third = client.Post(body, "ok");
  REQUIRE(third.start.miss);
  CHECK(third.start.miss->reason == "template_unstable");
  CHECK(third.start.miss->message == 1);
  CHECK_FALSE(Has(third.prompt, "<think>"));
  CHECK(Has(third.prompt, "<tool_call>look</tool_call><|im_end|>"));
  CHECK(client.HasSampled("qwen", third.start.branch, "the end"));
}

// --- content, edits, misses ----------------------------------------------------------------------

TEST_CASE("content as a list of parts is the text that they make") {
  Client client;
  Json body = Body(R"({"session_id": "pi", "messages": [
      {"role": "system", "content": "be brief"},
      {"role": "user", "content": "hello there"}]})");
  client.Post(body, "hi");
  body["messages"][0]["content"] = Parts({"be brief"});
  body["messages"][1]["content"] = Parts({"hello", " there"});
  body["messages"].push_back(Message("assistant", Parts({"hi"})));
  body["messages"].push_back(Message("user", Parts({"more"})));
  client.GoesOn(body, "yes");
  body["messages"][1]["content"] = "hello there";
  body["messages"][3]["content"] = "more";
  body["messages"].push_back(Message("assistant", "yes"));
  body["messages"].push_back(Message("user", "and more"));
  client.GoesOn(body, "no");
}

TEST_CASE("behind an edit the answers keep the tokens that were sampled") {
  Client client;
  Json body = Body(R"({"session_id": "edit", "messages": [{"role": "user", "content": "one"}]})");
  Json& messages = body["messages"];
  client.Post(body, "then");
  messages.push_back(Message("assistant", "then"));
  messages.push_back(Message("user", "two"));
  client.Post(body, R"(<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>)",
              {{"call_1", "f", R"({"a": 1})"}});
  messages.push_back(Body(R"({"role": "assistant", "content": "", "tool_calls": [{"id": "call_1",
      "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]})"));
  messages.push_back(Body(R"({"role": "tool", "tool_call_id": "call_1", "content": "r"})"));
  client.Post(body, "thethe");
  messages.push_back(Message("assistant", "thethe"));
  messages.push_back(Message("user", "three"));
  SUBCASE("of the first message") { messages[0]["content"] = "uno"; }
  SUBCASE("of one in the middle") { messages[2]["content"] = "dos"; }
  SUBCASE("of the tools") { body["tools"] = Tools({kAlarm}); }
  const auto edited = client.Post(body, "ok");
  CHECK(edited.start.branch != "main");
  for (const char* said : {"then", R"({"name": "f", "arguments": {"a": 1}})", "thethe"}) {
    CHECK(client.HasSampled("edit", edited.start.branch, said));
  }
}

// --- calls with ids of the client's own ------------------------------------------------------------

struct Called {
  std::string id, name, arguments;
};

Json CallsOf(const std::vector<Called>& calls) {
  Json m = Message("assistant", nullptr);
  for (const Called& c : calls) {
    m["tool_calls"].push_back({{"id", c.id},
                               {"type", "function"},
                               {"function", {{"name", c.name}, {"arguments", c.arguments}}}});
  }
  return m;
}

Json ResultOf(const std::string& id, const std::string& content) {
  return {{"role", "tool"}, {"tool_call_id", id}, {"content", content}};
}

const std::vector<ToolCall> kTwoCalls = {{"call_a", "get_weather", R"({"city":"Oslo","unit":"c"})"},
                                         {"call_b", "get_weather", R"({"city":"Rome"})"}};
constexpr char kTwoCallsSaid[] =
    R"(<tool_call>{"name":"get_weather","arguments":{"city":"Oslo","unit":"c"}}</tool_call>)"
    R"(<tool_call>{"name":"get_weather","arguments":{"city":"Rome"}}</tool_call>)";

// The two calls and their results, as a client writes them that has named the calls itself.
void AddTwoCalls(Json* messages, const std::string& oslo, const std::string& rome) {
  messages->push_back(CallsOf({{oslo, "get_weather", R"({"unit": "c", "city": "Oslo"})"},
                               {rome, "get_weather", R"({"city": "Rome"})"}}));
  messages->push_back(ResultOf(oslo, "rain"));
  messages->push_back(ResultOf(rome, "sun"));
}

TEST_CASE("a client gives calls ids of its own") {
  SessionBenchOptions options;
  // As Mistral's template: ids are shown, and may only look one way.
  options.chat_template =
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
      "{% for call in m.tool_calls or [] %}"
      "{% if call.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}"
      "<tool_call>{{ call.function.name }}{{ call.id }}</tool_call>{% endfor %}"
      "{% if m.tool_call_id %} of {{ m.tool_call_id }}{% endif %}<|im_end|>\n{% endfor %}"
      "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
  SUBCASE("which the template shows") {}
  SUBCASE("which it does not") { options.chat_template.clear(); }
  const bool shown = !options.chat_template.empty();
  Client client(options);
  Json body = Body(R"({"session_id": "mistral", "messages": [
      {"role": "user", "content": "Weather in Oslo and Rome?"}]})");
  const Json asked = body["messages"];
  client.Post(body, kTwoCallsSaid, kTwoCalls);
  AddTwoCalls(&body["messages"], "D681PevKs", "9Ca1bXyZ0");
  const auto second = client.GoesOn(body, "it depends");
  CHECK(Has(second.prompt, "of D681PevKs") == shown);
  // Others again, as of a bridge that makes them anew for each request.
  body["messages"] = asked;
  AddTwoCalls(&body["messages"], "aaaaaaaa1", "aaaaaaaa2");
  body["messages"].push_back(Message("assistant", "it depends"));
  body["messages"].push_back(Message("user", "and Bonn?"));
  const auto third =
      client.GoesOn(body, "<tool_call>bonn", {{"call_c", "get_weather", R"({"city":"Bonn"})"}});
  CHECK(Has(third.prompt, "of D681PevKs") == shown);
  CHECK_FALSE(Has(third.prompt, "aaaaaaaa"));
  // Others once more, or the log's own beside one that the client has made.
  body["messages"] = asked;
  AddTwoCalls(&body["messages"], shown ? "bbbbbbbb1" : "call_a", shown ? "bbbbbbbb2" : "call_b");
  body["messages"].push_back(Message("assistant", "it depends"));
  body["messages"].push_back(Message("user", "and Bonn?"));
  body["messages"].push_back(CallsOf({{"ccccccccc", "get_weather", R"({"city": "Bonn"})"}}));
  body["messages"].push_back(ResultOf("ccccccccc", "fog"));
  client.GoesOn(body, "fog");
}

TEST_CASE("a result of another call is another result, whatever the calls are named") {
  struct Case {
    const char *name, *oslo, *rome, *first, *first_text, *second, *second_text, *field;
    int message;  // that misses; -1 = none
  };
  for (const Case& c : {
           Case{"the same", "x", "y", "x", "rain", "y", "sun", "", -1},
           Case{"the log's ids, the other way", "call_b", "call_a", "call_b", "rain", "call_a",
                "sun", "", -1},
           Case{"in another order", "x", "y", "y", "sun", "x", "rain", "tool_call_id", 2},
           Case{"in another order by the log's ids", "call_a", "call_b", "call_b", "sun", "call_a",
                "rain", "tool_call_id", 2},
           Case{"of the other call", "x", "y", "y", "rain", "x", "sun", "tool_call_id", 2},
           Case{"only the calls' ids the other way", "call_b", "call_a", "call_a", "rain", "call_b",
                "sun", "tool_call_id", 2},
           Case{"of no call", "x", "y", "x", "rain", "z", "sun", "tool_call_id", 3},
           Case{"of a call that has one name with another", "x", "x", "x", "rain", "x", "sun",
                "tool_call_id", 2},
           Case{"other text", "x", "y", "x", "rain", "y", "snow", "content", 3},
       }) {
    CAPTURE(c.name);
    Client client;
    Json body = Body(R"({"session_id": "s", "messages": [{"role": "user", "content": "go"}]})");
    Json& messages = body["messages"];
    client.Post(body, kTwoCallsSaid, kTwoCalls);
    AddTwoCalls(&messages, "call_a", "call_b");
    client.GoesOn(body, "then");
    messages[1]["tool_calls"][0]["id"] = c.oslo;
    messages[1]["tool_calls"][1]["id"] = c.rome;
    messages[2] = ResultOf(c.first, c.first_text);
    messages[3] = ResultOf(c.second, c.second_text);
    messages.push_back(Message("assistant", "then"));
    messages.push_back(Message("user", "more"));
    if (c.message < 0) {
      client.GoesOn(body, "ok");
      continue;
    }
    const TurnStart start = client.Post(body, "ok").start;
    CHECK(start.branch != "main");
    REQUIRE(start.miss);
    CHECK(start.miss->field == c.field);
    CHECK(start.miss->message == c.message);
  }
}

TEST_CASE("calls with other ids are the same by all that they say") {
  const Called oslo = {"x", "get_weather", R"({"city": "Oslo", "unit": "c"})"};
  const Called rome = {"y", "get_weather", R"({"city": "Rome"})"};
  Called bonn = rome, time = rome, cut = rome;
  bonn.arguments = R"({"city": "Bonn"})";
  time.name = "get_time";
  cut.arguments = R"({"city": "Rome")";
  Json said = CallsOf({oslo, rome});
  said["content"] = "let me see";
  for (const Json& other : {CallsOf({oslo, bonn}), CallsOf({oslo, time}), CallsOf({oslo, cut}),
                            CallsOf({rome, oslo}), CallsOf({oslo}), said,
                            CallsOf({oslo, rome, rome})}) {
    CAPTURE(DumpJson(other));
    Client client;
    Json body = Body(R"({"session_id": "s", "messages": [{"role": "user", "content": "go"}]})");
    client.Post(body, kTwoCallsSaid, kTwoCalls);
    body["messages"].push_back(other);
    body["messages"].push_back(ResultOf("x", "rain"));
    const TurnStart start = client.Post(body, "ok").start;
    REQUIRE(start.miss);
    CHECK(start.miss->field == "tool_calls");
    CHECK(start.miss->message == 1);
  }
}

TEST_CASE("reasoning stays where the template shows it, and calls have the client's ids there") {
  SessionBenchOptions options;
  options.chat_template = kDropsReasoning;
  const std::string call = "<tool_call>{{ call.function.name }}";
  options.chat_template.replace(
      options.chat_template.find(call), call.size(),
      call + "{% if call.id | length != 9 %}{{ raise_exception('9 characters') }}{% endif %}");
  Client client(options);
  Json body = Body(R"({"session_id": "qwen", "messages": [{"role": "user", "content": "go"}]})");
  client.Post(body, "<think>\nhm\n</think>\n\n<tool_call>look</tool_call>",
              {{"call_1", "look", "{}"}});
  body["messages"].push_back(CallsOf({{"aaaaaaaa1", "look", "{}"}}));
  body["messages"].push_back(ResultOf("aaaaaaaa1", "x"));
  CHECK(Has(client.GoesOn(body, "<think>\nso\n</think>\n\nthe end").prompt, "hm\n</think>"));
}

TEST_CASE("of branches that say the same the one with the ids that were sent goes on") {
  Client client;
  Json body = Body(R"({"session_id": "s", "messages": [{"role": "user", "content": "go"}]})");
  const Json asked = body["messages"];
  client.Post(body, kTwoCallsSaid, kTwoCalls);
  const auto again =
      client.Post(body, kTwoCallsSaid, {{"call_c", "get_weather", kTwoCalls[0].arguments},
                                        {"call_d", "get_weather", kTwoCalls[1].arguments}});
  REQUIRE(again.start.branch != "main");
  AddTwoCalls(&body["messages"], "call_a", "call_b");
  client.GoesOn(body, "then");
  body["messages"] = asked;
  AddTwoCalls(&body["messages"], "call_c", "call_d");
  const auto other = client.Post(body, "then");
  CHECK(other.start.branch == again.start.branch);
  CHECK_FALSE(other.start.miss);
}

TEST_CASE("a conversation is found by its history where calls have other ids") {
  Client client;
  Json body = Body(R"({"messages": [{"role": "user", "content": "go"}]})");
  const std::vector<ToolCall> others = {{"call_c", "get_weather", kTwoCalls[0].arguments},
                                        {"call_d", "get_weather", kTwoCalls[1].arguments}};
  const std::string think = "<think>hm</think>";
  // Two runs of one question that differ in nothing but what does not count, and their ids.
  const auto first = client.Post(body, kTwoCallsSaid, kTwoCalls);
  const auto twin = client.Post(body, think + kTwoCallsSaid, others);
  REQUIRE(first.start.session_id != twin.start.session_id);
  std::string session = twin.start.session_id, prompt = twin.prompt + think;
  SUBCASE("by ids of its own the one is told from the other") {
    AddTwoCalls(&body["messages"], "call_a", "call_b");
    session = first.start.session_id;
    prompt = first.prompt + kTwoCallsSaid;
  }
  SUBCASE("as well the latest") { AddTwoCalls(&body["messages"], "call_c", "call_d"); }
  SUBCASE("by others the latest is found") { AddTwoCalls(&body["messages"], "x", "y"); }
  const auto second = client.Post(body, "it depends");
  CHECK(second.start.session_id == session);
  CHECK(second.start.branch == "main");
  CHECK_FALSE(second.start.miss);
  CHECK(second.prompt.starts_with(prompt));
}

// --- messages that are reminders alone -----------------------------------------------------------

const char kMemoryReminder[] =
    "<system-reminder>\nAs you answer, you can use: # claudeMd\nBe brief.\n</system-reminder>\n";

TEST_CASE("messages that are nothing but reminders come and go") {
  Client client;
  const Json system = Message("system", "You are Claude Code.");
  const Json memory = Message("user", Parts({kMemoryReminder}));
  const Json todo = Message("user", kTodoReminder), skills = Message("user", kSkillsReminder);
  const Json fix = Message("user", "fix the bug"), run = Message("user", "run it");
  const Json done = Message("assistant", "done"), ok = Message("assistant", "ok");
  Json body = {{"session_id", "cc"}, {"messages", {system, memory, fix}}};
  SUBCASE("in a session that is found by its history") { body.erase("session_id"); }
  SUBCASE("in one that the client names") {}
  Json& messages = body["messages"];
  const bool named = body.contains("session_id");
  const auto first = client.Post(body, "done");
  const auto goes_on = [&](std::initializer_list<Json> sent, const std::string& said) {
    messages = sent;
    if (named) return client.GoesOn(body, said);
    const auto out = client.Post(body, said);
    CHECK(out.start.session_id == first.start.session_id);
    CHECK(out.start.branch == "main");
    CHECK_FALSE(out.start.miss);
    return out;
  };
  CHECK(Has(first.prompt, "claudeMd"));
  const auto second = goes_on({system, fix, done, run, todo}, "ok");
  CHECK(Has(second.prompt, "claudeMd"));  // it was computed
  CHECK(Has(second.prompt, "todo"));      // and what is newest is too
  const auto third = goes_on({system, skills, todo, fix, skills, done, run, ok, skills}, "fine");
  CHECK(Has(third.prompt, "claudeMd"));
  CHECK(Has(third.prompt, "todo"));
  const size_t shown = third.prompt.find("skills");
  CHECK(shown > third.prompt.find("ok"));  // of the newest message alone
  CHECK(third.prompt.find("skills", shown + 1) == std::string::npos);
  if (!named) return;

  const Json fine = Message("assistant", "fine"), bye = Message("user", "bye");
  SUBCASE("behind them an edit is found where it was sent") {
    messages = {system, skills, todo, fix, skills, done, Message("user", "ran it"), ok, bye};
    const auto edited = client.Post(body, "no");
    REQUIRE(edited.start.miss);
    CHECK(edited.start.miss->message == 6);
    CHECK(edited.start.miss->field == "content");
    CHECK(edited.start.miss->at_char == 1);
    CHECK(Has(edited.prompt, "claudeMd"));
    CHECK(edited.start.kept_tokens > first.start.prompt_tokens);
  }
  SUBCASE("the newest is rendered as it is sent again") {
    messages = {system, fix, done, run};
    const auto without = client.Post(body, "no");
    CHECK(Has(without.prompt, "claudeMd"));
    CHECK_FALSE(Has(without.prompt, "todo"));
    CHECK(without.start.miss->message == 4);
    messages = {system, fix, done, run, skills};
    const auto other = client.Post(body, "no");
    CHECK(Has(other.prompt, "skills"));
    CHECK_FALSE(Has(other.prompt, "todo"));
  }
  SUBCASE("as sent is as sent") {
    messages = {system, fix, done, run, ok, bye};
    body["history"] = "as_sent";
    const auto sent = client.Post(body, "no");
    CHECK_FALSE(Has(sent.prompt, "<system-reminder>"));
  }
  SUBCASE("a conversation that begins otherwise gets none of them") {
    messages = {system, bye, fine, run};
    CHECK_FALSE(Has(client.Post(body, "no").prompt, "claudeMd"));
  }
  SUBCASE("a tool's result stays one") {
    messages = {system, fix, done, run, ok, bye};
    client.Post(body, "<tool_call>look</tool_call>", {{"call_1", "look", "{}"}});
    messages.push_back(CallsOf({{"call_1", "look", "{}"}}));
    messages.push_back(ResultOf("call_1", kTodoReminder));
    client.Post(body, "seen");
    messages.back() = Message("assistant", "seen");
    messages.push_back(bye);
    CHECK(client.Post(body, "no").start.miss->message == 7);
  }
}

TEST_CASE("a miss says which call differs") {
  Client client;
  Json body = Body(R"({"session_id": "calls", "messages": [{"role": "user", "content": "go"}]})");
  client.Post(body, "x", {{"call_1", "f", "{}"}, {"call_2", "g", "{}"}});
  const auto calls = [&](std::initializer_list<std::pair<const char*, const char*>> list) {
    Json m = Message("assistant", "");
    for (const auto& [id, name] : list) {
      m["tool_calls"].push_back({{"id", id},
                                 {"type", "function"},
                                 {"function", {{"name", name}, {"arguments", "{}"}}}});
    }
    return m;
  };
  const auto miss_of = [&](const Json& assistant, const char* answers) {
    Json sent = body;
    sent["messages"].push_back(assistant);
    sent["messages"].push_back({{"role", "tool"}, {"tool_call_id", answers}, {"content", "r"}});
    const TurnStart start = client.Post(sent, "ok").start;
    REQUIRE(start.miss);
    CHECK(start.miss->reason == "message_changed");
    return *start.miss;
  };
  const Miss other = miss_of(calls({{"call_1", "f"}, {"call_3", "g"}}), "call_1");
  CHECK(other.field == "tool_calls");
  CHECK(other.message == 1);
  CHECK(other.name == "call_3");
  CHECK(miss_of(calls({{"call_1", "f"}}), "call_1").name == "call_2");
  CHECK(miss_of(calls({{"", "f"}}), "call_1").name == "f");
  CHECK(miss_of(Message("assistant", "no calls"), "call_1").name == "call_1");
}

}  // namespace
}  // namespace holdfast
