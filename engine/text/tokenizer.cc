// Tokenizer and StreamDecoder. A GGUF file leaves things unsaid that every reader must agree on:
// which tokens end generation, and which tokens are special although the file calls them normal.
// llama.cpp settled both by lists of well-known literals; models are published against it, so the
// same literals mean the same here.
#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <unordered_map>

#include "engine/text/bridge.h"

namespace holdfast {
namespace {

constexpr size_t kTokensMax = size_t{1} << 22;
constexpr std::string_view kRulesVersion = "tokenizer-1";

constexpr std::string_view kEndLiterals[] = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<｜end▁of▁sentence｜>", "[e~["};

// Parts of fill-in-the-middle prompts: control tokens whatever the file says; some end generation.
struct FimRole {
  bool ends;
  std::vector<std::string_view> literals;
};

const std::vector<FimRole>& FimRoles() {
  static const std::vector<FimRole> roles = {
      {false, {"<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>",
               "▁<PRE>", "<|code_prefix|>", "<|prefix|>"}},
      {false, {"<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>",
               "▁<SUF>", "<|code_suffix|>", "<|suffix|>"}},
      {false, {"<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>",
               "▁<MID>", "<|code_middle|>", "<|middle|>"}},
      {true, {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"}},
      {true, {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"}},
      {true, {"<|file_sep|>"}}};
  return roles;
}

bool IsControl(TokenType type) {
  return type == TokenType::kControl || type == TokenType::kUnknown;
}

// Code point to byte for the letters of byte-level vocabularies; -1 for other code points.
std::array<int16_t, 512> ByteOfLetter() {
  std::array<int16_t, 512> bytes;
  bytes.fill(-1);
  int next = 256;
  for (int b = 0; b < 256; ++b) {
    bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    bytes[printable ? b : next++] = static_cast<int16_t>(b);
  }
  return bytes;
}

// The bytes that a byte-level spelling stands for; characters that are no such letter stay.
std::string DecodeLetters(std::string_view spelled, const std::array<int16_t, 512>& byte_of) {
  std::string out;
  for (size_t i = 0; i < spelled.size(); ++i) {
    auto c = static_cast<uint8_t>(spelled[i]);
    int letter = c;
    bool two = (c & 0xe0) == 0xc0 && i + 1 < spelled.size();
    if (two) letter = (c & 0x1f) << 6 | (static_cast<uint8_t>(spelled[i + 1]) & 0x3f);
    int byte = (c < 0x80 || two) && letter < 512 ? byte_of[letter] : -1;
    if (byte >= 0) {
      out += static_cast<char>(byte);
      i += two;
    } else {
      out += spelled[i];
    }
  }
  return out;
}

// "<0x0A>" to byte 10; -1 for what is no such spelling.
int ByteOfSpelling(std::string_view spelled) {
  unsigned byte = 0;
  if (spelled.size() != 6 || !spelled.starts_with("<0x") || spelled[5] != '>') return -1;
  const char* end = spelled.data() + 5;
  const auto parsed = std::from_chars(end - 2, end, byte, 16);
  return parsed.ec == std::errc() && parsed.ptr == end ? static_cast<int>(byte) : -1;
}

// What a token of a "llama" vocabulary stands for.
std::string DecodePiece(std::string_view spelled, TokenType type) {
  constexpr std::string_view kBlank = "\xe2\x96\x81";
  if (type == TokenType::kByte) {
    const int byte = ByteOfSpelling(spelled);
    return byte >= 0 ? std::string(1, static_cast<char>(byte)) : std::string(spelled);
  }
  std::string out;
  for (size_t at = 0; at < spelled.size();) {
    const bool blank = spelled.substr(at).starts_with(kBlank);
    out += blank ? ' ' : spelled[at];
    at += blank ? kBlank.size() : 1;
  }
  return out;
}

Status CheckSpec(const TokenizerSpec& spec) {
  if (spec.model != "gpt2" && spec.model != "llama") {
    return Status::Invalid("tokenizer: unknown model '" + spec.model + "'");
  }
  size_t n = spec.tokens.size();
  if (n == 0 || n > kTokensMax) {
    return Status::Invalid("tokenizer: " + std::to_string(n) + " tokens");
  }
  if (!spec.scores.empty() && spec.scores.size() != n) {
    return Status::Invalid("tokenizer: " + std::to_string(spec.scores.size()) + " scores for " +
                           std::to_string(n) + " tokens");
  }
  if (!spec.types.empty() && spec.types.size() != n) {
    return Status::Invalid("tokenizer: " + std::to_string(spec.types.size()) + " types for " +
                           std::to_string(n) + " tokens");
  }
  for (TokenId id : {spec.bos, spec.eos, spec.eot, spec.eom, spec.unk, spec.pad}) {
    if (id < kNoToken || id >= static_cast<TokenId>(n)) {
      return Status::Invalid("tokenizer: special token id " + std::to_string(id) +
                             " is out of range");
    }
  }
  return {};
}

using IdByText = std::unordered_map<std::string_view, TokenId>;

// Corrects `types` and returns the tokens that end generation, ascending.
std::vector<TokenId> SettleSpecials(const TokenizerSpec& spec, const IdByText& ids,
                                    std::vector<TokenType>* types) {
  std::vector<TokenId> ends;
  auto find = [&](std::string_view literal) {
    auto it = ids.find(literal);
    return it == ids.end() ? kNoToken : it->second;
  };
  auto has = [&](std::string_view literal) { return find(literal) != kNoToken; };
  for (const FimRole& role : FimRoles()) {
    TokenId first = kNoToken;
    for (std::string_view literal : role.literals) {
      TokenId id = find(literal);
      if (id != kNoToken && (first == kNoToken || id < first)) first = id;
    }
    if (first == kNoToken) continue;
    (*types)[first] = TokenType::kControl;
    if (role.ends) ends.push_back(first);
  }
  for (std::string_view literal : kEndLiterals) {
    TokenId id = find(literal);
    if (id == kNoToken) continue;
    (*types)[id] = TokenType::kControl;
    ends.push_back(id);
  }
  for (std::string_view literal : {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"}) {
    if (has(literal)) (*types)[find(literal)] = TokenType::kUserDefined;
  }
  for (TokenId id : {spec.eos, spec.eot, spec.eom}) {
    if (id != kNoToken) ends.push_back(id);
  }
  // Where a turn has ends of its own, these literals are ordinary parts of it.
  bool harmony = (has("<|return|>") && has("<|call|>")) ||
                 ((has("<|call|>") || has("<|calls|>")) && has("<|flush|>"));
  if (harmony && has("<|end|>")) {
    std::erase(ends, find("<|end|>"));
    (*types)[find("<|end|>")] = TokenType::kUserDefined;
  }
  if ((has("<|tool_response>") || spec.eos == find("<|plamo:eos|>")) && has("</s>") &&
      spec.eos != kNoToken) {
    std::erase(ends, find("</s>"));
    (*types)[find("</s>")] = TokenType::kNormal;
  }
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  return ends;
}

bool DefaultAddBos(const TokenizerSpec& spec) {
  if (spec.model == "llama") return true;
  for (std::string_view p : {"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"}) {
    if (spec.pre == p) return true;
  }
  return false;
}

Digest DigestOf(const TokenizerSpec& spec, const std::vector<std::string>& spelled,
                const std::vector<TokenType>& types) {
  Hasher hasher(kRulesVersion);
  hasher.Text(spec.model).Text(spec.pre).U64(spelled.size());
  for (const std::string& token : spelled) hasher.Text(token);
  hasher.Values(std::span<const TokenType>(types)).U64(spec.merges.size());
  for (const std::string& merge : spec.merges) hasher.Text(merge);
  if (spec.model == "llama") {
    hasher.Values(std::span<const float>(spec.scores)).U64(spec.add_space_prefix);
  }
  return hasher.Finish();
}

Result<TokenizerHandle> NewHandle(const TokenizerSpec& spec,
                                  const std::vector<std::string>& spelled,
                                  const std::vector<HfSpecial>& specials) {
  const std::vector<HfSlice> tokens = AsSlices(spelled), merges = AsSlices(spec.merges);
  HfTokenizer* handle = nullptr;
  ForeignBytes err;
  const int32_t code =
      spec.model == "llama"
          ? hf_tokenizer_new_spm(tokens.data(), tokens.size(), spec.scores.data(),
                                 spec.scores.size(), spec.add_space_prefix, specials.data(),
                                 specials.size(), &handle, err.out())
          : hf_tokenizer_new(AsSlice(spec.pre), tokens.data(), tokens.size(), merges.data(),
                             merges.size(), specials.data(), specials.size(), &handle, err.out());
  HOLDFAST_RETURN_IF_ERROR(AsStatus(code, err));
  return TokenizerHandle(handle);
}

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

Result<std::unique_ptr<Tokenizer>> Tokenizer::Create(const TokenizerSpec& spec) {
  HOLDFAST_RETURN_IF_ERROR(CheckSpec(spec));
  std::vector<std::string> spelled = spec.tokens;
  IdByText ids;
  for (size_t i = 0; i < spelled.size(); ++i) {
    if (spelled[i].empty()) spelled[i] = "[EMPTY_" + std::to_string(i) + "]";
    ids[spelled[i]] = static_cast<TokenId>(i);
  }
  auto impl = std::make_unique<Impl>();
  impl->types.assign(spelled.size(), TokenType::kNormal);
  for (size_t i = 0; i < spec.types.size(); ++i) {
    impl->types[i] = static_cast<TokenType>(spec.types[i]);
  }
  impl->ends = SettleSpecials(spec, ids, &impl->types);
  impl->bos = spec.bos;
  impl->eos = spec.eos;
  impl->add_bos = spec.bos != kNoToken && spec.add_bos.value_or(DefaultAddBos(spec));
  impl->digest = DigestOf(spec, spelled, impl->types);

  const bool is_spm = spec.model == "llama";
  std::vector<HfSpecial> specials;
  const std::array<int16_t, 512> byte_of = ByteOfLetter();
  for (size_t i = 0; i < spelled.size(); ++i) {
    TokenType type = impl->types[i];
    bool literal = IsControl(type) || type == TokenType::kUserDefined;
    impl->texts.push_back(literal  ? spelled[i]
                          : is_spm ? DecodePiece(spelled[i], type)
                                   : DecodeLetters(spelled[i], byte_of));
    if (!literal) continue;
    specials.push_back({static_cast<uint32_t>(i), IsControl(type), AsSlice(spelled[i])});
  }
  for (size_t i = 0; i < impl->texts.size(); ++i) {
    impl->by_text.emplace_back(impl->texts[i], static_cast<TokenId>(i));
  }
  std::sort(impl->by_text.begin(), impl->by_text.end());
  HOLDFAST_ASSIGN_OR_RETURN(impl->handle, NewHandle(spec, spelled, specials));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(impl)));
}

Result<std::vector<TokenId>> Tokenizer::Encode(std::string_view text,
                                               std::span<const PlainRange> plain) const {
  std::vector<HfRange> ranges;
  size_t at = 0;
  for (const PlainRange& range : plain) {
    if (range.begin < at || range.end < range.begin || range.end > text.size()) {
      return Status::Invalid("encode: plain ranges must be ascending, disjoint and in the text");
    }
    at = range.end;
    if (range.begin < range.end) ranges.push_back({range.begin, range.end});
  }
  ForeignBytes ids, err;
  int32_t code = hf_tokenizer_encode(impl_->handle.get(), AsSlice(text), ranges.data(),
                                     ranges.size(), ids.out(), err.out());
  HOLDFAST_RETURN_IF_ERROR(AsStatus(code, err));
  return ids.values<TokenId>();
}

Result<std::vector<TokenId>> Tokenizer::EncodePlain(std::string_view text) const {
  PlainRange all{0, text.size()};
  return Encode(text, {&all, 1});
}

const std::string& Tokenizer::TokenText(TokenId id) const {
  static const std::string none;
  return id >= 0 && static_cast<size_t>(id) < impl_->texts.size() ? impl_->texts[id] : none;
}

size_t Tokenizer::vocab_size() const { return impl_->texts.size(); }

bool Tokenizer::IsSpecial(TokenId id) const {
  return id >= 0 && static_cast<size_t>(id) < impl_->types.size() && IsControl(impl_->types[id]);
}

TokenId Tokenizer::FindToken(std::string_view text) const {
  auto it = std::lower_bound(impl_->by_text.begin(), impl_->by_text.end(),
                             std::pair<std::string_view, TokenId>(text, kNoToken));
  return it != impl_->by_text.end() && it->first == text ? it->second : kNoToken;
}

TokenId Tokenizer::bos() const { return impl_->bos; }
TokenId Tokenizer::eos() const { return impl_->eos; }
bool Tokenizer::add_bos() const { return impl_->add_bos; }
std::span<const TokenId> Tokenizer::end_of_generation() const { return impl_->ends; }
bool Tokenizer::IsEndOfGeneration(TokenId id) const {
  return std::binary_search(impl_->ends.begin(), impl_->ends.end(), id);
}
const Digest& Tokenizer::digest() const { return impl_->digest; }

std::vector<std::string> Tokenizer::SpecialTexts() const {
  std::vector<std::string> texts;
  for (size_t i = 0; i < impl_->types.size(); ++i) {
    if (IsControl(impl_->types[i])) texts.push_back(impl_->texts[i]);
  }
  return texts;
}

StreamDecoder::StreamDecoder(const Tokenizer* tokenizer, Specials specials)
    : tokenizer_(tokenizer), specials_(specials) {}

namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

// How many bytes the character that begins with `lead` has; 0 where none can begin so.
size_t CharacterBytes(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead <= 0xdf) return 2;
  if (lead >= 0xe0 && lead <= 0xef) return 3;
  return lead >= 0xf0 && lead <= 0xf4 ? 4 : 0;
}

// Whether `next` may be the second byte after `lead` (no overlong form, surrogate, or > U+10FFFF).
bool SecondFits(uint8_t lead, uint8_t next) {
  uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  return next >= low && next <= high;
}

// How many bytes of `s` from `at` are a character or the beginning of one; 0: not even the first.
size_t GoodPrefix(std::string_view s, size_t at) {
  auto lead = static_cast<uint8_t>(s[at]);
  size_t want = CharacterBytes(lead), good = want > 0;
  while (good > 0 && good < want && at + good < s.size()) {
    auto next = static_cast<uint8_t>(s[at + good]);
    if (good == 1 ? !SecondFits(lead, next) : (next & 0xc0) != 0x80) break;
    ++good;
  }
  return good;
}

}  // namespace

std::string StreamDecoder::Push(TokenId id) {
  if (specials_ == Specials::kHide && tokenizer_->IsSpecial(id)) return Flush();
  std::string bytes = std::move(held_) + tokenizer_->TokenText(id);
  held_.clear();
  std::string out;
  for (size_t at = 0; at < bytes.size();) {
    size_t good = GoodPrefix(bytes, at);
    bool whole = good > 0 && good == CharacterBytes(static_cast<uint8_t>(bytes[at]));
    if (!whole && good > 0 && at + good == bytes.size()) {
      held_ = bytes.substr(at);
      break;
    }
    out += whole ? std::string_view(bytes).substr(at, good) : kReplacement;
    at += std::max<size_t>(good, 1);
  }
  return out;
}

std::string StreamDecoder::Flush() {
  bool any = !held_.empty();
  held_.clear();
  return any ? std::string(kReplacement) : std::string();
}

}  // namespace holdfast
