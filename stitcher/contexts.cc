#include "stitcher/contexts.h"

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <utility>

#include "engine/kv/layout.h"
#include "stitcher/isolated.h"

namespace holdfast {
namespace {

constexpr const char* kServices[] = {"auth", "billing", "search", "gateway", "mailer", "ledger",
                                     "catalog", "notifier", "scheduler", "uploader"};
constexpr const char* kLevels[] = {"INFO", "INFO", "INFO", "DEBUG", "WARN", "ERROR"};
constexpr const char* kEvents[] = {
    "request served", "cache refreshed", "connection reset by peer", "retrying after timeout",
    "token expired", "queue drained", "index rebuilt", "rate limit reached", "config reloaded",
    "slow query", "lease renewed", "checksum mismatch in block"};
constexpr const char* kNames[] = {"Alma", "Bruno", "Carla", "Dario", "Edith", "Felix", "Greta",
                                  "Hugo", "Ines", "Jonas", "Klara", "Leon", "Marta", "Nils"};
constexpr const char* kCities[] = {"Lisbon", "Oslo", "Graz", "Turin", "Ghent", "Malaga", "Riga",
                                   "Bergen", "Porto", "Krakow", "Delft", "Aarhus"};
constexpr const char* kThings[] = {"parser", "session store", "page cache", "router", "planner",
                                   "report", "invoice", "dashboard", "backup job", "test suite",
                                   "migration", "search index"};
constexpr const char* kVerbs[] = {"load", "merge", "split", "check", "render", "count", "filter",
                                  "sort", "write", "parse"};
constexpr const char* kProse[] = {
    "The team decided to move the %s to %s before the end of the quarter.",
    "When the %s failed last week, nobody in %s noticed for almost an hour.",
    "A new version of the %s is being tried in %s, and first results look good.",
    "The cost of the %s rose again; the office in %s asked for a plan to lower it.",
    "Documentation for the %s was written in %s and needs a second reader.",
    "Users in %s reported that the %s is slow in the morning."};
constexpr const char* kQuestions[] = {
    "Describe in a few sentences what the material above is about.",
    "Which problems do you see in the material above, and what should be done first?",
    "Summarise the last output and name the most important detail in it.",
    "Write a short status report from everything above.",
    "List the three most notable facts from the outputs above."};
constexpr const char* kTasks[] = {
    "Look through the files of the project and find out why the %s misbehaves.",
    "Please review what we know about the %s and collect the facts that matter.",
    "I need an overview of everything that touches the %s."};
constexpr const char* kSystem =
    "You are a careful assistant that works on a software project with the help of tools. Read "
    "what the tools return, keep to what it says, and answer briefly and precisely. If something "
    "was not said, say that you do not know.";
constexpr const char* kChunksIntro = "Here are some documents.\n\n";
constexpr const char* kChunksMark = "@@chunks@@";
constexpr int64_t kMaxSplices = 10;

std::string Format(const char* format, const std::string& a, const std::string& b = "") {
  char text[512];
  std::snprintf(text, sizeof(text), format, a.c_str(), b.c_str());
  return text;
}

std::string Number(SeededRandom* r, int64_t first, int64_t last) {
  return std::to_string(r->In(first, last));
}

std::string LogLine(SeededRandom* r) {
  char time[32];
  std::snprintf(time, sizeof(time), "%02d:%02d:%02d", static_cast<int>(r->Below(24)),
                static_cast<int>(r->Below(60)), static_cast<int>(r->Below(60)));
  const std::string level = r->Pick(kLevels), service = r->Pick(kServices);
  return std::string(time) + " " + level + " " + service + ": " + r->Pick(kEvents) + " (" +
         Number(r, 1, 900) + " ms)\n";
}

std::string TableLine(SeededRandom* r) {
  const std::string name = r->Pick(kNames), city = r->Pick(kCities);
  return name + "," + city + "," + Number(r, 18, 80) + "," + Number(r, 100, 9999) + "," +
         r->Pick(kServices) + "\n";
}

std::string JsonLine(SeededRandom* r) {
  const std::string service = r->Pick(kServices), city = r->Pick(kCities);
  return "  {\"service\": \"" + service + "\", \"region\": \"" + city + "\", \"replicas\": " +
         Number(r, 1, 9) + ", \"timeout_ms\": " + Number(r, 50, 5000) + "},\n";
}

std::string CodeLine(SeededRandom* r) {
  const std::string verb = r->Pick(kVerbs), service = r->Pick(kServices);
  return "def " + verb + "_" + service + "(items, limit=" + Number(r, 1, 99) +
         "):\n    rows = [x for x in items if x.size > " + Number(r, 1, 64) + "]\n    return " +
         r->Pick(kVerbs) + "(rows[:limit])\n\n";
}

std::string ListingLine(SeededRandom* r) {
  const std::string verb = r->Pick(kVerbs), service = r->Pick(kServices);
  return "-rw-r--r-- 1 " + std::string("dev dev ") + Number(r, 120, 90000) + " src/" + service +
         "/" + verb + "_" + Number(r, 1, 40) + ".py\n";
}

std::string ProseLine(SeededRandom* r) {
  const int64_t kind = r->Below(6);
  const std::string thing = r->Pick(kThings), city = r->Pick(kCities);
  const bool is_turned = kind == 5;
  return Format(kProse[kind], is_turned ? city : thing, is_turned ? thing : city) + " ";
}

using Line = std::string (*)(SeededRandom*);
constexpr Line kLines[] = {LogLine, TableLine, JsonLine, CodeLine, ListingLine, ProseLine};

// JSON's spelling of a string; other control characters do not come in.
std::string Quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else {
      if (c == '"' || c == '\\') out += '\\';
      out += c;
    }
  }
  return out + "\"";
}

void Append(const std::vector<TokenId>& more, std::vector<TokenId>* tokens) {
  tokens->insert(tokens->end(), more.begin(), more.end());
}

// Adds a run, joined to the one before where it goes on from it.
void AddRun(const TestRun& run, std::vector<TestRun>* runs) {
  if (!runs->empty()) {
    TestRun& last = runs->back();
    if (last.source == run.source && last.end == run.begin &&
        last.at + last.size() == run.at) {
      last.end = run.end;
      return;
    }
  }
  runs->push_back(run);
}

}  // namespace

const char* ContextEditName(ContextEdit edit) {
  static constexpr const char* kEditNames[] = {"A1", "A2", "A3", "A4", "A5", "B256", "B512",
                                               "B1024"};
  return kEditNames[static_cast<size_t>(edit)];
}

int64_t ChunkTokens(ContextEdit edit) {
  switch (edit) {
    case ContextEdit::kChunks256: return 256;
    case ContextEdit::kChunks512: return 512;
    case ContextEdit::kChunks1024: return 1024;
    default: return 0;
  }
}

CardKind KindOf(ContextEdit edit) {
  return ChunkTokens(edit) > 0 ? CardKind::kIsolated : CardKind::kInContext;
}

uint64_t SeededRandom::Next() {
  uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// ---- Text.

int64_t ContextMaker::CountTokens(const std::string& text) const {
  const auto tokens = tokenizer_.EncodePlain(text);
  return tokens.ok() ? static_cast<int64_t>(tokens->size()) : 0;
}

// From anywhere on; where the text ends, what is missing comes from before.
std::vector<std::string> ContextMaker::Lines(const TextFile& text, int64_t tokens,
                                             SeededRandom* random) const {
  const auto count = static_cast<int64_t>(text.lines.size());
  int64_t begin = random->Below(count), end = begin;
  for (int64_t n = 0; n < tokens && end - begin < count;) {
    n += CountTokens(text.lines[end < count ? end++ : --begin]);
  }
  return {text.lines.begin() + begin, text.lines.begin() + end};
}

std::vector<std::string> ContextMaker::MadeUpLines(int64_t tokens, SeededRandom* random) const {
  const Line line = kLines[random->Below(std::size(kLines))];
  std::vector<std::string> lines;
  for (int64_t n = 0; n < tokens;) {
    lines.push_back(line(random));
    n += CountTokens(lines.back());
  }
  return lines;
}

ToolOutput ContextMaker::OutputOf(int64_t tokens, const std::vector<std::string>& facts,
                                  SeededRandom* random) const {
  ToolOutput out;
  std::vector<std::string> lines;
  if (texts_.empty()) {
    const std::string service = random->Pick(kServices);
    out.file = "src/" + service + "/notes_" + Number(random, 1, 99) + ".txt";
    lines = MadeUpLines(tokens, random);
  } else {
    const TextFile& text = *texts_[random->Below(static_cast<int64_t>(texts_.size()))];
    out.file = text.path;
    lines = Lines(text, tokens, random);
  }
  for (const std::string& fact : facts) {  // neither first nor last
    const auto at = 1 + random->Below(std::max<int64_t>(1, static_cast<int64_t>(lines.size()) - 1));
    lines.insert(lines.begin() + at, fact + "\n");
  }
  out.text = std::accumulate(lines.begin(), lines.end(), std::string());
  return out;
}

Result<std::vector<TokenId>> ContextMaker::ChunkOf(int64_t tokens,
                                                   const std::vector<std::string>& facts,
                                                   SeededRandom* random) const {
  // Facts go into the first three quarters, so that the cut at the end leaves them whole.
  std::string text = "Document " + std::to_string(random->In(100, 999)) + ":\n";
  text += OutputOf(tokens / 2, facts, random).text + "\n";
  while (CountTokens(text) < tokens) text += OutputOf(tokens / 4 + 8, {}, random).text + "\n";
  HOLDFAST_ASSIGN_OR_RETURN(std::vector<TokenId> out, tokenizer_.EncodePlain(text));
  out.resize(tokens);
  return out;
}

TestMessage CallFor(const ToolOutput& output) {
  return {"assistant", "I will read " + output.file + " next."};
}

std::vector<TestMessage> AgentHistory(const std::vector<ToolOutput>& outputs,
                                      SeededRandom* random) {
  const std::string task = random->Pick(kTasks);
  std::vector<TestMessage> messages = {
      {"system", kSystem}, {"user", Format(task.c_str(), random->Pick(kThings))}};
  for (const ToolOutput& output : outputs) {
    messages.push_back(CallFor(output));
    messages.push_back({"tool", output.text});
  }
  messages.push_back({"assistant", "I have read these files. They tell about the " +
                                       std::string(random->Pick(kThings)) + " and the " +
                                       random->Pick(kThings) +
                                       ". Tell me what you want to know about them, and I will "
                                       "look it up in what the tools returned."});
  return messages;
}

// ---- Rendering.

Result<std::unique_ptr<ContextMaker>> ContextMaker::Create(const Model& model,
                                                           std::span<const TextFile> texts) {
  const Tokenizer& tokenizer = model.tokenizer();
  if (model.chat_template().empty()) {
    return Status::Invalid("contexts: the model has no chat template");
  }
  std::unique_ptr<ContextMaker> maker(new ContextMaker(tokenizer));
  for (const TextFile& text : texts) {
    const auto takes = [&](const std::string& line) { return tokenizer.EncodePlain(line).ok(); };
    if (std::all_of(text.lines.begin(), text.lines.end(), takes)) maker->texts_.push_back(&text);
  }
  if (!texts.empty() && maker->texts_.empty()) {
    return Status::Invalid("contexts: no text of " + std::to_string(texts.size()) + " is UTF-8");
  }
  ChatTemplateSpec spec;
  spec.source = model.chat_template();
  if (tokenizer.bos() != kNoToken) spec.bos_text = tokenizer.TokenText(tokenizer.bos());
  if (tokenizer.eos() != kNoToken) spec.eos_text = tokenizer.TokenText(tokenizer.eos());
  spec.special_texts = tokenizer.SpecialTexts();
  if (tokenizer.add_bos()) maker->bos_text_ = spec.bos_text;
  HOLDFAST_ASSIGN_OR_RETURN(maker->template_, ChatTemplate::Create(spec));
  return maker;
}

Result<std::string> ContextMaker::Render(const std::vector<TestMessage>& messages,
                                         GenerationPrompt prompt) const {
  for (const bool has_tools : {true, false}) {  // some templates know no tool role
    std::string json = "[";
    for (const TestMessage& m : messages) {
      const std::string role = m.role == "tool" && !has_tools ? "user" : m.role;
      if (json.size() > 1) json += ',';
      json += "{\"role\":";
      json += Quoted(role);
      json += ",\"content\":";
      json += Quoted(m.content);
      json += '}';
    }
    json += "]";
    RenderArgs args;
    args.messages_json = json;
    args.generation_prompt = prompt;
    auto rendered = template_->Render(args);
    if (rendered.ok()) return std::move(rendered->text);
    if (!has_tools) return rendered.status();
  }
  return Status::Invalid("contexts: not rendered");
}

Result<std::vector<std::vector<TokenId>>> ContextMaker::Pieces(
    const std::vector<TestMessage>& messages) const {
  std::vector<std::vector<TokenId>> pieces;
  std::string before;
  std::vector<TestMessage> some;
  for (size_t i = 0; i < messages.size(); ++i) {
    some.push_back(messages[i]);
    const bool is_last = i + 1 == messages.size();
    HOLDFAST_ASSIGN_OR_RETURN(
        std::string text,
        Render(some, is_last ? GenerationPrompt::kAdd : GenerationPrompt::kOmit));
    if (!text.starts_with(before)) {
      return Status::Invalid("contexts: the chat template renders message " + std::to_string(i) +
                             " differently when others follow");
    }
    HOLDFAST_ASSIGN_OR_RETURN(pieces.emplace_back(), tokenizer_.Encode(text.substr(before.size())));
    before = std::move(text);
  }
  if (!bos_text_.empty() && !before.starts_with(bos_text_)) {
    pieces[0].insert(pieces[0].begin(), tokenizer_.bos());
  }
  return pieces;
}

// ---- Contexts.

Result<TestContext> ContextMaker::History(const std::vector<TestMessage>& messages,
                                          const std::vector<TestMessage>& fresh,
                                          const std::vector<int>& order,
                                          const std::string& question) const {
  TestContext context;
  // The old prompt goes on behind the history, so that all of that lies in whole pages.
  std::vector<TestMessage> old = messages, now;
  old.push_back({"user", "Thank you. Please wait until I have thought about what to ask next; it "
                         "will be about one of the files that you have just read for me."});
  const auto known = static_cast<int>(messages.size());
  for (const int i : order) now.push_back(i < known ? messages[i] : fresh[i - known]);
  now.push_back({"user", question});
  HOLDFAST_ASSIGN_OR_RETURN(const auto old_pieces, Pieces(old));
  HOLDFAST_ASSIGN_OR_RETURN(const auto pieces, Pieces(now));
  std::vector<int64_t> begin;  // of each old piece
  context.sources.emplace_back();
  for (const auto& piece : old_pieces) {
    begin.push_back(static_cast<int64_t>(context.sources[0].size()));
    Append(piece, &context.sources[0]);
  }
  bool is_exact = true;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto at = static_cast<int64_t>(context.tokens.size());
    const auto size = static_cast<int64_t>(pieces[i].size());
    const int from = i < order.size() ? order[i] : known;
    const bool is_known = from < known && pieces[i] == old_pieces[from];
    is_exact = is_exact && is_known && from == static_cast<int>(i);
    Append(pieces[i], &context.tokens);
    if (is_exact) {
      context.exact = at + size;
    } else if (is_known) {
      AddRun({0, begin[from], begin[from] + size, at}, &context.runs);
    }
    if (i + 1 == pieces.size()) context.question = at;
  }
  return context;
}

Result<TestContext> ContextMaker::Chunks(const std::vector<std::vector<TokenId>>& chunks,
                                         const std::string& question) const {
  TestContext context;
  context.kind = CardKind::kIsolated;
  const std::string content = std::string(kChunksIntro) + kChunksMark + "\n\n" + question;
  HOLDFAST_ASSIGN_OR_RETURN(
      std::string text,
      Render({{"system", kSystem}, {"user", content}}, GenerationPrompt::kAdd));
  const size_t mark = text.find(kChunksMark);
  if (mark == std::string::npos) return Status::Invalid("contexts: the template alters content");
  if (!bos_text_.empty() && !text.starts_with(bos_text_)) {
    context.tokens.push_back(tokenizer_.bos());
  }
  HOLDFAST_ASSIGN_OR_RETURN(const auto head, tokenizer_.Encode(text.substr(0, mark)));
  HOLDFAST_ASSIGN_OR_RETURN(
      const auto tail, tokenizer_.Encode(text.substr(mark + std::string_view(kChunksMark).size())));
  Append(head, &context.tokens);
  context.exact = static_cast<int64_t>(context.tokens.size());
  const std::vector<TokenId> filler(kPageTokens, tail.back());  // for whole pages
  Append(filler, &context.sources.emplace_back(context.tokens));
  HOLDFAST_ASSIGN_OR_RETURN(const auto before, IsolatedPrefix(tokenizer_, *template_, "user"));
  const auto begin = static_cast<int64_t>(before.size());
  for (const auto& chunk : chunks) {  // runs of consecutive chunks are not joined
    const auto size = static_cast<int64_t>(chunk.size());
    const auto at = static_cast<int64_t>(context.tokens.size());
    context.runs.push_back({static_cast<int>(context.sources.size()), begin, begin + size, at});
    auto& source = context.sources.emplace_back(before);
    Append(chunk, &source);
    Append(filler, &source);
    Append(chunk, &context.tokens);
  }
  context.question = static_cast<int64_t>(context.tokens.size());
  Append(tail, &context.tokens);
  return context;
}

Result<TestContext> ContextMaker::Make(ContextEdit edit, uint64_t seed) const {
  SeededRandom random(seed * 64 + static_cast<uint64_t>(edit));
  random.Next();
  const std::string question = random.Pick(kQuestions);
  if (const int64_t size = ChunkTokens(edit); size > 0) {
    const int64_t most = std::min<int64_t>(kMaxSplices + 1, 3072 / size);
    std::vector<std::vector<TokenId>> chunks;
    for (int64_t n = random.In(2, most); n > 0; --n) {
      HOLDFAST_ASSIGN_OR_RETURN(chunks.emplace_back(), ChunkOf(size, {}, &random));
    }
    return Chunks(chunks, question);
  }
  const bool is_thin = edit == ContextEdit::kThin;
  const bool is_short = is_thin || random.Below(3) == 0;  // outputs of a history are of one kind
  const auto output = [&] {
    return OutputOf(is_short ? random.In(70, 200) : random.In(200, 600), {}, &random);
  };
  std::vector<ToolOutput> outputs;
  const int n = static_cast<int>(is_thin ? random.In(6, 20) : random.In(3, 5));
  for (int i = 0; i < n; ++i) outputs.push_back(output());
  const auto messages = AgentHistory(outputs, &random);
  const ToolOutput more = output();
  const std::vector<TestMessage> fresh = {CallFor(more), {"tool", more.text}};
  const auto known = static_cast<int>(messages.size());
  std::vector<std::pair<int, int>> outputs_now;  // call and output, as indices of messages
  for (int i = 0; i < n; ++i) {
    const std::pair<int, int> place{kHistoryHead + 2 * i, kHistoryHead + 2 * i + 1};
    const bool is_gone = (edit == ContextEdit::kDelete && i == 0) || (is_thin && i % 2 == 0);
    if (edit == ContextEdit::kInsert && i == 0) outputs_now.push_back({known, known + 1});
    if (!is_gone) outputs_now.push_back(place);
  }
  if (edit == ContextEdit::kReplace) outputs_now.front().second = known + 1;
  if (edit == ContextEdit::kSwap) std::swap(outputs_now.front(), outputs_now.back());
  std::vector<int> order = {0, 1};
  for (const auto& [call, result] : outputs_now) {
    order.push_back(call);
    order.push_back(result);
  }
  order.push_back(known - 1);
  return History(messages, fresh, order, question);
}

}  // namespace holdfast
