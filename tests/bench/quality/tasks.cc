#include "tests/bench/quality/tasks.h"

#include <algorithm>
#include <iterator>
#include <numeric>

namespace holdfast {
namespace {

constexpr int kAnswer = 40;         // tokens
constexpr int kOutputs = 4;         // of a history, and chunks
constexpr int64_t kOutputTokens = 300;
constexpr int64_t kChunk = 512;
constexpr const char* kPlaces[] = {"Lisbon", "Oslo", "Graz", "Turin", "Ghent", "Malaga", "Riga"};
constexpr const char* kPeople[] = {"Alma", "Bruno", "Carla", "Dario", "Edith", "Felix"};

// What is asked, and the facts that the answer rests on. Fact i goes into output or chunk
// i + 1 (mod those there are), never into the first, which the edit of a history removes.
struct Question {
  std::vector<std::string> facts, expected;
  std::string text;
  // Histories only: a fact of the first output, which the edit removes or replaces by `instead`.
  std::string removed, instead;
  bool is_abstention = false;  // expected must not occur
};

std::string Code(SeededRandom* r) { return std::to_string(r->In(10000, 99999)); }

std::string CodeFact(const std::string& place, const std::string& code) {
  return "The access code for " + place + " is " + code + ".";
}

Question OneKey(SeededRandom* r) {
  const std::string place = r->Pick(kPlaces), code = Code(r);
  return {{CodeFact(place, code)}, {code}, "What is the access code for " + place +
          "? Answer with the code only.", "", ""};
}

Question ManyKeys(SeededRandom* r) {
  Question q;
  const int asked = static_cast<int>(r->Below(5));
  for (int i = 0; i < 5; ++i) {
    const std::string code = Code(r);
    q.facts.push_back(CodeFact(kPlaces[i], code));
    if (i == asked) q.expected = {code};
  }
  q.text = std::string("What is the access code for ") + kPlaces[asked] +
           "? Answer with the code only.";
  return q;
}

Question ManyValues(SeededRandom* r) {
  Question q;
  const std::string place = r->Pick(kPlaces);
  for (int i = 0; i < 3; ++i) {
    q.expected.push_back(Code(r));
    q.facts.push_back("One of the access codes for " + place + " is " + q.expected.back() + ".");
  }
  q.text = "List the three access codes for " + place + ".";
  return q;
}

Question Variables(SeededRandom* r) {
  const std::string code = Code(r);
  return {{"VAR X1 = " + code, "VAR X2 = VAR X1", "VAR X3 = VAR X2"}, {code},
          "Which number does VAR X3 hold? Answer with the number only.", "", ""};
}

Question TwoHops(SeededRandom* r) {
  const std::string place = r->Pick(kPlaces), who = r->Pick(kPeople), code = Code(r);
  return {{who + " works in the office in " + place + ".",
           "The office in " + place + " uses the access code " + code + "."},
          {code},
          "Which access code does the office of " + who + " use? Answer with the code only.",
          "", ""};
}

// The answer follows from what was replaced above and from text below that stayed as it was.
Question DerivedEdit(SeededRandom* r) {
  const std::string before = Code(r), after = Code(r), who = r->Pick(kPeople);
  return {{"The order of " + who + " is charged at the standard price."}, {after},
          "What does the order of " + who + " cost? Answer with the number only.",
          "The standard price is " + before + ".", "The standard price is " + after + "."};
}

Question Copy(SeededRandom* r) {
  std::string sum;
  for (int i = 0; i < 4; ++i) {
    if (i > 0) sum += '-';
    sum += std::to_string(r->In(1000, 9999));
  }
  return {{"Checksum entry: " + sum}, {sum},
          "Repeat the line that begins with 'Checksum entry' exactly.", "", ""};
}

Question Abstention(SeededRandom* r) {
  const std::string place = r->Pick(kPlaces), code = Code(r);
  return {{"The office in " + place + " opens at nine."}, {code},
          "What is the access code for " + place + "? If it is not known, say so.",
          CodeFact(place, code), "", true};
}

Question ToolCall(SeededRandom* r) {
  const std::string who = r->Pick(kPeople), path = "data/set_" + std::to_string(r->In(100, 999)) +
                                                   "/rows.csv";
  return {{"The measurements of " + who + " are in the file " + path + "."},
          {"\"read_file\"", "\"" + path + "\""},
          "Call the tool read_file with the file of the measurements of " + who +
              ". Answer only with JSON of the form {\"name\": \"read_file\", \"arguments\": "
              "{\"path\": \"...\"}}.",
          "", ""};
}

struct Category {
  const char* name;
  Question (*make)(SeededRandom*);
  bool wants_history;  // makes no sense for chunks
};
constexpr Category kCategories[] = {
    {"one key", OneKey, false},         {"many keys", ManyKeys, false},
    {"many values", ManyValues, false}, {"variable tracking", Variables, false},
    {"two hops", TwoHops, false},       {"derived edit", DerivedEdit, true},
    {"verbatim copy", Copy, false},     {"abstention", Abstention, true},
    {"tool call", ToolCall, false}};

std::vector<std::vector<std::string>> Spread(const Question& q) {
  std::vector<std::vector<std::string>> facts(kOutputs);
  for (size_t i = 0; i < q.facts.size(); ++i) {
    facts[1 + i % (kOutputs - 1)].push_back(q.facts[i]);
  }
  return facts;
}

Result<TestContext> HistoryOf(const ContextMaker& maker, const Question& q, SeededRandom* random) {
  auto facts = Spread(q);
  if (!q.removed.empty()) facts[0].push_back(q.removed);
  std::vector<ToolOutput> outputs;
  for (const auto& f : facts) outputs.push_back(maker.OutputOf(kOutputTokens, f, random));
  const auto messages = AgentHistory(outputs, random);
  std::vector<int> order(messages.size());
  std::iota(order.begin(), order.end(), 0);
  std::vector<TestMessage> fresh;
  if (q.instead.empty()) {
    order.erase(order.begin() + kHistoryHead, order.begin() + kHistoryHead + 2);
  } else {
    fresh.push_back({"tool", maker.OutputOf(kOutputTokens, {q.instead}, random).text});
    order[kHistoryHead + 1] = static_cast<int>(messages.size());
  }
  return maker.History(messages, fresh, order, q.text);
}

Result<TestContext> ChunksOf(const ContextMaker& maker, const Question& q, SeededRandom* random) {
  std::vector<std::vector<TokenId>> chunks;
  for (const auto& f : Spread(q)) {
    HOLDFAST_ASSIGN_OR_RETURN(chunks.emplace_back(), maker.ChunkOf(kChunk, f, random));
  }
  return maker.Chunks(chunks, q.text);
}

double Score(const Question& q, const std::string& answer) {
  double found = 0;
  for (const std::string& e : q.expected) found += answer.find(e) != std::string::npos;
  const double share = found / static_cast<double>(q.expected.size());
  return q.is_abstention ? 1 - share : share;
}

std::string TextOf(const Tokenizer& tokenizer, const std::vector<TokenId>& tokens) {
  StreamDecoder decoder(&tokenizer);
  std::string text;
  for (const TokenId t : tokens) text += decoder.Push(t);
  return text + decoder.Flush();
}

std::vector<ReuseMethod> TaskMethods() {
  auto methods = StandardMethods();
  std::erase_if(methods, [](const ReuseMethod& m) {
    return m.name != "rot" && m.name != "link32" && m.name != "link128" &&
           m.name != "link32+win20" && m.name != "rand20";
  });
  return methods;
}

Status RunOne(TrialRunner& runner, const Tokenizer& tokenizer, const TestContext& context,
              const Question& q, TaskResult result, const TaskOptions& options) {
  HOLDFAST_RETURN_IF_ERROR(runner.Begin(context, kAnswer));
  result.full_score = result.score = Score(q, TextOf(tokenizer, runner.answer()));
  result.method = "full";
  result.answer = TextOf(tokenizer, runner.answer());
  result.rows = 1;
  options.on_result(result);
  for (const ReuseMethod& method : TaskMethods()) {
    if (options.go_on && !options.go_on()) return {};
    HOLDFAST_ASSIGN_OR_RETURN(const auto tokens, runner.Answer(method, kAnswer));
    result.method = method.name;
    result.answer = TextOf(tokenizer, tokens);
    result.score = Score(q, result.answer);
    options.on_result(result);
  }
  return {};
}

}  // namespace

Status RunTasks(Model& model, const TaskOptions& options) {
  HOLDFAST_ASSIGN_OR_RETURN(const auto maker, ContextMaker::Create(model, options.texts));
  TrialRunner runner(model, nullptr, 4096);
  for (int i = 0; i < options.instances; ++i) {
    const uint64_t seed = options.first_seed + static_cast<uint64_t>(i);
    for (size_t c = 0; c < std::size(kCategories); ++c) {
      for (const bool is_history : {true, false}) {
        if (!is_history && kCategories[c].wants_history) continue;
        if (options.go_on && !options.go_on()) return {};
        SeededRandom random(seed * 1000 + c);
        const Question q = kCategories[c].make(&random);
        HOLDFAST_ASSIGN_OR_RETURN(const TestContext context,
                                  is_history ? HistoryOf(*maker, q, &random)
                                             : ChunksOf(*maker, q, &random));
        TaskResult result;
        result.category = kCategories[c].name;
        result.edit = is_history ? "A" : "B512";
        result.seed = seed;
        HOLDFAST_RETURN_IF_ERROR(
            RunOne(runner, model.tokenizer(), context, q, result, options));
      }
    }
  }
  return {};
}

}  // namespace holdfast
