// Constraints over the small vocabulary, in which every byte is a token.
#include <doctest/doctest.h>

#include <numeric>

#include "engine/text/text.h"
#include "tests/engine/text/byte_vocabulary.h"

namespace holdfast {
namespace {

struct Fixture {
  std::unique_ptr<Tokenizer> tokenizer = Tokenizer::Create(ByteSpec()).value();
  std::unique_ptr<ConstraintFactory> factory = ConstraintFactory::Create(*tokenizer);

  std::unique_ptr<Constraint> Schema(std::string_view schema) const {
    auto made = factory->CompileJsonSchema(schema, SchemaMode::kStrict);
    REQUIRE_MESSAGE(made.ok(), made.status().message());
    CHECK(made->warning == "");
    return std::move(made->constraint);
  }
  std::vector<uint32_t> Mask(Constraint& c) const {
    std::vector<uint32_t> bits((tokenizer->vocab_size() + 31) / 32);
    Status status = c.FillMask(bits);
    REQUIRE_MESSAGE(status.ok(), status.message());
    return bits;
  }
  bool Allows(Constraint& c, TokenId id) const { return Mask(c)[id / 32] >> (id % 32) & 1; }

  // Feeds `text` in the longest tokens that the mask allows; how many bytes went in.
  size_t Feed(Constraint& c, std::string_view text) const {
    size_t at = 0;
    while (at < text.size()) {
      std::vector<uint32_t> bits = Mask(c);
      TokenId best = kNoToken;
      for (size_t id = 0; id < tokenizer->vocab_size(); ++id) {
        const std::string& token = tokenizer->TokenText(static_cast<TokenId>(id));
        if (!(bits[id / 32] >> (id % 32) & 1) || tokenizer->IsSpecial(static_cast<TokenId>(id)) ||
            !text.substr(at).starts_with(token)) {
          continue;
        }
        if (best == kNoToken || token.size() > tokenizer->TokenText(best).size()) {
          best = static_cast<TokenId>(id);
        }
      }
      if (best == kNoToken) break;
      CHECK(c.Accept(best).ok());
      at += tokenizer->TokenText(best).size();
    }
    return at;
  }
  bool Matches(Constraint& c, std::string_view text) const {
    return Feed(c, text) == text.size() && c.IsComplete();
  }
};

struct SchemaCase {
  const char* schema;
  std::vector<const char*> good, bad;
};

TEST_CASE_FIXTURE(Fixture, "schemas allow what they say") {
  const std::vector<SchemaCase> cases = {
      {R"({"type": "string"})", {R"("")", R"("a\"\u0001\n")", "\"\xc3\xa9\""}, {"a", R"("\q")", R"("\u00e9")"}},
      {R"({"type": "integer"})", {"0", "-12"}, {"01", "1.5", "+1", "\"1\""}},
      {R"({"type": "number"})", {"0", "-1.5", "1e5"}, {".5", "1."}},
      {R"({"type": "boolean"})", {"true", "false"}, {"True", "1"}},
      {R"({"type": "null"})", {"null"}, {"none"}},
      {R"({"enum": ["a", 1, null]})", {R"("a")", "1", "null"}, {"2", R"("b")"}},
      {R"({"const": {"a": [1]}})", {R"({"a": [1]})"}, {R"({"a": [2]})"}},
      {R"({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2})",
       {"[1]", "[1, 2]"},
       {"[]", "[1, 2, 3]", "[1,2]", "[ 1]"}},
      {R"({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
           "required": ["a"], "additionalProperties": false})",
       {R"({"a": 1})", R"({"a": 1, "b": "x"})"},
       {"{}", R"({"b": "x"})", R"({"a": 1, "c": 1})", R"({"a": "1"})", R"({"a":1})"}},
      {R"({"anyOf": [{"type": "integer"}, {"type": "null"}]})", {"1", "null"}, {"true"}},
      {R"({"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties":
           {"next": {"$ref": "#/$defs/n"}}, "additionalProperties": false}}})",
       {"{}", R"({"next": {"next": {}}})"},
       {R"({"next": 1})"}},
      {R"({"type": "string", "pattern": "^[a-c]+$"})", {R"("abc")"}, {R"("")", R"("d")"}},
      {R"({"type": "string", "minLength": 2, "maxLength": 3})", {R"("ab")"}, {R"("a")", R"("abcd")"}},
      {R"({"type": "integer", "minimum": 3, "maximum": 12})", {"3", "12"}, {"2", "13"}},
      {R"({"type": "string", "format": "date"})", {R"("2025-11-24")"}, {R"("24.11.2025")"}},
      {"true", {"1", R"({"a": [null]})"}, {"x"}},
      {"", {"1"}, {"x"}}};
  for (const SchemaCase& c : cases) {
    INFO(std::string(c.schema));
    for (const char* text : c.good) CHECK_MESSAGE(Matches(*Schema(c.schema), text), std::string(text));
    for (const char* text : c.bad) CHECK_FALSE_MESSAGE(Matches(*Schema(c.schema), text), std::string(text));
  }
}

TEST_CASE_FIXTURE(Fixture, "end of generation is allowed exactly where the output is whole") {
  auto c = Schema(R"({"type": "object", "properties": {}, "additionalProperties": false})");
  const TokenId eos = tokenizer->eos();
  CHECK_FALSE(Allows(*c, eos));
  CHECK(c->Accept(eos).code() == Code::kInvalid);
  CHECK(Feed(*c, "{}") == 2);
  CHECK(c->IsComplete());
  CHECK(c->IsFinished());
  auto bits = Mask(*c);
  CHECK(std::accumulate(bits.begin(), bits.end(), 0, [](int n, uint32_t w) {
          return n + __builtin_popcount(w);
        }) == 1);
  CHECK(Allows(*c, eos));
  CHECK(c->Accept('x').code() == Code::kInvalid);
  CHECK(c->Accept(eos).ok());
  CHECK_FALSE(Allows(*c, eos));
  CHECK(c->Accept(eos).code() == Code::kInvalid);
  auto number = Schema(R"({"type": "integer"})");
  CHECK(Feed(*number, "12") == 2);
  CHECK(number->IsComplete());
  CHECK_FALSE(number->IsFinished());
  CHECK(Allows(*number, eos));
  CHECK(Allows(*number, '3'));
}

TEST_CASE_FIXTURE(Fixture, "a refused token changes nothing") {
  auto c = Schema(R"({"type": "boolean"})");
  CHECK(c->Accept('x').code() == Code::kInvalid);
  CHECK(c->Accept(-1).code() == Code::kInvalid);
  CHECK(c->Accept(1 << 20).code() == Code::kInvalid);
  CHECK(c->Accept(tokenizer->bos()).code() == Code::kInvalid);
  CHECK(Matches(*c, "true"));
  std::vector<uint32_t> small(1);
  CHECK(c->FillMask(small).code() == Code::kInvalid);
  CHECK(c->FillMask({}).code() == Code::kInvalid);
}

TEST_CASE_FIXTURE(Fixture, "special tokens never match as text") {
  auto c = Schema(R"({"type": "string"})");
  CHECK(Feed(*c, "\"") == 1);
  CHECK_FALSE(Allows(*c, tokenizer->FindToken("</tool_call>")));
  CHECK_FALSE(Allows(*c, tokenizer->bos()));
  CHECK(Allows(*c, tokenizer->FindToken("<tool_call>")));  // user-defined: text like any other
  CHECK(Allows(*c, tokenizer->FindToken("hello")));
}

TEST_CASE_FIXTURE(Fixture, "forced tokens are canonical and accepted") {
  auto c = Schema(R"({"type": "object", "properties": {"hello": {"type": "boolean"}},
                      "required": ["hello"], "additionalProperties": false})");
  std::string forced;
  for (TokenId id : c->Forced()) {
    CHECK(c->Accept(id).ok());
    forced += tokenizer->TokenText(id);
  }
  CHECK_FALSE(forced.empty());
  CHECK(std::string(R"({"hello": )").starts_with(forced));
  CHECK(Feed(*c, std::string(R"({"hello": true})").substr(forced.size())) > 0);
  CHECK(c->IsFinished());
  CHECK(c->Forced().empty());
}

TEST_CASE_FIXTURE(Fixture, "a clone goes its own way") {
  auto c = Schema(R"({"type": "boolean"})");
  CHECK(Feed(*c, "t") == 1);
  auto clone = c->Clone().value();
  CHECK_FALSE(clone->IsComplete());
  CHECK(Matches(*clone, "rue"));
  CHECK_FALSE(c->IsComplete());
  CHECK(Feed(*c, "rx") == 1);
  CHECK(Matches(*c, "ue"));
}

TEST_CASE_FIXTURE(Fixture, "any object, and a regex") {
  for (const char* text : {"{}", R"({"a": [1, {"b": "c"}]})"}) {
    CHECK(Matches(*factory->CompileJsonObject().value().constraint, text));
  }
  CHECK_FALSE(Matches(*factory->CompileJsonObject().value().constraint, "[1]"));
  CHECK(Matches(*factory->CompileRegex("a+b?").value().constraint, "aaab"));
  CHECK(factory->CompileRegex("a(").status().code() == Code::kInvalid);
  CHECK(factory->CompileRegex("a/b\\/").ok());
}

constexpr char kWeather[] = R"({"type": "object", "properties": {"city": {"$ref": "#/$defs/c"}},
    "required": ["city"], "additionalProperties": false, "$defs": {"c": {"type": "string"}}})";

TEST_CASE_FIXTURE(Fixture, "tool calls") {
  ToolCallSpec spec;
  spec.tools = {{"weather", kWeather}, {"stop", ""}, {"sa\"y", R"({"properties": {}})"}};
  auto compile = [&] { return factory->CompileToolCall(spec, SchemaMode::kStrict); };
  auto matches = [&](const char* text) { return Matches(*compile().value().constraint, text); };
  CHECK(matches(R"({"name": "weather", "arguments": {"city": "Oslo"}})"));
  CHECK(matches(R"({"name": "stop", "arguments": {"any": [1]}})"));
  CHECK(matches(R"({"name": "sa\"y", "arguments": {}})"));
  CHECK_FALSE(matches(R"({"name": "weather", "arguments": {}})"));
  CHECK_FALSE(matches(R"({"name": "other", "arguments": {}})"));
  spec.only = "stop";
  CHECK(matches(R"({"name": "stop", "arguments": {}})"));
  CHECK_FALSE(matches(R"({"name": "weather", "arguments": {"city": "Oslo"}})"));
  spec.only = "nobody";
  CHECK(compile().status().code() == Code::kInvalid);
  spec.tools.clear();
  spec.only = "";
  CHECK(compile().status().code() == Code::kInvalid);
}

TEST_CASE_FIXTURE(Fixture, "tool calls in tags: user-defined tags are text, control tags tokens") {
  ToolCallSpec spec;
  spec.tools = {{"stop", ""}};
  spec.prefix = "<tool_call>\n";
  spec.suffix = "\n</tool_call>";
  spec.parallel = ParallelCalls::kMany;
  auto c = std::move(factory->CompileToolCall(spec, SchemaMode::kStrict).value().constraint);
  CHECK(c->Forced().front() == tokenizer->FindToken("<tool_call>"));
  CHECK(Feed(*c, "<tool_call>\n{\"name\": \"stop\", \"arguments\": {}}\n") == 46);
  CHECK_FALSE(Allows(*c, '<'));
  CHECK(c->Accept(tokenizer->FindToken("</tool_call>")).ok());
  CHECK(c->IsComplete());
  CHECK_FALSE(c->IsFinished());
  CHECK(Feed(*c, "\n<tool_call>\n{") == 14);
}

TEST_CASE_FIXTURE(Fixture, "an odd schema is refused when strict and loosened when relaxed") {
  for (const char* schema :
       {R"({"type": "object", "properties": {"a": {"type": "integer", "multipleOf": "x"}}})",
        R"({"type": "object", "not": {"required": ["a"]}})",
        R"({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}})",
        R"({"type": "string", "pattern": "(?=a)b"})", R"({"type": "wizard"})",
        R"({"type": "string", "format": "runes"})", R"([1])", R"({"type": )", R"({"enum": []})"}) {
    INFO(std::string(schema));
    auto strict = factory->CompileJsonSchema(schema, SchemaMode::kStrict);
    CHECK(strict.status().code() == Code::kInvalid);
    ToolCallSpec spec;
    spec.tools = {{"f", schema}};
    auto relaxed = factory->CompileToolCall(spec, SchemaMode::kRelaxed);
    REQUIRE(relaxed.ok());
    CHECK(relaxed->warning != "");
    CHECK(Feed(*relaxed->constraint, "{\"name\": \"f\", \"arguments\": ") == 27);
  }
}

TEST_CASE_FIXTURE(Fixture, "a refusal names the tool and the place") {
  const char* schema = R"({"properties": {"a": {"type": "array", "items": {"not": {}}}}})";
  CHECK(factory->CompileJsonSchema(schema, SchemaMode::kStrict).status().message() ==
        "constraint: Unimplemented keys: [\"not\"] (at #/properties/a/items)");
  ToolCallSpec spec;
  spec.tools = {{"good", kWeather}, {"bad", schema}};
  CHECK(factory->CompileToolCall(spec, SchemaMode::kStrict).status().message() ==
        "tool 'bad': constraint: Unimplemented keys: [\"not\"] (at #/properties/a/items)");
}

TEST_CASE_FIXTURE(Fixture, "hostile schemas give typed errors") {
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += R"({"items": )";
  std::string many = R"({"type": "string", "pattern": "(((a{1000}){1000}){1000}){1000}"})";
  std::string wide = R"({"type": "array", "minItems": 1000000000, "items": {"type": "string"}})";
  std::string nest(100000, '(');
  std::string loop = R"({"$ref": "#"})";
  std::string own = R"({"x-guidance": {"item_separator": ";"}, "type": "array"})";
  for (const std::string& schema :
       {deep, many, wide, loop, R"({"pattern": ")" + nest + "\"}", std::string("\xff")}) {
    auto made = factory->CompileJsonSchema(schema, SchemaMode::kStrict);
    CHECK((made.ok() || made.status().code() == Code::kInvalid));
  }
  CHECK(Matches(*Schema(own), "[1, 2]"));  // a caller can't set the compiler's own options
}

}  // namespace
}  // namespace holdfast
