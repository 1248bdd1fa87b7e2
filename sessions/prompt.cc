#include "sessions/prompt.h"

#include <algorithm>

namespace holdfast {
namespace {

size_t CommonBytes(std::string_view a, std::string_view b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

// Byte at which each token begins, and the end of the last: tokens+1 numbers. Empty when the tokens
// do not spell the text byte for byte (a tokenizer that normalises).
std::vector<size_t> TokenStarts(const Tokenizer& tokenizer, std::span<const TokenId> tokens,
                                std::string_view text) {
  std::vector<size_t> starts{0};
  starts.reserve(tokens.size() + 1);
  for (TokenId t : tokens) starts.push_back(starts.back() + tokenizer.TokenText(t).size());
  if (starts.back() != text.size()) starts.clear();
  return starts;
}

// The first token that begins at `byte` or later.
int64_t TokenAt(const std::vector<size_t>& starts, size_t byte) {
  return std::lower_bound(starts.begin(), starts.end() - 1, byte) - starts.begin();
}

// Plain ranges of a text's bytes [begin, end), before which `add` bytes are put.
std::vector<PlainRange> Moved(std::span<const PlainRange> plain, size_t begin, size_t end,
                              size_t add) {
  std::vector<PlainRange> out;
  for (const PlainRange& r : plain) {
    if (r.end <= begin || r.begin >= end) continue;
    out.push_back({std::max(r.begin, begin) - begin + add, std::min(r.end, end) - begin + add});
  }
  return out;
}

Result<std::vector<TokenId>> EncodeAround(const Tokenizer& tokenizer, std::string_view text,
                                          std::span<const PlainRange> plain,
                                          std::span<const FixedPart> fixed) {
  std::vector<TokenId> out;
  size_t at = 0;
  const auto encode = [&](size_t end) -> Status {
    HOLDFAST_ASSIGN_OR_RETURN(
        const std::vector<TokenId> tokens,
        tokenizer.Encode(text.substr(at, end - at), Moved(plain, at, end, 0)));
    out.insert(out.end(), tokens.begin(), tokens.end());
    return Status();
  };
  for (const FixedPart& part : fixed) {
    HOLDFAST_RETURN_IF_ERROR(encode(part.begin));
    out.insert(out.end(), part.tokens.begin(), part.tokens.end());
    at = part.end;
  }
  HOLDFAST_RETURN_IF_ERROR(encode(text.size()));
  return out;
}

// Puts the token that a model expects before every text.
void PutBos(TokenId bos, PromptTokens* out) {
  if (!out->tokens.empty() && out->tokens.front() == bos) return;  // the template did
  out->tokens.insert(out->tokens.begin(), bos);
  out->origins.insert(out->origins.begin(), TokenOrigin::kTemplate);
  for (ItemSpan& item : out->items) {
    ++item.end;
    ++item.body_begin;
    ++item.body_end;
  }
  ++out->prompt_begin;
}

void MarkOrigins(PromptTokens* out, int64_t trailer_tokens) {
  out->origins.assign(out->tokens.size(), TokenOrigin::kTemplate);
  for (const ItemSpan& item : out->items) {
    std::fill(out->origins.begin() + item.body_begin, out->origins.begin() + item.body_end,
              TokenOrigin::kGiven);
  }
  std::fill_n(out->origins.begin(), trailer_tokens, TokenOrigin::kForced);
}

}  // namespace

std::string MessagesJson(std::span<const ChatMessage> messages, int count) {
  size_t bytes = 2;
  for (int i = 0; i < count; ++i) bytes += messages[i].raw_json.size() + 1;
  std::string json;
  json.reserve(bytes);
  json += '[';
  for (int i = 0; i < count; ++i) {
    if (i > 0) json += ',';
    json += messages[i].raw_json;
  }
  json += ']';
  return json;
}

Result<std::unique_ptr<PromptRenderer>> PromptRenderer::Create(const Tokenizer* tokenizer,
                                                               const ChatTemplate* chat_template) {
  std::unique_ptr<PromptRenderer> r(new PromptRenderer(tokenizer, chat_template));
  r->digest_ = Hasher("prompt-1").Add(chat_template->digest()).Add(tokenizer->digest()).Finish();
  // What comes after an answer is found by showing the template one.
  static constexpr std::string_view kMark = "holdfast-answer-mark";
  std::vector<ChatMessage> probe(2);
  probe[0].raw_json = R"({"role":"user","content":"hello"})";
  probe[1].raw_json = R"({"role":"assistant","content":")" + std::string(kMark) + R"("})";
  HOLDFAST_ASSIGN_OR_RETURN(Rendered shown,
                            r->Render({.messages = probe, .tools_json = {}, .kwargs_json = {}}, 2,
                                      GenerationPrompt::kOmit));
  const size_t at = shown.text.rfind(kMark);
  if (at != std::string::npos) r->after_answer_ = shown.text.substr(at + kMark.size());
  for (TokenId t : tokenizer->end_of_generation()) {
    const std::string& text = tokenizer->TokenText(t);
    if (!text.empty() && r->after_answer_.starts_with(text)) r->end_token_ = t;
  }
  return r;
}

bool PromptRenderer::IsStrayEnd(TokenId token) const {
  return token != end_token_ && tokenizer_->IsEndOfGeneration(token);
}

Result<Rendered> PromptRenderer::Render(const PromptArgs& args, int count,
                                        GenerationPrompt prompt) const {
  const std::string json = MessagesJson(args.messages, count);
  RenderArgs render;
  render.messages_json = json;
  render.tools_json = args.tools_json;
  render.extra_json = args.kwargs_json;
  render.generation_prompt = prompt;
  render.now_unix_s = args.now_unix_s;
  return template_->Render(render);
}

// Byte of `all` at which each message from `from` on ends; that of the last is also where the
// generation prompt begins.
Result<std::vector<size_t>> PromptRenderer::MessageEnds(const PromptArgs& args, int from,
                                                        std::string_view all, size_t begin,
                                                        size_t* prompt_begin) const {
  const int n = static_cast<int>(args.messages.size());
  HOLDFAST_ASSIGN_OR_RETURN(Rendered last, Render(args, n, GenerationPrompt::kOmit));
  *prompt_begin = std::max(begin, CommonBytes(last.text, all));
  std::vector<size_t> ends;
  size_t spent = 0, end = begin;
  for (int j = from + 1; j < n; ++j) {
    if (spent < kMaxSpanBytes) {
      // A template may refuse a history that stops here (roles that must alternate, say): the
      // message then has no span of its own.
      if (auto part = Render(args, j, GenerationPrompt::kOmit); part.ok()) {
        spent += part->text.size() + 1;
        end = std::clamp(CommonBytes(part->text, all), end, *prompt_begin);
      }
    }
    ends.push_back(end);
  }
  if (from < n) ends.push_back(*prompt_begin);
  return ends;
}

// Where the content stands in the message that is rendered at [begin, end); npos: not as it is.
size_t PromptRenderer::FindContent(std::string_view all, size_t begin, size_t end,
                                   std::string_view content) const {
  if (content.empty()) return std::string_view::npos;
  std::string_view message = all.substr(begin, end - begin);
  // The content may be the end marker's own text, or a role's name: the marker is cut off, and the
  // last occurrence is taken.
  if (message.ends_with(after_answer_)) message.remove_suffix(after_answer_.size());
  const size_t at = message.rfind(content);
  return at == std::string_view::npos ? at : begin + at;
}

// Where what the tokens spell is shown as an answer, `from` this byte on. A template that drops
// reasoning shows what comes behind it alone.
std::optional<FixedPart> PromptRenderer::FindSampled(const Rendered& all, size_t prompt_begin,
                                                     size_t from,
                                                     std::span<const TokenId> sampled) const {
  constexpr std::string_view kReasoningEnd = "</think>";
  std::string said;
  std::vector<size_t> starts;
  for (const TokenId t : sampled) {
    starts.push_back(said.size());
    said += tokenizer_->TokenText(t);
  }
  size_t answer = said.find(kReasoningEnd);
  if (answer != std::string::npos) {
    answer = said.find_first_not_of('\n', answer + kReasoningEnd.size());
  }
  const std::string header = all.text.substr(prompt_begin);
  for (const size_t cut : {size_t{0}, answer}) {
    const auto first = std::find(starts.begin(), starts.end(), cut);
    if (first == starts.end()) continue;
    const size_t at = all.text.find(header + said.substr(cut) + after_answer_, from);
    if (at >= prompt_begin) continue;
    const size_t begin = at + header.size();
    const auto quoted = [&](const PlainRange& r) { return r.begin >= at && r.begin < begin; };
    if (std::any_of(all.plain.begin(), all.plain.end(), quoted)) continue;
    return FixedPart{begin, begin + said.size() - cut, sampled.subspan(first - starts.begin())};
  }
  return std::nullopt;
}

Result<PromptTokens> PromptRenderer::Tokenise(const PromptArgs& args, int from,
                                              const Rendered& all, size_t begin,
                                              std::string_view trailer) const {
  size_t prompt_begin = 0;
  HOLDFAST_ASSIGN_OR_RETURN(std::vector<size_t> ends,
                            MessageEnds(args, from, all.text, begin, &prompt_begin));
  const std::string text = std::string(trailer) + all.text.substr(begin);
  const auto in_text = [&](size_t byte) { return byte - begin + trailer.size(); };
  std::vector<size_t> contents;  // where they begin, or npos
  std::vector<FixedPart> fixed;
  const auto fix = [&](size_t first, size_t last, std::span<const TokenId> tokens) {
    const FixedPart part{in_text(first), in_text(last), tokens};
    if (fixed.empty() || fixed.back().end <= part.begin) fixed.push_back(part);
  };
  size_t sampled_end = begin;
  for (size_t i = 0; i < ends.size(); ++i) {
    const ChatMessage& m = args.messages[from + i];
    contents.push_back(FindContent(all.text, i == 0 ? begin : ends[i - 1], ends[i], m.text));
    if (!args.sampled.empty() && !args.sampled[from + i].empty()) {
      const auto part = FindSampled(all, prompt_begin, sampled_end, args.sampled[from + i]);
      if (!part) continue;
      sampled_end = part->end;
      fix(part->begin, part->end, part->tokens);
    } else if (const size_t at = contents.back(); at != std::string::npos) {
      for (const TokenSpan& s : m.spans) fix(at + s.begin, at + s.end, s.tokens);
    }
  }
  const auto plain = Moved(all.plain, begin, all.text.size(), trailer.size());
  PromptTokens out;
  HOLDFAST_ASSIGN_OR_RETURN(out.tokens, EncodeAround(*tokenizer_, text, plain, fixed));
  std::vector<size_t> starts = TokenStarts(*tokenizer_, out.tokens, text);
  if (starts.empty() && !fixed.empty()) {
    HOLDFAST_ASSIGN_OR_RETURN(out.tokens, tokenizer_->Encode(text, plain));
    starts = TokenStarts(*tokenizer_, out.tokens, text);
  }
  const int64_t count = static_cast<int64_t>(out.tokens.size());
  if (starts.empty()) {  // no way to tell messages apart: the last one gets all
    out.prompt_begin = count;
    out.items.assign(ends.size(), ItemSpan{});
    if (!out.items.empty()) out.items.back() = {count, 0, count};
    MarkOrigins(&out, 0);
    return out;
  }
  auto token_at = [&](size_t byte) { return TokenAt(starts, in_text(byte)); };
  int64_t first = 0;
  for (size_t i = 0; i < ends.size(); ++i) {
    ItemSpan item;
    item.end = std::max(first, token_at(ends[i]));
    item.body_begin = item.body_end = item.end;
    if (const size_t at = contents[i]; at != std::string::npos) {
      const size_t content_end = at + args.messages[from + i].text.size();
      item.body_begin = std::clamp(token_at(at), first, item.end);
      item.body_end = std::clamp(token_at(content_end), item.body_begin, item.end);
    }
    out.items.push_back(item);
    first = item.end;
  }
  out.prompt_begin = std::max(first, token_at(prompt_begin));
  MarkOrigins(&out, TokenAt(starts, trailer.size()));
  return out;
}

Result<PromptTokens> PromptRenderer::Whole(const PromptArgs& args) const {
  const int n = static_cast<int>(args.messages.size());
  HOLDFAST_ASSIGN_OR_RETURN(Rendered all, Render(args, n, GenerationPrompt::kAdd));
  HOLDFAST_ASSIGN_OR_RETURN(PromptTokens out, Tokenise(args, 0, all, 0, {}));
  if (tokenizer_->add_bos() && tokenizer_->bos() != kNoToken) PutBos(tokenizer_->bos(), &out);
  return out;
}

Result<std::optional<PromptTokens>> PromptRenderer::After(const PromptArgs& args, int from,
                                                          TokenId last) const {
  const int n = static_cast<int>(args.messages.size());
  HOLDFAST_ASSIGN_OR_RETURN(Rendered all, Render(args, n, GenerationPrompt::kAdd));
  auto before = Render(args, from, GenerationPrompt::kOmit);
  if (!before.ok() || !all.text.starts_with(before->text)) return std::optional<PromptTokens>();
  std::string_view trailer = after_answer_;
  if (last != kNoToken && last == end_token_) {
    trailer.remove_prefix(tokenizer_->TokenText(last).size());
  }
  HOLDFAST_ASSIGN_OR_RETURN(PromptTokens out,
                            Tokenise(args, from, all, before->text.size(), trailer));
  return std::optional<PromptTokens>(std::move(out));
}

}  // namespace holdfast
