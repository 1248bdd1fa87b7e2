// Segments over a tiny model that really computes: learnt from turns, warmed, found, named in
// messages, kept and forgotten.
#include "api/segments.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "api/openai_chat.h"
#include "api/upkeep.h"
#include "stitcher/card.h"
#include "stitcher/isolated.h"
#include "tests/api/runtime_bench.h"

namespace holdfast {
namespace {

const TenantScope kAnn("ann");

std::string Document(const std::string& about, int sentences = 12) {
  std::string text;
  for (int i = 0; i < sentences; ++i) {
    text += "Line " + std::to_string(i) + " of the report on " + about + " says " +
            std::to_string(i * 7919 % 1009) + ". ";
  }
  return text;
}

std::vector<SegmentInfo> List(RuntimeBench& b, const TenantScope& scope = kAnn) {
  return b.runtime().segments().List(scope, 0, 1000);
}

std::vector<TokenId> Encode(RuntimeBench& b, const std::string& text) {
  auto tokens = b.runtime().engine().tokenizer().EncodePlain(text);
  REQUIRE(tokens.ok());
  return *tokens;
}

std::vector<FoundRun> Find(RuntimeBench& b, const std::vector<TokenId>& tokens,
                           const TenantScope& scope = kAnn) {
  return b.runtime().segments().Find(scope, tokens, 0, static_cast<int64_t>(tokens.size()));
}

// How many of the covering pages are in the pool under their keys, with their tokens.
size_t PagesThere(RuntimeBench& b, const Variant& v) {
  size_t there = 0;
  const std::vector<PageKey> keys = v.PageKeys();
  for (size_t i = 0; i < keys.size(); ++i) {
    const auto tokens = std::span(v.tokens).subspan(i * kPageTokens, kPageTokens);
    there += static_cast<bool>(b.runtime().engine().pool().Find(keys[i], tokens));
  }
  CHECK(keys.size() == v.tokens.size() / kPageTokens);
  return there;
}

NewSegment Text(const std::string& text, bool warm = false) {
  NewSegment s;
  s.tenant = "ann";
  s.text = text;
  s.warm = warm;
  return s;
}

SegmentInfo Add(RuntimeBench& b, const NewSegment& request) {
  auto made = b.runtime().AddSegment(request);
  REQUIRE_MESSAGE(made.ok(), made.status().ToString());
  return *made;
}

TEST_CASE("what clients sent in a committed turn is found where it comes back") {
  RuntimeBench b;
  const std::string doc = Document("whales");
  Talk talk("one");
  talk.User("What is in this?").Keep(b.Say(talk.Request()));
  talk.Tool("call", doc).Keep(b.Say(talk.Request()));
  const auto segments = List(b);
  REQUIRE(segments.size() == 1);  // the question is too short, the answers are the model's
  CHECK(segments[0].role == "tool");
  CHECK_FALSE(segments[0].given);
  REQUIRE(segments[0].variants.size() == 1);
  CHECK(segments[0].variants[0].kind == VariantKind::kInContext);

  const std::vector<TokenId> prompt = Encode(b, "Elsewhere, quite another text: " + doc + " And?");
  const auto runs = Find(b, prompt);
  REQUIRE(runs.size() == 1);
  const auto whole = static_cast<int64_t>(Encode(b, doc).size());
  CHECK(runs[0].end - runs[0].begin >= whole - 8);  // letters merge at the seams
  CHECK(PagesThere(b, *runs[0].variant) == runs[0].variant->tokens.size() / kPageTokens);
  CHECK(Find(b, prompt, TenantScope("bob")).empty());

  // The place is where it stood: the pages of that chain.
  auto tokens = b.runtime().keeper().Tokens("ann", "one", "");
  REQUIRE(tokens.ok());
  const Variant& v = *runs[0].variant;
  CHECK(std::equal(v.body().begin(), v.body().end(), tokens->begin() + v.position));
  CHECK(b.runtime().stats().segments.segments == 1);
}

TEST_CASE("a body whose last page was not whole is learnt to its end by the next turn") {
  RuntimeBench b;
  // An answer of one token leaves the document's last page open, wherever it ends.
  int grown = 0;
  for (int i = 0; i < 6; ++i) {
    const std::string name = std::string("s").append(std::to_string(i));  // gcc 12 warns of +
    const std::string doc = Document(name) + std::string(static_cast<size_t>(i * 7), '.');
    Talk talk(name);
    ChatRequest first = talk.User(doc).Request();
    first.max_tokens = 1;
    talk.Keep(b.Say(first));
    const SegmentInfo before = List(b).back();
    talk.User("Go on.").Keep(b.Say(talk.Request()));
    const SegmentInfo after = List(b).back();
    REQUIRE(after.id == before.id);
    REQUIRE(after.variants.size() == 1);
    CHECK(after.variants[0].tokens == after.tokens);
    grown += after.variants[0].tokens > before.variants[0].tokens;
  }
  CHECK(grown > 0);
}

TEST_CASE("segments survive a restart, and go with their session") {
  RuntimeBench b;
  const std::string doc = Document("bees"), other = Document("ants");
  Talk one("one"), two("two");
  one.User(doc).Keep(b.Say(one.Request()));
  two.User(doc + other).Keep(b.Say(two.Request()));
  CHECK(List(b).size() == 2);
  b.Restart();
  CHECK(List(b).size() == 2);
  auto runs = Find(b, Encode(b, "x" + doc));
  REQUIRE(runs.size() == 1);
  REQUIRE(b.runtime().keeper().Delete("ann", "two").ok());
  CHECK(List(b).size() == 1);
  CHECK(Find(b, Encode(b, "x" + other)).empty());
  runs = Find(b, Encode(b, "x" + doc));
  REQUIRE(runs.size() == 1);
  b.Restart();
  CHECK(List(b).size() == 1);
}

TEST_CASE("a warmed segment lies behind the prefix of its role, and is exact") {
  RuntimeBench b;
  const std::string doc = Document("rivers");
  for (const std::string role : {"user", "tool"}) {
    NewSegment add = Text(doc, true);
    add.role = role;
    const SegmentInfo info = Add(b, add);
    CHECK(info.given);
    REQUIRE(info.variants.size() == 1);
    CHECK(info.variants[0].kind == VariantKind::kIsolated);
    CHECK(info.variants[0].tokens == info.tokens);
    const auto runs = Find(b, Encode(b, doc));
    REQUIRE(runs.size() == 1);
    const Variant& v = *runs[0].variant;
    CHECK(PagesThere(b, v) == v.tokens.size() / kPageTokens);
    const std::string sink = [&] {
      std::string text;
      for (TokenId t : v.sink) text += b.runtime().engine().tokenizer().TokenText(t);
      return text;
    }();
    const std::string header = "<|im_start|>" + role + "\n";
    const size_t at = sink.rfind("<|im_start|>");
    REQUIRE(at != std::string::npos);
    CHECK(sink.substr(at).starts_with(header));
    const std::string primer = sink.substr(at + header.size());
    CHECK(primer.ends_with("wind above 20 knots\n\n"));
    CHECK(Encode(b, primer).size() == 320);
    // Again: the same pages, nothing new.
    CHECK(Add(b, add).variants.size() == 1);
    // A conversation that begins so has the same pages: they are ordinary ones.
    if (role == "user") {
      Talk talk("t");
      const Answer a = b.Say(talk.User(primer + doc).Request());
      CHECK(a.done.report.start.stitch.from_pool >= v.position + v.count - kPageTokens);
    }
    REQUIRE(b.runtime().segments().Delete(kAnn, info.id).ok());
  }
}

TEST_CASE("gc keeps the pages of segments, and lets them go with these") {
  RuntimeBench b;
  const SegmentInfo info = Add(b, Text(Document("hills"), true));
  const auto runs = Find(b, Encode(b, Document("hills")));
  REQUIRE(runs.size() == 1);
  b.runtime().SyncPages();
  REQUIRE(CollectGarbage(b.runtime(), Gc::kNow).ok());
  const auto in_use = b.runtime().keeper().PagesInUse();
  REQUIRE(in_use.ok());
  for (const PageKey& key : runs[0].variant->PageKeys()) CHECK((*in_use)(key));
  REQUIRE(b.runtime().segments().Delete(kAnn, info.id).ok());
  const auto after = b.runtime().keeper().PagesInUse();
  for (const PageKey& key : runs[0].variant->PageKeys()) CHECK_FALSE((*after)(key));
  const auto gone = CollectGarbage(b.runtime(), Gc::kNow);
  REQUIRE(gone.ok());
  CHECK(gone->deleted.pages.pages >= runs[0].variant->tokens.size() / kPageTokens);
}

// The request of a message whose content parts are as given.
ChatRequest Read(RuntimeBench& b, const std::string& parts, std::optional<ApiError>* error) {
  ChatCall call;
  *error = ReadChatCall(
      R"({"messages":[{"role":"user","content":[)" + parts + R"(]}],"max_tokens":4})",
      [&](std::string_view id) {
        return SegmentNamed(b.runtime().segments(), b.runtime().engine().tokenizer(), "ann", id);
      },
      &call);
  call.request.tenant = "ann";
  return call.request;
}

std::string Part(const SegmentInfo& s) {
  return R"({"type":"segment","segment_id":")" + s.id.Text() + "\"}";
}

TEST_CASE("a part that names a segment stands for its text, with its own tokens") {
  RuntimeBench b;
  const std::string doc = "thethe" + Document("stones") + "the";
  const SegmentInfo info = Add(b, Text(doc));
  const std::vector<TokenId> own = Encode(b, doc);
  std::optional<ApiError> error;
  const ChatRequest named =
      Read(b, R"({"type":"text","text":"lathe"},)" + Part(info) + R"(,{"type":"text","text":"se"})",
           &error);
  REQUIRE_FALSE(error);
  CHECK(named.messages[0].text == "lathe" + doc + "se");
  const Answer answer = b.Say(named);
  const auto& prompt = answer.done.prompt_tokens;
  CHECK(std::search(prompt.begin(), prompt.end(), own.begin(), own.end()) != prompt.end());
  // Pasted as text its ends merge with what stands beside them.
  ChatRequest pasted = Talk("").User("lathe" + doc + "se").Request();
  const Answer plain = b.Say(pasted);
  const auto& other = plain.done.prompt_tokens;
  CHECK(std::search(other.begin(), other.end(), own.begin(), own.end()) == other.end());
  const auto runs = Find(b, other);
  CHECK(runs.size() <= 1);  // it has been learnt by now from the turn that named it
}

TEST_CASE("what is wrong with a segment in a message is said, with its place") {
  RuntimeBench b;
  const SegmentInfo info = Add(b, Text(Document("sand")));
  std::optional<ApiError> error;
  Read(b, Part(info) + R"(,{"type":"segment","segment_id":"seg_12"})", &error);
  REQUIRE(error);
  CHECK(error->status == 404);
  CHECK(error->param == "messages[0].content[1].segment_id");
  Read(b, R"({"type":"segment"})", &error);
  REQUIRE(error);
  CHECK(error->status == 400);
  CHECK(error->param == "messages[0].content[0].segment_id");
  // Another tenant's, and one that was deleted.
  NewSegment his = Text(Document("dust"));
  his.tenant = "bob";
  Read(b, Part(Add(b, his)), &error);
  REQUIRE(error);
  CHECK(error->status == 404);
  REQUIRE(b.runtime().segments().Delete(kAnn, info.id).ok());
  Read(b, Part(info), &error);
  REQUIRE(error);
  CHECK(error->status == 404);
}

TEST_CASE("a segment that is deleted while turns use it is theirs to the end, and after") {
  std::vector<Answer> kept;
  for (const bool deletes : {false, true}) {
    RuntimeBench b;
    const auto set_card = [&] {
      b.runtime().stitcher().SetCard(std::make_shared<const ModelCard>(
          OpenCard(b.runtime().engine().model().fingerprint())));
    };
    set_card();
    const std::string doc = Document("lakes", 6);
    const SegmentInfo info = Add(b, Text(doc, true));
    std::vector<Answer> answers;
    Talk talk("one");
    const auto say = [&](const std::string& text) {
      ChatRequest request = talk.User(text).Request();
      request.reuse.policy = ReusePolicy::kBalanced;
      std::unique_ptr<ChatStream> stream;
      REQUIRE(b.Start(request, &stream).ok());
      if (deletes && answers.empty()) {
        REQUIRE(b.runtime().segments().Delete(kAnn, info.id).ok());
      }
      answers.push_back(b.Drain(stream.get()));
      REQUIRE(answers.back().done.status.ok());
      CHECK(answers.back().done.report.start.stitch.totals.shifted > 0);
      talk.Keep(answers.back());
    };
    say("Of lakes: " + doc);
    say("And then?");  // on the warm head
    b.Restart();
    set_card();
    say("And now?");   // made again by the turn's recipe
    CHECK(answers.back().done.report.start.stitch.remade);
    if (deletes) CHECK(answers == kept);
    kept = answers;
  }
}

TEST_CASE("a segment of tokens is text in whole characters, without control tokens") {
  RuntimeBench b;
  const auto refused = [&](NewSegment s, const std::string& begins) {
    const auto made = b.runtime().AddSegment(s);
    REQUIRE_FALSE(made.ok());
    CHECK(made.status().code() == Code::kInvalid);
    CHECK_MESSAGE(made.status().message().starts_with(begins), made.status().message());
  };
  NewSegment s;
  s.tenant = "ann";
  refused(s, "text: one of");
  s.tokens = Encode(b, "some text");
  const SegmentInfo made = Add(b, s);
  CHECK(made.id == Add(b, Text("some text")).id);
  CHECK(made.variants.empty());
  NewSegment both = s;
  both.text = "x";
  refused(both, "text: one of");
  NewSegment control = s;
  control.tokens.insert(control.tokens.begin() + 1, 2);
  refused(control, "tokens[1] is a control token");
  NewSegment beyond = s;
  beyond.tokens.push_back(1 << 20);
  refused(beyond, "tokens[" + std::to_string(s.tokens.size()) + "] is not a token");
  NewSegment half = s;
  half.tokens = Encode(b, "\xc3\xa9");
  REQUIRE(half.tokens.size() == 2);  // bytes
  half.tokens.pop_back();
  refused(half, "tokens: they do not spell");
  NewSegment few = s;
  few.warm = true;
  refused(few, "segments: ");
  NewSegment many = Text(Document("everything", 200), true);
  refused(many, "context_length_exceeded: ");
  CHECK(List(b).size() == 1);  // what was refused left nothing
}

}  // namespace
}  // namespace holdfast
