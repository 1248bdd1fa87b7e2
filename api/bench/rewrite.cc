#include "api/bench/rewrite.h"

#include "api/bench/engine_bench.h"
#include "api/bench/turn.h"

namespace holdfast {
namespace {

constexpr int kSteps = 17;  // functions of seven lines

Result<TimedTurn> Ask(Runtime& runtime, const std::string& text, bool speculate) {
  ChatRequest request;
  request.tenant = "bench";
  request.messages = {BenchMessage("user", text)};
  request.sampling.temperature = 0;
  request.max_tokens = kRewriteTokens;
  request.speculate = speculate;
  return TakeTurn(runtime, std::move(request));
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
  HOLDFAST_ASSIGN_OR_RETURN(const TimedTurn warm_up, Ask(*runtime, text, false));
  figures.prompt = static_cast<int64_t>(warm_up.done.prompt_tokens.size());
  figures.tokens = static_cast<int64_t>(warm_up.done.completion_tokens.size());
  for (int rep = 0; rep < reps; ++rep) {
    for (const bool speculate : {true, false}) {
      HOLDFAST_ASSIGN_OR_RETURN(const TimedTurn answer, Ask(*runtime, text, speculate));
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
