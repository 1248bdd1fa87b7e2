#include "stitcher/trial.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "engine/model/sequence_kv.h"
#include "engine/model/softmax.h"

namespace holdfast {
namespace {

constexpr int64_t kChunk = 128;      // rows of a pass
constexpr int32_t kTranslation = 77;  // kTranslated: positions
constexpr int64_t kPoolShare = 4;    // prompts that the pool holds at once

size_t PoolBytes(const Model& model, int64_t max_tokens) {
  size_t page = 0;
  for (const LayerGroup& g : model.groups()) page += g.SlotStride();
  return page * static_cast<size_t>(kPoolShare * (max_tokens / kPageTokens + 2));
}

// Compares rows with those of the answer as they come.
class Comparison {
 public:
  explicit Comparison(const std::vector<std::vector<float>>& want) : want_(want) {}

  void Take(std::span<const float> got) {
    if (next_ >= want_.size()) return;
    const std::vector<float>& want = want_[next_++];
    if (got.empty()) {
      failed_ = true;
      return;
    }
    const double kl = KlDivergence(want, got);
    sum_ += kl;
    largest_ = std::max(largest_, kl);
    if (RowTop(want) == RowTop(got)) {
      ++same_;
    } else if (first_ < 0) {
      first_ = static_cast<int>(next_) - 1;
    }
  }

  Status Finish(Trial* trial) const {
    if (failed_ || next_ != want_.size()) {
      return Status::Corrupt("trial: " + trial->method + " has no finite logits for each token");
    }
    trial->tokens = static_cast<int>(want_.size());
    trial->kl = sum_ / static_cast<double>(want_.size());
    trial->largest_kl = largest_;
    trial->same_top = same_;
    trial->first_divergence = first_ < 0 ? trial->tokens : first_;
    return {};
  }

 private:
  const std::vector<std::vector<float>>& want_;
  size_t next_ = 0;
  double sum_ = 0, largest_ = 0;
  int same_ = 0, first_ = -1;
  bool failed_ = false;
};

}  // namespace

std::vector<ReuseMethod> StandardMethods() {
  constexpr auto kReuse = ReuseHow::kReuse;
  constexpr int kWin = kStandardWindows;
  return {{"rot", kReuse, {}},
          {"link16", kReuse, {16, 0}},
          {"link32", kReuse, {32, 0}},
          {"link64", kReuse, {64, 0}},
          {"link128", kReuse, {128, 0}},
          {"win20", kReuse, {0, kWin}},
          {"link32+win20", kReuse, {32, kWin}},
          {"link32+win40", kReuse, {32, 2 * kWin}},
          {"link128+win20", kReuse, {128, kWin}},
          {"rand20", ReuseHow::kRandom, {0, kWin}},
          {"no rotation", ReuseHow::kUnturned, {}},
          {"prefix only", ReuseHow::kPrefix, {}},
          {"translated", ReuseHow::kTranslated, {}},
          {"f32 KV", ReuseHow::kOtherKv, {}}};
}

TrialRunner::TrialRunner(Model& model, Model* other, int64_t max_tokens)
    : model_(model),
      other_(other),
      pass_(model),
      pool_(model.groups(), PoolBytes(model, max_tokens)),
      stitcher_(&pool_, nullptr, model.fingerprint()) {
  if (other != nullptr) other_pass_ = std::make_unique<ForwardPass>(*other);
}

// ---- What full prefill says.

Result<std::vector<TokenId>> TrialRunner::Decode(Timeline& timeline, ShiftReading reading,
                                                 int tokens, const OnLogits& on_logits) {
  std::vector<TokenId> out;
  PendingOptions options;
  options.chunk = kChunk;
  options.reading = reading;
  Status failed;
  options.on_logits = [&](int64_t, std::span<const float> logits) {
    if (logits.empty()) {
      failed = Status::Corrupt("trial: logits are not finite");
      return;
    }
    on_logits(logits);
    out.push_back(static_cast<TokenId>(RowTop(logits)));
  };
  while (static_cast<int>(out.size()) < tokens) {
    options.logits_from = timeline.size() - 1;
    HOLDFAST_RETURN_IF_ERROR(ComputePending(model_, pass_, timeline, options));
    HOLDFAST_RETURN_IF_ERROR(failed);
    if (model_.tokenizer().IsEndOfGeneration(out.back())) break;
    timeline.Extend(std::span(out).last(1));
  }
  return out;
}

Status TrialRunner::Begin(const TestContext& context, int answer_tokens) {
  context_ = &context;
  sources_.clear();
  answer_.clear();
  want_.clear();
  mass_.clear();
  pool_.DropCached();
  {
    Timeline full(&pool_, TenantScope("trial-full"), model_.fingerprint());
    full.KeepPrivate();
    full.Extend(context.tokens);
    HOLDFAST_ASSIGN_OR_RETURN(
        answer_, Decode(full, ShiftReading::kTurned, answer_tokens, [this](auto logits) {
          want_.emplace_back(logits.begin(), logits.end());
        }));
  }
  const TenantScope scope("trial");
  for (const auto& tokens : context.sources) {
    HOLDFAST_ASSIGN_OR_RETURN(Stitched source, stitcher_.Stitch({scope, tokens, nullptr, {}}));
    PendingOptions options;
    options.chunk = kChunk;
    HOLDFAST_RETURN_IF_ERROR(ComputePending(model_, pass_, source.timeline, options));
    sources_.push_back(std::move(source.timeline));
  }
  return {};
}

// ---- Reuse.

std::vector<TokenRange> TrialRunner::RunRanges() const {
  std::vector<TokenRange> ranges;
  for (const TestRun& run : context_->runs) ranges.push_back({run.at, run.at + run.size()});
  return ranges;
}

// `tokens` (the prompt and perhaps more) with every run reused but for `recomputed`. Its pages stay
// private, so that no method finds what another computed.
Result<Timeline> TrialRunner::Assemble(std::span<const TokenId> tokens,
                                       std::span<const TokenRange> recomputed) {
  std::vector<Piece> pieces;
  for (const TestRun& run : context_->runs) {
    const TokenRange all[] = {{run.at, run.at + run.size()}};
    for (const TokenRange& kept : Without(all, recomputed)) {
      pieces.push_back({&sources_[run.source], kept.begin - run.shift(), kept.end - run.shift(),
                        kept.begin});
    }
  }
  HOLDFAST_ASSIGN_OR_RETURN(
      Stitched stitched, stitcher_.Stitch({TenantScope("trial"), tokens, nullptr, pieces}));
  stitched.timeline.KeepPrivate();
  return std::move(stitched.timeline);
}

Status TrialRunner::Probe() {
  const auto size = static_cast<int64_t>(context_->tokens.size());
  AttentionMass mass(model_, size);
  HOLDFAST_ASSIGN_OR_RETURN(Timeline timeline, Assemble(context_->tokens, {}));
  PendingOptions options;
  options.chunk = kChunk;
  options.on_queries = QuestionProbe(&mass, model_, context_->question, size);
  HOLDFAST_RETURN_IF_ERROR(ComputePending(model_, pass_, timeline, options));
  mass_.assign(mass.mass().begin(), mass.mass().end());
  return {};
}

Result<std::vector<TokenRange>> TrialRunner::Recomputed(const ReuseMethod& method) {
  const std::vector<TokenRange> runs = RunRanges();
  if (method.how == ReuseHow::kPrefix) return runs;
  std::vector<TokenRange> links;
  std::vector<int64_t> heads;
  for (const TokenRange& run : runs) {
    links.push_back({run.begin, std::min(run.end, run.begin + method.setting.link)});
    heads.push_back(run.begin);
  }
  links = Union(links, {});
  if (method.setting.windows == 0) return links;
  std::vector<double> mass;
  if (method.how == ReuseHow::kRandom) {
    SeededRandom random(context_->tokens.size());
    for (size_t i = 0; i < context_->tokens.size(); ++i) {
      mass.push_back(static_cast<double>(random.Next() >> 11));
    }
  } else {
    if (mass_.empty()) HOLDFAST_RETURN_IF_ERROR(Probe());
    mass = mass_;
  }
  const int64_t budget = TokensIn(runs) * method.setting.windows / 100;
  return Union(links, ChooseWindows(mass, Without(runs, links), heads, budget));
}

void TrialRunner::DescribeWork(const ReuseMethod& method, std::span<const TokenRange> recomputed,
                               Trial* trial) const {
  const auto size = static_cast<int64_t>(context_->tokens.size());
  const int64_t exact = context_->exact / kPageTokens * kPageTokens;
  const int64_t reusable = TokensIn(RunRanges()), repaired = TokensIn(recomputed);
  const int64_t full = size - exact, fresh = full - reusable;
  const bool is_all = method.how == ReuseHow::kTranslated || method.how == ReuseHow::kOtherKv;
  const bool is_probed = method.how == ReuseHow::kReuse && method.setting.windows > 0;
  // A probe's rows before the first run are exact and stay; those behind come again.
  const int64_t behind = context_->runs.empty() ? 0 : size - context_->runs[0].at - reusable;
  const int64_t rows = is_all ? size : fresh + repaired + (is_probed ? behind : 0);
  trial->recomputed =
      is_all || reusable == 0 ? 1 : static_cast<double>(repaired) / static_cast<double>(reusable);
  trial->rows = static_cast<double>(rows) / static_cast<double>(full);
  trial->context = size;
  trial->runs = static_cast<int>(context_->runs.size());
  for (const TestRun& run : context_->runs) {
    trial->min_tokens =
        trial->min_tokens == 0 ? run.size() : std::min(trial->min_tokens, run.size());
    trial->max_shift = std::max(trial->max_shift, std::abs(run.shift()));
  }
}

// All of `tokens` on pages of its own, computed for positions `move` later and read there.
Status TrialRunner::ComputeAll(Model& model, ForwardPass& pass, std::span<const TokenId> tokens,
                               int32_t move, const OnLogits& on_logits) const {
  SequenceKv kv(model);
  const auto size = static_cast<int64_t>(tokens.size());
  const auto first = static_cast<int64_t>(context_->tokens.size()) - 1;
  kv.Reserve(size);
  for (int64_t begin = 0; begin < size; begin += kChunk) {
    const int64_t end = std::min(size, begin + kChunk);
    ForwardBatch batch;
    for (int64_t i = begin; i < end; ++i) {
      batch.rows.push_back({.token = tokens[i],
                            .position = static_cast<int32_t>(i),
                            .home = static_cast<int32_t>(i) + move,
                            .page = kv.PageOf(i),
                            .slot = SequenceKv::SlotOf(i),
                            .logits = i >= first});
    }
    auto& runs = batch.sequences.emplace_back(ForwardBatch::Sequence{kv.Runs(end)}).runs;
    for (auto& group : runs) {
      for (KvRun& run : group) run.shift = -move;
    }
    pass.Begin(std::move(batch));
    pass.Run();
    for (int64_t i = std::max(begin, first); i < end; ++i) on_logits(pass.logits(i - begin));
  }
  return {};
}

Result<Trial> TrialRunner::Run(const ReuseMethod& method) {
  Trial trial;
  trial.method = method.name;
  trial.how = method.how;
  trial.setting = method.setting;
  trial.kind = context_->kind;
  std::vector<TokenId> tokens = context_->tokens;
  const auto prompt = static_cast<int64_t>(tokens.size());
  tokens.insert(tokens.end(), answer_.begin(), answer_.end() - 1);
  Comparison comparison(want_);
  const auto take = [&](std::span<const float> logits) { comparison.Take(logits); };
  if (method.how == ReuseHow::kTranslated) {
    HOLDFAST_RETURN_IF_ERROR(ComputeAll(model_, pass_, tokens, kTranslation, take));
    DescribeWork(method, {}, &trial);
  } else if (method.how == ReuseHow::kOtherKv) {
    if (other_ == nullptr) return Status::Invalid("trial: there is no other model");
    HOLDFAST_RETURN_IF_ERROR(ComputeAll(*other_, *other_pass_, tokens, 0, take));
    DescribeWork(method, {}, &trial);
  } else {
    HOLDFAST_ASSIGN_OR_RETURN(const auto recomputed, Recomputed(method));
    HOLDFAST_ASSIGN_OR_RETURN(Timeline timeline, Assemble(tokens, recomputed));
    PendingOptions options;
    options.chunk = kChunk;
    options.logits_from = prompt - 1;
    options.on_logits = [&](int64_t, std::span<const float> logits) { take(logits); };
    if (method.how == ReuseHow::kUnturned) options.reading = ShiftReading::kUnturned;
    HOLDFAST_RETURN_IF_ERROR(ComputePending(model_, pass_, timeline, options));
    DescribeWork(method, recomputed, &trial);
  }
  HOLDFAST_RETURN_IF_ERROR(comparison.Finish(&trial));
  return trial;
}

Result<std::vector<TokenId>> TrialRunner::Answer(const ReuseMethod& method, int tokens) {
  HOLDFAST_ASSIGN_OR_RETURN(const auto recomputed, Recomputed(method));
  HOLDFAST_ASSIGN_OR_RETURN(Timeline timeline, Assemble(context_->tokens, recomputed));
  const auto reading = method.how == ReuseHow::kUnturned ? ShiftReading::kUnturned
                                                         : ShiftReading::kTurned;
  return Decode(timeline, reading, tokens, [](auto) {});
}

}  // namespace holdfast
