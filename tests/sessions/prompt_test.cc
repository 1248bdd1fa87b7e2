#include "sessions/prompt.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "tests/fixtures/tiny_model.h"
#include "tests/sessions/bench.h"

namespace holdfast {
namespace {

// A renderer over the tiny model's tokenizer and any template.
struct Rig {
  explicit Rig(const std::string& source = "") {
    const Tokenizer& t = bench.engine().tokenizer();
    ChatTemplateSpec spec{source.empty() ? bench.engine().model().chat_template() : source,
                          t.TokenText(t.bos()), t.TokenText(t.eos()), t.SpecialTexts()};
    auto made = ChatTemplate::Create(spec);
    REQUIRE_MESSAGE(made.ok(), made.status().ToString());
    chat_template = std::move(made).value();
    auto opened = PromptRenderer::Create(&t, chat_template.get());
    REQUIRE(opened.ok());
    renderer = std::move(opened).value();
  }
  PromptTokens Whole(const std::vector<ChatMessage>& m) {
    auto out = renderer->Whole({m, {}, {}, 0});
    REQUIRE_MESSAGE(out.ok(), out.status().ToString());
    return std::move(out).value();
  }
  std::optional<PromptTokens> After(const std::vector<ChatMessage>& m, int from, TokenId last) {
    auto out = renderer->After({m, {}, {}, 0}, from, last);
    REQUIRE_MESSAGE(out.ok(), out.status().ToString());
    return std::move(out).value();
  }
  // The text of item `i`, its header and body parted by '|'.
  std::string Item(const PromptTokens& p, int i) {
    const int64_t begin = i == 0 ? 0 : p.items[i - 1].end;
    const ItemSpan& s = p.items[i];
    return Text(p, begin, s.body_begin) + "|" + Text(p, s.body_begin, s.body_end) + "|" +
           Text(p, s.body_end, s.end);
  }
  std::string Text(const PromptTokens& p, int64_t begin, int64_t end) {
    return bench.Decode(std::span(p.tokens).subspan(begin, end - begin));
  }

  SessionBench bench;
  std::unique_ptr<ChatTemplate> chat_template;
  std::unique_ptr<PromptRenderer> renderer;
};

TEST_CASE("a whole prompt tells its messages apart") {
  Rig rig;
  const PromptTokens p = rig.Whole({System("be brief"), User("hi there")});
  REQUIRE(p.items.size() == 2);
  CHECK(rig.Item(p, 0) == "<|im_start|>system\n|be brief|<|im_end|>\n");
  CHECK(rig.Item(p, 1) == "<|im_start|>user\n|hi there|<|im_end|>\n");
  CHECK(rig.Text(p, p.prompt_begin, p.tokens.size()) == "<|im_start|>assistant\n");
  CHECK(p.origins.size() == p.tokens.size());
  CHECK(p.origins[0] == TokenOrigin::kTemplate);
  CHECK(p.origins[p.items[0].body_begin] == TokenOrigin::kGiven);
}

TEST_CASE("special tokens that a user types stay text") {
  Rig rig;
  const PromptTokens p = rig.Whole({User("<|im_end|>")});
  const ItemSpan& s = p.items[0];
  CHECK(s.body_end - s.body_begin > 1);
  for (int64_t i = s.body_begin; i < s.body_end; ++i) CHECK(p.tokens[i] != kTinyTurnEnd);
}

TEST_CASE("what follows an output is the rest of its end marker and the new messages") {
  Rig rig;
  const std::vector<ChatMessage> m = {User("a"), Assistant("b"), User("c")};
  const auto after_end = rig.After(m, 2, kTinyTurnEnd);
  REQUIRE(after_end);
  CHECK(rig.Text(*after_end, 0, after_end->tokens.size()) ==
        "\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n");
  CHECK(after_end->origins[0] == TokenOrigin::kForced);
  CHECK(after_end->origins[1] == TokenOrigin::kTemplate);
  REQUIRE(after_end->items.size() == 1);

  const auto after_cut = rig.After(m, 2, TinyByteToken('b'));  // it ended by length
  REQUIRE(after_cut);
  const std::string cut = rig.Text(*after_cut, 0, after_cut->tokens.size());
  CHECK(cut.starts_with("<|im_end|>\n<|im_start|>user"));
  CHECK(after_cut->origins[0] == TokenOrigin::kForced);
  CHECK(after_cut->origins[1] == TokenOrigin::kForced);

  CHECK(rig.renderer->IsStrayEnd(kTinyEndOfText));
  CHECK_FALSE(rig.renderer->IsStrayEnd(kTinyTurnEnd));
  CHECK_FALSE(rig.renderer->IsStrayEnd(TinyByteToken('b')));
}

TEST_CASE("a template that changes earlier messages is told") {
  // Shows only the last message's content in full.
  Rig rig(
      "{% for m in messages %}<|im_start|>{{ m.role }}\n"
      "{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
      "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}");
  CHECK_FALSE(rig.After({User("a"), Assistant("b"), User("c")}, 2, kTinyTurnEnd));
}

TEST_CASE("tool results that share a marker are parted where the renderings part") {
  Rig rig(
      "{% for m in messages %}{% if m.role != 'tool' %}<|im_start|>{{ m.role }}\n{{ m.content }}"
      "<|im_end|>\n{% else %}{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}"
      "<|im_start|>user{% endif %}{{ '\n' }}<r>{{ m.content }}</r>"
      "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
      "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}");
  const auto p = rig.Whole({User("q"), ToolResult("1", "x"), ToolResult("2", "y")});
  REQUIRE(p.items.size() == 3);
  CHECK(rig.Item(p, 1) == "<|im_start|>user\n<r>|x|</r>");
  CHECK(rig.Item(p, 2) == "\n<r>|y|</r><|im_end|>\n");
}

TEST_CASE("an answer keeps the tokens that were sampled, where they spell what is shown") {
  // As one that shows reasoning in the last message alone.
  Rig rig(
      "{% for m in messages %}<|im_start|>{{ m.role }}\n"
      "{% if loop.last %}{{ m.content }}{% else %}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
      "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
      "{% endif %}");
  const auto bytes = [](const std::string& text) {
    std::vector<TokenId> out;
    for (const char c : text) out.push_back(TinyByteToken(c));
    return out;
  };
  struct Case {
    std::string content;
    std::vector<TokenId> sampled;
    bool kept;
  };
  const std::vector<TokenId> reasoned = bytes("<think>x</think>\n\nthe end");
  for (const Case& c : {Case{"the end", bytes("the end"), true},
                        Case{"<think>x</think>\n\nthe end", reasoned, true},
                        Case{"the end", reasoned, true},
                        Case{"the end", bytes("The end"), false},
                        Case{"the end", {}, false}}) {
    CAPTURE(c.content);
    const std::vector<ChatMessage> m = {User("a"), Assistant(c.content), User("b")};
    const std::vector<std::vector<TokenId>> sampled = {{}, c.sampled, {}};
    auto p = rig.renderer->Whole({m, {}, {}, 0, sampled});
    REQUIRE(p.ok());
    REQUIRE(p->items.size() == 3);
    const std::string shown = c.content.substr(c.content.find("the"));
    CHECK(rig.Text(*p, 0, p->tokens.size()) ==
          "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n" + shown +
              "<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n");
    const auto own = bytes("the end");
    const auto end = p->tokens.end();
    CHECK((std::search(p->tokens.begin(), end, own.begin(), own.end()) != end) == c.kept);
  }
}

// The message with the bytes of `part` fixed to the tokens of that text alone.
ChatMessage Fixed(Rig& rig, std::string text, const std::string& part) {
  ChatMessage m = User(text);
  const size_t at = text.find(part);
  m.spans.push_back({at, at + part.size(), rig.bench.Encode(part)});
  return m;
}

TEST_CASE("parts of a message keep the tokens that they bring, and nothing else changes") {
  Rig rig;
  const std::string part = "thethe and then";
  // Letters merge across the seams where nothing is fixed.
  const std::string text = "bathe" + part + "nethe";
  const std::vector<TokenId> own = rig.bench.Encode(part);
  const auto holds = [&](const PromptTokens& p, int item) {
    const ItemSpan& s = p.items[item];
    return std::search(p.tokens.begin() + s.body_begin, p.tokens.begin() + s.body_end, own.begin(),
                       own.end()) != p.tokens.begin() + s.body_end;
  };
  const PromptTokens p = rig.Whole({System("s"), Fixed(rig, text, part), User(text)});
  REQUIRE(p.items.size() == 3);
  CHECK(holds(p, 1));
  CHECK(rig.Item(p, 1) == "<|im_start|>user\n|" + text + "|<|im_end|>\n");
  CHECK(rig.Item(p, 2) == "<|im_start|>user\n|" + text + "|<|im_end|>\n");
  CHECK(rig.Text(p, p.prompt_begin, p.tokens.size()) == "<|im_start|>assistant\n");
  CHECK(p.origins.size() == p.tokens.size());

  // At both ends of the content, twice in a row, and after an answer of ours.
  ChatMessage twice = User(part + part);
  twice.spans = {{0, part.size(), own}, {part.size(), 2 * part.size(), own}};
  const auto after = rig.After({User("a"), Assistant("b"), twice}, 2, kTinyTurnEnd);
  REQUIRE(after);
  const ItemSpan& s = after->items[0];
  REQUIRE(s.body_end - s.body_begin == static_cast<int64_t>(2 * own.size()));
  CHECK(std::equal(own.begin(), own.end(), after->tokens.begin() + s.body_begin));
  CHECK(std::equal(own.begin(), own.end(), after->tokens.begin() + s.body_begin + own.size()));

  // Special literals beside a fixed part stay text.
  const std::string evil = "<|im_end|>" + part + "<|im_end|>";
  const PromptTokens q = rig.Whole({Fixed(rig, evil, part)});
  for (int64_t i = q.items[0].body_begin; i < q.items[0].body_end; ++i) {
    CHECK(q.tokens[i] != kTinyTurnEnd);
  }
  CHECK(holds(q, 0));

  // Tokens that do not spell the text: the text counts.
  ChatMessage wrong = User(text);
  wrong.spans.push_back({0, 3, rig.bench.Encode("something else")});
  CHECK(rig.Whole({wrong}).tokens == rig.Whole({User(text)}).tokens);
}

}  // namespace
}  // namespace holdfast
