#include "api/bench/rewrite.h"

#include <chrono>

#include "api/bench/engine_bench.h"
#include "api/json.h"

namespace holdfast {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSteps = 17;  // functions of seven lines

struct Answer {
  double rate = 0;
  ChatDone done;
};

Result<Answer> Ask(Runtime& runtime, const std::string& text, bool speculate) {
  ChatRequest request;
  request.tenant = "bench";
  ChatMessage message;
  message.role = "user";
  message.text = text;
  message.raw_json = DumpJson({{"role", "user"}, {"content", text}});
  request.messages = {std::move(message)};
  request.sampling.temperature = 0;
  request.max_tokens = kRewriteTokens;
  request.speculate = speculate;
  HOLDFAST_ASSIGN_OR_RETURN(auto stream, runtime.Chat(std::move(request)));
  Clock::time_point first, last;
  int64_t timed = -1;  // tokens after the first event that had some
  for (;;) {
    auto event = stream->Next(-1);
    if (!event.has_value()) continue;
    if (!event->tokens.empty()) {
      last = Clock::now();
      if (timed < 0) first = last;
      timed = timed < 0 ? 0 : timed + static_cast<int64_t>(event->tokens.size());
    }
    if (!event->done.has_value()) continue;
    if (!event->done->status.ok()) return event->done->status;
    const double seconds = std::chrono::duration<double>(last - first).count();
    return Answer{seconds > 0 ? static_cast<double>(timed) / seconds : 0, std::move(*event->done)};
  }
}

}  // namespace

std::string RewriteFile() {
  std::string text = "#include \"pipeline/record.h\"\n";
  for (int i = 1; i <= kSteps; ++i) {
    const std::string n = std::to_string(i);
    text += "// Step " + n + " of the pipeline.\n";
    text += "int Step" + n + "(const Record& record, int limit) {\n";
    const std::string factor = std::to_string(i * 37 % 101);
    text += "  const int weight = record.weight * " + factor + " + " + n + ";\n";
    text += "  if (weight > limit) return limit - record.offset;\n";
    text += "  return weight + " + std::to_string(i * 53 % 89) + ";\n";
    text += "}\n\n";
  }
  return text;
}

Result<RewriteFigures> MeasureRewrite(const EngineOptions& engine, int reps) {
  RuntimeOptions options;
  options.engine = engine;
  options.engine.speculate = true;
  HOLDFAST_ASSIGN_OR_RETURN(auto runtime, Runtime::Open(options));
  const std::string text =
      "Write this C++ file again, whole and unchanged, but rename Step3 to ThirdStep. Answer with "
      "the file alone.\n\n```cpp\n" + RewriteFile() + "```\n";
  RewriteFigures figures;
  HOLDFAST_ASSIGN_OR_RETURN(const Answer warm_up, Ask(*runtime, text, false));
  figures.prompt = static_cast<int64_t>(warm_up.done.prompt_tokens.size());
  figures.tokens = static_cast<int64_t>(warm_up.done.completion_tokens.size());
  for (int rep = 0; rep < reps; ++rep) {
    for (const bool speculate : {true, false}) {
      HOLDFAST_ASSIGN_OR_RETURN(const Answer answer, Ask(*runtime, text, speculate));
      (speculate ? figures.with : figures.without).push_back(answer.rate);
      if (speculate) figures.drafts = answer.done.drafts;
      figures.same_tokens = figures.same_tokens &&
                            answer.done.completion_tokens == warm_up.done.completion_tokens;
    }
  }
  HOLDFAST_ASSIGN_OR_RETURN(figures.cost, CostOf(engine.model_path, runtime->engine().model()));
  runtime->Shutdown(0);
  return figures;
}

}  // namespace holdfast
