// Design. The branch's tokens go into a private timeline, kSegmentTokens at a time; each segment is
// a request without an answer (max_tokens 0) whose logits rows are looked at on the model thread as
// they are made (Observe), because a row of a large vocabulary is too much to keep. What was seen
// is judged on the consumer's thread between two segments: pages first, then steps, in order of
// index. Nothing is shared by the two threads at the same time: a segment's end is the hand-over.

#include "sessions/replay.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <set>
#include <utility>

#include "engine/base/elapsed.h"
#include "sessions/turn_seed.h"

namespace holdfast {
namespace {

constexpr int64_t kSegmentTokens = 256;
constexpr int kTopMax = 20;

using Clock = std::chrono::steady_clock;

// 1 + the tokens that are more likely; of equals the lower id is.
int64_t RankOf(std::span<const float> logits, TokenId token) {
  int64_t rank = 1;
  for (size_t t = 0; t < logits.size(); ++t) {
    rank += logits[t] > logits[token] ||
            (logits[t] == logits[token] && static_cast<TokenId>(t) < token);
  }
  return rank;
}

// "layer 3, head 1, V of token 70": where in a page's payload a byte lies.
std::string PlaceInPage(const LayerGroup& group, size_t byte, int64_t first_token) {
  const size_t layer = byte / group.LayerBytes(), in_layer = byte % group.LayerBytes();
  const size_t head = in_layer / group.HeadBytes(), in_head = in_layer % group.HeadBytes();
  const bool is_k = in_head < group.KBytes();
  int slot = 0;
  if (!is_k) {
    slot = static_cast<int>((in_head - group.KBytes()) /
                            (static_cast<size_t>(group.v_dim) * KvTypeBytes(group.v_type)));
  } else if (group.k_type == KvType::kI8) {
    slot = static_cast<int>(in_head / 4 % kPageTokens);
  } else {
    slot = static_cast<int>(in_head / KvTypeBytes(group.k_type) % kPageTokens);
  }
  return "layer " + std::to_string(layer) + " of its group, KV head " + std::to_string(head) +
         ", " + (is_k ? "K" : "V") + " of token " + std::to_string(first_token + slot);
}

}  // namespace

struct Recompute::Impl {
  RecomputeRequest request;
  Recording recording;
  RecomputeParts parts;
  int64_t end = 0;                 // tokens to compute
  std::optional<Timeline> timeline;
  std::shared_ptr<Generation> generation;
  std::deque<ReplayEvent> ready;
  ReplayReport report;
  bool cancelled = false, ended = false;
  int64_t judged_blocks = 0;
  Clock::time_point start = Clock::now();

  // While a segment runs: of the model thread.
  std::vector<ReplayStep> seen;
  Status observed;                 // the first error of Observe
  int64_t next_row = 0;            // rows before it have been seen (a preempted segment repeats)
  const RecordedTurn* turn = nullptr;
  TurnSampler sampler;             // of `turn`
  int64_t accepted = 0;            // output tokens that its constraint has taken
  std::set<const RecordedTurn*> odd_seeds;  // that neither request nor session gives
  std::vector<uint32_t> mask;

  Status Check();
  // Whether the recorded messages part with the template among the tokens that are compared.
  bool PromptIsJudged() const {
    const auto& p = recording.prompt_difference;
    return request.mode == ReplayMode::kVerify && p && p->index >= request.from &&
           p->index < request.to;
  }
  bool Wants(int64_t row) const;
  void Observe(int64_t row, std::span<const float> logits);
  Status OpenTurn(const RecordedTurn& next);
  Status Look(int64_t row, std::span<const float> logits);
  Result<Sample> DrawAgain(int64_t index, std::span<const float> logits);
  uint64_t SeedOfTurn() const;

  Status StartSegment();
  Status TakeSegment(FinishEvent finish);
  Status JudgePages();
  std::optional<ReplayDivergence> JudgePage(int64_t block);
  std::optional<ReplayDivergence> JudgeStored(int64_t block, const PageLease& mine);
  // `payload`: of the stored page, per layer group.
  std::optional<ReplayDivergence> ComparePage(int64_t block, const PageLease& mine,
                                              std::span<const std::byte* const> payload,
                                              const char* tier) const;
  std::optional<ReplayDivergence> JudgeStep(const ReplayStep& step) const;
  void NameLogitsCause(ReplayDivergence* d) const;
  void NameDrawCause(const ReplayStep& step, ReplayDivergence* d) const;
  std::optional<ReplayDivergence> JudgePrompt() const;
  void Conclude();
  ReplayEvent Event() const {
    ReplayEvent e;
    e.done = report.tokens;
    e.total = end;
    return e;
  }
};

Status Recompute::Impl::Check() {
  const int64_t size = static_cast<int64_t>(recording.tokens.size());
  if (request.to < 0) request.to = size;
  if (request.from < 0 || request.from > request.to || request.to > size) {
    return Status::Invalid("from, to: " + std::to_string(request.from) + " to " +
                           std::to_string(request.to) + " do not lie in the branch's " +
                           std::to_string(size) + " tokens");
  }
  if (request.top_k < 0 || request.top_k > kTopMax) {
    return Status::Invalid("top_k: must be 0 to " + std::to_string(kTopMax));
  }
  end = request.to;
  if (PromptIsJudged()) end = recording.prompt_difference->index;  // the divergence, at the latest

  if (end > parts.engine->max_context()) {
    return Status::Invalid("context: the branch's " + std::to_string(end) +
                           " tokens do not fit in " +
                           std::to_string(parts.engine->max_context()));
  }
  const auto vocab = static_cast<TokenId>(parts.engine->model().config().vocab);
  for (int64_t i = 0; i < end; ++i) {
    if (recording.tokens[i] >= 0 && recording.tokens[i] < vocab) continue;
    return Status::Invalid("token " + std::to_string(i) + " of the branch is not in this model's " +
                           "vocabulary of " + std::to_string(vocab));
  }
  for (const RecordedTurn& t : recording.turns) {
    if (!t.basis || t.begin >= request.to) continue;
    for (const std::string& name : ChangesBetween(*t.basis, parts.basis)) {
      auto& changed = report.changed;
      if (std::find(changed.begin(), changed.end(), name) == changed.end()) {
        changed.push_back(name);
      }
    }
  }
  return Status();
}

// Whether the row's logits say an output token that is asked for. Constant data only: any thread.
bool Recompute::Impl::Wants(int64_t row) const {
  const int64_t index = row + 1;
  if (index < request.from || index >= end) return false;
  const RecordedTurn* t = recording.TurnOf(index);
  return t != nullptr && index >= t->output;
}

void Recompute::Impl::Observe(int64_t row, std::span<const float> logits) {
  if (row < next_row || !observed.ok()) return;
  next_row = row + 1;
  observed = Look(row, logits);
}

Status Recompute::Impl::OpenTurn(const RecordedTurn& next) {
  HOLDFAST_ASSIGN_OR_RETURN(sampler, parts.sampler(next));
  turn = &next;
  accepted = next.output;
  const auto& named = sampler.request_seed;
  if (named ? RequestSeed(*named, next.output) != next.seed : !next.seed_follows) {
    odd_seeds.insert(&next);
  }
  return Status();
}

uint64_t Recompute::Impl::SeedOfTurn() const {
  return request.seed ? RequestSeed(*request.seed, turn->output) : turn->seed;
}

Result<Sample> Recompute::Impl::DrawAgain(int64_t index, std::span<const float> logits) {
  mask.clear();
  if (sampler.constraint != nullptr) {
    for (; accepted < index; ++accepted) {
      HOLDFAST_RETURN_IF_ERROR(sampler.constraint->Accept(recording.tokens[accepted]));
    }
    mask.assign((logits.size() + 31) / 32, 0);
    const size_t words = (parts.engine->tokenizer().vocab_size() + 31) / 32;
    HOLDFAST_RETURN_IF_ERROR(
        sampler.constraint->FillMask(std::span(mask).first(std::min(words, mask.size()))));
  }
  return SampleToken(sampler.params,
                     {.logits = logits,
                      .history = std::span<const TokenId>(recording.tokens).first(index),
                      .output_begin = static_cast<size_t>(turn->output),
                      .mask = mask,
                      .turn_seed = SeedOfTurn(),
                      .position = index,
                      .top_logprobs = request.top_k});
}

Status Recompute::Impl::Look(int64_t row, std::span<const float> logits) {
  ReplayStep step;
  step.index = row + 1;
  const RecordedTurn* now = recording.TurnOf(step.index);
  if (now != turn) HOLDFAST_RETURN_IF_ERROR(OpenTurn(*now));
  step.recorded = recording.tokens[step.index];
  step.origin = recording.origins[step.index];
  step.recorded_digest = recording.digests[step.index];
  HOLDFAST_ASSIGN_OR_RETURN(Sample sample, DrawAgain(step.index, logits));
  step.drawn = sample.token;
  step.digest = sample.logits_digest;
  step.top = std::move(sample.top);
  step.logprob = step.drawn == step.recorded
                     ? sample.logprob
                     : sample.logprob + (logits[step.recorded] - logits[step.drawn]);
  if (request.mode == ReplayMode::kForced) step.rank = RankOf(logits, step.recorded);
  seen.push_back(std::move(step));
  return Status();
}

Status Recompute::Impl::StartSegment() {
  const int64_t begin = timeline->size();
  const int64_t count = std::min(kSegmentTokens, end - begin);
  parts.make_room(count / kPageTokens + 2);
  timeline->Extend(std::span<const TokenId>(recording.tokens).subspan(begin, count));
  GenerateRequest generate;
  generate.timeline = std::move(timeline);
  timeline.reset();
  generate.output_begin = begin + count;
  generate.observes = [this](int64_t row) { return Wants(row); };
  generate.observe_logits = [this](int64_t row, std::span<const float> l) { Observe(row, l); };
  HOLDFAST_ASSIGN_OR_RETURN(generation, parts.engine->Submit(std::move(generate)));
  return Status();
}

Status Recompute::Impl::TakeSegment(FinishEvent finish) {
  generation.reset();
  timeline = std::move(finish.timeline);
  if (finish.reason == FinishReason::kCancelled) {
    finish.status.IgnoreError();
    return Status::Cancelled("the replay was cancelled");
  }
  HOLDFAST_RETURN_IF_ERROR(std::move(finish.status));
  HOLDFAST_RETURN_IF_ERROR(std::move(observed));
  report.tokens = timeline->filled();
  HOLDFAST_RETURN_IF_ERROR(JudgePages());
  for (ReplayStep& step : std::exchange(seen, {})) {
    // A wrong page that lies before it comes first, and explains it.
    if (report.divergence && report.divergence->index <= step.index) break;
    if (request.mode == ReplayMode::kVerify && step.origin == TokenOrigin::kSampled) {
      if (auto d = JudgeStep(step)) report.divergence = std::move(d);
      ++report.steps;
      report.undigested += step.recorded_digest == 0;
    }
    step.item = recording.ItemOf(step.index);
    ReplayEvent e = Event();
    e.step = std::move(step);
    ready.push_back(std::move(e));
  }
  if (ready.empty()) ready.push_back(Event());
  if (report.divergence || timeline->size() >= end) Conclude();
  return Status();
}

// Compares the pages that are whole now, up to the first wrong one.
Status Recompute::Impl::JudgePages() {
  if (request.mode != ReplayMode::kVerify) return Status();
  for (; judged_blocks < report.tokens / kPageTokens && !report.divergence; ++judged_blocks) {
    if ((judged_blocks + 1) * kPageTokens <= request.from) continue;
    report.divergence = JudgePage(judged_blocks);
  }
  return Status();
}

std::optional<ReplayDivergence> Recompute::Impl::JudgePage(int64_t block) {
  const auto& runs = timeline->runs();
  const auto run = std::find_if(runs.begin(), runs.end(),
                                [&](const Run& r) { return r.begin == block * kPageTokens; });
  const auto tokens =
      std::span<const TokenId>(recording.tokens).subspan(block * kPageTokens, kPageTokens);
  if (PageLease page = parts.engine->pool().Find(timeline->chain_key(block + 1), tokens)) {
    ++report.pages_memory;
    std::vector<const std::byte*> payload;
    for (size_t g = 0; g < parts.engine->pool().groups().size(); ++g) {
      payload.push_back(page.payload(static_cast<int>(g)));
    }
    if (auto d = ComparePage(block, run->page, payload, "memory")) return d;
  }
  if (parts.store == nullptr || !parts.store->Contains(timeline->chain_key(block + 1))) {
    return std::nullopt;
  }
  return JudgeStored(block, run->page);
}

std::optional<ReplayDivergence> Recompute::Impl::JudgeStored(int64_t block,
                                                             const PageLease& mine) {
  PageHeader header;
  header.fp = parts.basis.fp;
  header.key = timeline->chain_key(block + 1);
  header.parent = timeline->chain_key(block);
  const auto tokens = timeline->tokens().subspan(block * kPageTokens, kPageTokens);
  header.tokens.assign(tokens.begin(), tokens.end());
  std::vector<std::vector<std::byte>> bytes;
  std::vector<std::span<std::byte>> payload;
  for (const LayerGroup& g : parts.engine->pool().groups()) bytes.emplace_back(g.PayloadBytes());
  for (auto& b : bytes) payload.emplace_back(b);
  const Status got = parts.store->Get(header, payload);
  if (got.code() == Code::kCorrupt) {
    ReplayDivergence d;
    d.what = d.cause = "page";
    d.tier = "disk";
    d.index = block * kPageTokens;
    d.detail = "the record of this page is damaged: " + got.message();
    return d;
  }
  if (!got.ok()) return std::nullopt;  // gone meanwhile, or can't be read: nothing to compare
  ++report.pages_disk;
  std::vector<const std::byte*> got_payload;
  for (const auto& b : bytes) got_payload.push_back(b.data());
  return ComparePage(block, mine, got_payload, "disk");
}

std::optional<ReplayDivergence> Recompute::Impl::ComparePage(
    int64_t block, const PageLease& mine, std::span<const std::byte* const> payload,
    const char* tier) const {
  const auto& groups = parts.engine->pool().groups();
  for (size_t g = 0; g < groups.size(); ++g) {
    const std::byte* want = mine.payload(static_cast<int>(g));
    const size_t size = groups[g].PayloadBytes();
    if (std::memcmp(want, payload[g], size) == 0) continue;
    const size_t at = std::mismatch(want, want + size, payload[g]).first - want;
    ReplayDivergence d;
    d.what = d.cause = "page";
    d.tier = tier;
    d.index = block * kPageTokens;
    d.detail = "the page in " + d.tier + " is not what its tokens give; first in " +
               (groups.size() > 1 ? "layer group " + std::to_string(g) + ", " : "") +
               PlaceInPage(groups[g], at, d.index);
    return d;
  }
  return std::nullopt;
}

std::optional<ReplayDivergence> Recompute::Impl::JudgeStep(const ReplayStep& step) const {
  const bool logits = step.recorded_digest != 0 && step.recorded_digest != step.digest;
  if (!logits && step.drawn == step.recorded) return std::nullopt;
  ReplayDivergence d;
  d.what = logits ? "logits" : "token";
  d.index = step.index;
  d.expected = step.recorded;
  d.got = step.drawn;
  d.expected_digest = step.recorded_digest;
  d.got_digest = step.digest;
  logits ? NameLogitsCause(&d) : NameDrawCause(step, &d);
  return d;
}

void Recompute::Impl::NameLogitsCause(ReplayDivergence* d) const {
  const RecordedTurn& t = *recording.TurnOf(d->index);
  const auto changed = ChangesBetween(*t.basis, parts.basis);  // a digest comes with a basis
  d->cause = changed.empty() || changed.front() == "template" ? "unknown" : changed.front();
  if (d->cause == "weights") {
    d->detail = "the weights were " + t.basis->weights.Hex().substr(0, 16) + ", now " +
                parts.basis.weights.Hex().substr(0, 16);
  } else if (d->cause == "numerics") {
    d->detail = "operations that give other bits now: " + ChangedOperations(*t.basis, parts.basis);
  } else if (d->cause == "kv_type") {
    d->detail = "K was stored as " + t.basis->kv + ", now as " + parts.basis.kv;
  } else if (d->cause == "unknown") {
    d->detail = "nothing that is recorded has changed: the answer was drawn over a page that was "
                "wrong then, or the log was altered";
  }
}

void Recompute::Impl::NameDrawCause(const ReplayStep& step, ReplayDivergence* d) const {
  const RecordedTurn& t = *recording.TurnOf(step.index);
  if (step.recorded_digest == 0 && !request.seed && !request.other_sampling) {
    d->cause = "unknown";
    d->detail = "another token is drawn, and no digest of its logits was recorded to tell why";
  } else if (request.seed) {
    d->cause = "seed";
    d->detail = "drawn with another seed, as asked for";
  } else if (request.other_sampling) {
    d->cause = "sampling";
    d->detail = "drawn with other parameters, as asked for";
  } else if (t.seed != t.turn_seed || odd_seeds.contains(&t)) {
    d->cause = "seed";
    d->detail = "the recorded seed " + std::to_string(t.seed) + " is not that of this turn";
  } else {
    d->cause = "sampler";
    d->detail = "the recorded seed and sampling draw another token from the same logits";
  }
}

std::optional<ReplayDivergence> Recompute::Impl::JudgePrompt() const {
  if (!PromptIsJudged()) return std::nullopt;
  const auto& p = recording.prompt_difference;
  ReplayDivergence d;
  d.what = "prompt";
  d.index = p->index;
  d.expected = p->recorded;
  d.got = p->rendered;
  const RecordedTurn& t = *recording.TurnOf(p->index);
  const bool tokenizer = t.basis->tokenizer != parts.basis.tokenizer;
  d.cause = tokenizer ? "tokenizer" : "template";
  d.detail = tokenizer ? "the tokenizer makes other tokens of the recorded messages"
                       : "the chat template makes other tokens of the recorded messages";
  return d;
}

void Recompute::Impl::Conclude() {
  if (!report.divergence) report.divergence = JudgePrompt();
  report.ms = MsSince(start);
  ReplayEvent e = Event();
  e.report = report;
  ready.push_back(std::move(e));
  timeline.reset();
  ended = true;
}

Result<std::unique_ptr<Recompute>> Recompute::Start(const RecomputeRequest& request,
                                                    Recording recording, RecomputeParts parts) {
  auto impl = std::make_unique<Impl>();
  impl->request = request;
  impl->recording = std::move(recording);
  impl->parts = std::move(parts);
  HOLDFAST_RETURN_IF_ERROR(impl->Check());
  impl->timeline = impl->parts.engine->NewTimeline(TenantScope(request.tenant));
  impl->timeline->KeepPrivate();
  return std::unique_ptr<Recompute>(new Recompute(std::move(impl)));
}

Recompute::Recompute(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Recompute::~Recompute() {
  if (impl_->generation != nullptr) impl_->generation->Cancel();
  while (impl_->generation != nullptr) {  // the observer must not outlive this
    auto event = impl_->generation->Next(-1);
    if (event && !event->finish) continue;
    if (event) event->finish->status.IgnoreError();
    impl_->generation.reset();
  }
  impl_->observed.IgnoreError();
}

const Recording& Recompute::recording() const { return impl_->recording; }

void Recompute::Cancel() {
  impl_->cancelled = true;
  if (impl_->generation != nullptr) impl_->generation->Cancel();
}

Result<std::optional<ReplayEvent>> Recompute::Next(int timeout_ms) {
  Impl& r = *impl_;
  while (r.ready.empty() && !r.ended) {
    Status s;
    if (r.cancelled && r.generation == nullptr) {
      s = Status::Cancelled("the replay was cancelled");
    } else if (r.generation != nullptr) {
      auto event = r.generation->Next(timeout_ms);
      if (!event) return std::optional<ReplayEvent>();
      if (event->finish) s = r.TakeSegment(std::move(*event->finish));
    } else if (r.timeline->size() < r.end) {
      s = r.StartSegment();
    } else {
      r.Conclude();
    }
    if (!s.ok()) {
      r.ended = true;
      return s;
    }
  }
  if (r.ready.empty()) return std::optional<ReplayEvent>();
  ReplayEvent e = std::move(r.ready.front());
  r.ready.pop_front();
  return std::optional<ReplayEvent>(std::move(e));
}

}  // namespace holdfast
