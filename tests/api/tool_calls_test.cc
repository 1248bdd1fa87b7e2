#include "api/tool_calls.h"

#include <doctest/doctest.h>

namespace holdfast {
namespace {

ToolCallReader MakeReader(ParallelCalls parallel = ParallelCalls::kMany) {
  return ToolCallReader({{"read_file", "list_dir"}, parallel,
                         [](int i) { return "call_" + std::to_string(i); }});
}

// The events of a text that arrives in pieces of `piece` bytes, written as
// text, then «index name arguments» for each call.
std::string Read(std::string_view text, size_t piece, ParallelCalls p = ParallelCalls::kMany) {
  ToolCallReader reader = MakeReader(p);
  std::string out;
  auto add = [&](const std::vector<ToolCallEvent>& events) {
    for (const ToolCallEvent& e : events) {
      if (e.kind == ToolCallEvent::Kind::kText) {
        out += e.text;
      } else {
        CHECK(e.call.id == "call_" + std::to_string(e.index));
        out += "«" + std::to_string(e.index) + " " + e.call.name + " " + e.call.arguments + "»";
      }
    }
  };
  for (size_t at = 0; at < text.size(); at += piece) add(reader.Push(text.substr(at, piece)));
  add(reader.Finish());
  return out;
}

struct Case {
  const char* text;
  const char* want;
};

const Case kCases[] = {
    {"Hello there.", "Hello there."},
    {"  spaced \n out \n", "  spaced \n out \n"},
    {"<tool_call>\n{\"name\": \"read_file\", \"arguments\": {\"path\": \"a.txt\"}}\n</tool_call>",
     "«0 read_file {\"path\":\"a.txt\"}»"},
    {"Let me look.\n<tool_call>{\"name\":\"list_dir\",\"arguments\":{}}</tool_call>",
     "Let me look.«0 list_dir {}»"},
    {"<tool_call>{\"name\":\"list_dir\",\"arguments\":{\"b\":1,\"a\":2}}</tool_call>\n"
     "<tool_call>\n{\"name\":\"read_file\","
     "\"arguments\":\"{\\\"path\\\": \\\"x\\\"}\"}\n</tool_call>\n",
     "«0 list_dir {\"b\":1,\"a\":2}»«1 read_file {\"path\": \"x\"}»"},
    {"<tool_call>{\"name\":\"list_dir\",\"arguments\":{}}", "«0 list_dir {}»"},
    {"<tool_call>{\"name\":\"rm_rf\",\"arguments\":{}}</tool_call>",
     "<tool_call>{\"name\":\"rm_rf\",\"arguments\":{}}</tool_call>"},
    {"<tool_call>not json</tool_call>", "<tool_call>not json</tool_call>"},
    {"{\"name\": \"read_file\", \"arguments\": {\"path\": \"b{}\\\"\"}}",
     "«0 read_file {\"path\":\"b{}\\\"\"}»"},
    {"{\"name\": \"read_file\", \"parameters\": {\"path\": \"b\"}}\n",
     "«0 read_file {\"path\":\"b\"}»"},
    {"{\"name\":\"read_file\",\"arguments\":{}}\n{\"name\":\"list_dir\",\"arguments\":{}}",
     "«0 read_file {}»«1 list_dir {}»"},
    {"[{\"name\":\"read_file\",\"arguments\":{}},{\"name\":\"list_dir\"}]",
     "«0 read_file {}»«1 list_dir {}»"},
    {"{\"type\":\"function\",\"function\":{\"name\":\"list_dir\",\"arguments\":\"{}\"}}",
     "«0 list_dir {}»"},
    {"```json\n{\"name\": \"list_dir\", \"arguments\": {\"path\": \".\"}}\n```",
     "«0 list_dir {\"path\":\".\"}»"},
    {"I will:\n```json\n{\"name\":\"list_dir\",\"arguments\":{}}\n```\n",
     "I will:«0 list_dir {}»"},
    {"```\n{\"name\":\"list_dir\",\"arguments\":{}}\n```", "«0 list_dir {}»"},
    // Not at the end, not at a line's start, not ours, not whole: text, to the byte.
    {"{\"name\":\"list_dir\",\"arguments\":{}} as you see",
     "{\"name\":\"list_dir\",\"arguments\":{}} as you see"},
    {"say {\"name\":\"list_dir\",\"arguments\":{}}",
     "say {\"name\":\"list_dir\",\"arguments\":{}}"},
    {"{\"city\": \"Oslo\"}", "{\"city\": \"Oslo\"}"},
    {"```python\nprint(1)\n```\n", "```python\nprint(1)\n```\n"},
    {"{\"name\":\"list_dir\",\"arguments\":{", "{\"name\":\"list_dir\",\"arguments\":{"},
    {"{\"name\":\"list_dir\",\"arguments\":[1]}", "{\"name\":\"list_dir\",\"arguments\":[1]}"},
    {"{\"name\":\"list_dir\",\"arguments\":\"{bad\"}",
     "{\"name\":\"list_dir\",\"arguments\":\"{bad\"}"},
    {"a < b and <tool", "a < b and <tool"},
    {"x\n\n```json\n[1, 2]\n```\ny", "x\n\n```json\n[1, 2]\n```\ny"},
    // A candidate that fails may hold a true one.
    {"{\"a\":\n{\"name\":\"list_dir\",\"arguments\":{}}", "{\"a\":«0 list_dir {}»"},
};

TEST_CASE("tool calls are found in every shape, however the text is cut") {
  for (const Case& c : kCases) {
    for (size_t piece : {1, 2, 3, 7, 1000}) {
      CAPTURE(c.text);
      CAPTURE(piece);
      CHECK(Read(c.text, piece) == c.want);
    }
  }
}

TEST_CASE("one call at most where parallel calls are off") {
  CHECK(Read("{\"name\":\"read_file\",\"arguments\":{}}\n{\"name\":\"list_dir\"}", 5,
             ParallelCalls::kOne) == "«0 read_file {}»");
}

TEST_CASE("text comes out at once, and at most 4 KiB are held while unsure") {
  ToolCallReader reader = MakeReader();
  CHECK(reader.Push("plain").size() == 1);
  CHECK(reader.Push("\n{\"name\":").empty());
  std::string held(ToolCallReader::kMaxUnsure, ' ');
  const auto events = reader.Push(held);
  REQUIRE(events.size() == 1);
  CHECK(events[0].text.starts_with("\n{\"name\":"));
  CHECK_FALSE(reader.any_calls());
}

TEST_CASE("a call that names a tool may be longer than what is held while unsure") {
  const std::string big(20000, 'x');
  const std::string call = R"({"name":"read_file","arguments":{"path":")" + big + "\"}}";
  CHECK(Read(call, 100) == "«0 read_file {\"path\":\"" + big + "\"}»");
}

TEST_CASE("JSON that is too deep is text") {
  const std::string deep = R"({"name":"list_dir","arguments":{"a":)" + std::string(100000, '[');
  CHECK(Read(deep, 4000) == deep);
}

TEST_CASE("without tools everything is text") {
  ToolCallReader reader({{}, ParallelCalls::kMany, nullptr});
  const auto events = reader.Push("{\"name\":\"list_dir\"}");
  REQUIRE(events.size() == 1);
  CHECK(events[0].text == "{\"name\":\"list_dir\"}");
  CHECK(reader.Finish().empty());
}

}  // namespace
}  // namespace holdfast
