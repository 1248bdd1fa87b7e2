// detect_segments CORPUS MODEL.gguf...: how much of a pasted segment is found, and how fast, with
// real tokenizers and chat templates.
//
// A segment of about 2,000 tokens (a random part of the files of the folder CORPUS, cut anywhere)
// stands in one conversation as a tool's output, and comes back in another one: pasted into a
// message with text before and behind it in the same line, as a tool's output again, or in the
// middle of another document. Found is what runs cover, of the segment's own tokens. Exit 1 below
// 99 %. The time is that of a prompt with 400 other segments in the index; it decides nothing.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/model/config.h"
#include "engine/model/file_map.h"
#include "engine/model/gguf.h"
#include "sessions/prompt.h"
#include "stitcher/anchor_index.h"
#include "tests/stitcher/segment_fixture.h"

namespace holdfast {
namespace {

constexpr double kWantedShare = 0.99;
constexpr size_t kSegmentBytes = 7600;  // some 2,000 tokens
constexpr int kTrials = 60, kOthers = 400;

struct Bench {
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;
  std::unique_ptr<PromptRenderer> renderer;
  std::string corpus;
  std::mt19937_64 rng{20261124};

  Status Open(const std::string& path) {
    HOLDFAST_ASSIGN_OR_RETURN(const auto map, FileMap::Open(path));
    HOLDFAST_ASSIGN_OR_RETURN(const Gguf gguf, Gguf::Parse(map->bytes()));
    HOLDFAST_ASSIGN_OR_RETURN(const ModelMetadata model, ReadModelMetadata(gguf, "model"));
    HOLDFAST_ASSIGN_OR_RETURN(tokenizer, Tokenizer::Create(model.tokenizer));
    const auto text_of = [&](TokenId t) { return t == kNoToken ? "" : tokenizer->TokenText(t); };
    HOLDFAST_ASSIGN_OR_RETURN(
        chat_template, ChatTemplate::Create({model.chat_template, text_of(tokenizer->bos()),
                                             text_of(tokenizer->eos()), tokenizer->SpecialTexts()}));
    HOLDFAST_ASSIGN_OR_RETURN(renderer,
                              PromptRenderer::Create(tokenizer.get(), chat_template.get()));
    return Status();
  }
  // Parts of the corpus, of ASCII alone, so that they may be cut anywhere: of its first half, which
  // segments are made of, or of its second one.
  std::string Segment() {
    return Cut(rng() % (corpus.size() / 2 - kSegmentBytes), kSegmentBytes);
  }
  std::string Other(size_t bytes) {
    return Cut(corpus.size() / 2 + rng() % (corpus.size() / 2 - bytes), bytes);
  }
  std::string Cut(size_t at, size_t bytes) const {
    std::string text = corpus.substr(at, bytes);
    // Nothing that a template may trim.
    while (!text.empty() && text.back() <= ' ') text.pop_back();
    return text.substr(std::min(text.find_first_not_of(" \t\r\n"), text.size()));
  }
};

ChatMessage Message(const std::string& role, const std::string& text) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string quoted;
  for (const char c : text) {
    if (c == '"' || c == '\\' || static_cast<unsigned char>(c) < 32) {
      quoted += std::string("\\u00") + kHex[(c >> 4) & 15] + kHex[c & 15];
    } else {
      quoted += c;
    }
  }
  ChatMessage m;
  m.role = role;
  m.text = text;
  m.raw_json = "{\"role\":\"" + role + "\",\"content\":\"" + quoted + "\"";
  m.raw_json += role == "tool" ? ",\"tool_call_id\":\"c\"}" : "}";
  return m;
}

// The body of the last message as a variant; whole pages only, so with a filler behind.
Result<Variant> Learn(Bench& b, const std::vector<ChatMessage>& messages) {
  HOLDFAST_ASSIGN_OR_RETURN(PromptTokens p, b.renderer->Whole({messages, {}, {}, 0}));
  const ItemSpan body = p.items.back();
  if (body.body_begin == body.body_end) return Status::Corrupt("the template changes the text");
  p.tokens.resize((p.tokens.size() / kPageTokens + 2) * kPageTokens, 1);
  return SliceOfTokens(p.tokens, body.body_begin, body.body_end);
}

struct Sums {
  int64_t tokens = 0, found = 0;
  double least = 1;
};

Status Trial(Bench& b, int kind, Sums* sums) {
  const std::string segment = b.Segment();
  HOLDFAST_ASSIGN_OR_RETURN(
      Variant variant, Learn(b, {Message("user", b.Other(b.rng() % 2000)), Message("tool", segment)}));
  const int64_t own = variant.count;
  AnchorIndex index;
  index.Add(Named(std::move(variant), 0, 255));
  std::vector<ChatMessage> messages = {Message("system", b.Other(200)),
                                       Message("user", b.Other(b.rng() % 900))};
  if (kind == 0) messages.push_back(Message("user", b.Other(b.rng() % 700) + segment + b.Other(90)));
  if (kind == 1) messages.push_back(Message("tool", segment));
  if (kind == 2) messages.push_back(Message("tool", b.Other(5000) + segment + b.Other(5000)));
  HOLDFAST_ASSIGN_OR_RETURN(const PromptTokens p, b.renderer->Whole({messages, {}, {}, 0}));
  int64_t found = 0;
  for (const FoundRun& r : index.Find(p.tokens, 0, static_cast<int64_t>(p.tokens.size()))) {
    found += r.end - r.begin;
  }
  sums->tokens += own;
  sums->found += std::min(found, own);
  sums->least = std::min(sums->least, static_cast<double>(found) / static_cast<double>(own));
  return Status();
}

// Milliseconds for 1,000 tokens of prompts of 8,000 and more, half of which stand in some segment,
// among many: the median, as the machine may do something else meanwhile.
Result<double> Time(Bench& b) {
  std::vector<double> ms;
  AnchorIndex index;
  std::vector<std::string> texts;
  for (int i = 0; i < kOthers; ++i) {
    texts.push_back(b.Segment());
    HOLDFAST_ASSIGN_OR_RETURN(Variant v, Learn(b, {Message("user", texts.back())}));
    v.segment.digest.bytes[1] = static_cast<uint8_t>(i % 256);
    v.segment.digest.bytes[2] = static_cast<uint8_t>(i / 256);
    v.row = i;
    index.Add(std::make_shared<const Variant>(std::move(v)));
  }
  for (int i = 0; i < 20; ++i) {
    const std::string text = texts[b.rng() % texts.size()] + b.Other(kSegmentBytes) +
                             texts[b.rng() % texts.size()] + b.Other(kSegmentBytes);
    const std::vector<ChatMessage> messages = {Message("user", text)};
    HOLDFAST_ASSIGN_OR_RETURN(const PromptTokens p, b.renderer->Whole({messages, {}, {}, 0}));
    const auto start = std::chrono::steady_clock::now();
    const auto runs = index.Find(p.tokens, 0, static_cast<int64_t>(p.tokens.size()));
    const std::chrono::duration<double, std::milli> took =
        std::chrono::steady_clock::now() - start;
    if (runs.empty()) return Status::Corrupt("nothing found in a prompt of segments");
    ms.push_back(took.count() / static_cast<double>(p.tokens.size()) * 1000);
  }
  std::printf("  index of %d segments: %.1f MB\n", kOthers,
              static_cast<double>(index.bytes()) / 1e6);
  std::nth_element(ms.begin(), ms.begin() + ms.size() / 2, ms.end());
  return ms[ms.size() / 2];
}

Result<bool> Judge(const std::string& corpus, const std::string& model) {
  Bench b;
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(corpus)) {
    files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  for (const auto& file : files) {
    std::ifstream in(file, std::ios::binary);
    for (std::istreambuf_iterator<char> it(in), end; it != end; ++it) {
      if (static_cast<unsigned char>(*it) < 128) b.corpus += *it;
    }
  }
  if (b.corpus.size() < 4 * kSegmentBytes) return Status::Invalid(corpus + " is too short");
  HOLDFAST_RETURN_IF_ERROR(b.Open(model));
  std::printf("%s\n", model.c_str());
  bool good = true;
  const char* kKinds[] = {"pasted into a line", "a tool's output", "inside another output"};
  for (int kind = 0; kind < 3; ++kind) {
    Sums sums;
    for (int i = 0; i < kTrials; ++i) HOLDFAST_RETURN_IF_ERROR(Trial(b, kind, &sums));
    const double share = static_cast<double>(sums.found) / static_cast<double>(sums.tokens);
    std::printf("  %-22s %6.2f %% found, the least %6.2f %% (%lld tokens each)\n", kKinds[kind],
                100 * share, 100 * sums.least, static_cast<long long>(sums.tokens / kTrials));
    good = good && sums.least >= kWantedShare;
  }
  HOLDFAST_ASSIGN_OR_RETURN(const double ms, Time(b));
  std::printf("  %.4f ms for 1,000 tokens of a prompt\n", ms);
  return good;
}

}  // namespace
}  // namespace holdfast

int main(int argc, char** argv) {
  bool good = argc > 2;
  for (int i = 2; i < argc; ++i) {
    const auto ran = holdfast::Judge(argv[1], argv[i]);
    if (!ran.ok()) std::fprintf(stderr, "%s\n", ran.status().ToString().c_str());
    good = ran.ok() && *ran && good;
  }
  return good ? 0 : 1;
}
