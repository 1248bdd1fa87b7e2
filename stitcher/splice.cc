#include "stitcher/splice.h"

#include <algorithm>
#include <utility>

namespace holdfast {

RunSource::Pages RunSource::PagesOf(int64_t begin, int64_t end) const {
  const int64_t first = begin - shift - home, last = end - 1 - shift - home;
  return {static_cast<size_t>(first / kPageTokens), static_cast<size_t>(last / kPageTokens + 1)};
}

RunSource SourceOf(const FoundRun& run) {
  const Variant& v = *run.variant;
  RunSource source;
  source.parent = v.parent;
  source.home = v.position - v.first;
  source.tokens = v.tokens;
  source.left = std::span(v.sink).first(std::min<size_t>(v.sink.size(), source.home));
  source.shift = run.shift();
  source.keys = v.PageKeys();
  return source;
}

RunSource SourceOf(const RecipeSource& recipe, int64_t shift) {
  RunSource source;
  source.parent = recipe.parent;
  source.home = recipe.home;
  source.tokens = recipe.tokens;
  source.left = recipe.left;
  source.shift = shift;
  source.keys = KeysAfter(recipe.parent, recipe.tokens);
  return source;
}

Status SpliceFrom(const RunSource& source, int64_t begin, int64_t end, Timeline* timeline) {
  while (begin < end) {
    const int64_t at = begin - source.shift - source.home;  // in the source's tokens
    const auto slot = static_cast<int32_t>(at % kPageTokens);
    const auto count = static_cast<int32_t>(std::min<int64_t>(kPageTokens - slot, end - begin));
    HOLDFAST_RETURN_IF_ERROR(timeline->Splice(source.pages[at / kPageTokens].Share(), slot, count,
                                              static_cast<int32_t>(source.shift)));
    begin += count;
  }
  return Status();
}

// The furthest of the pages; kNone where one is nowhere.
PageTier Splicer::TierOf(const RunSource& source, RunSource::Pages pages, int64_t* to_load) const {
  PageTier tier = PageTier::kPool;
  for (size_t p = pages.first; p < pages.end; ++p) {
    if (p_.pool->Contains(source.keys[p])) continue;
    if (p_.store == nullptr || !p_.store->Contains(source.keys[p])) return PageTier::kNone;
    tier = PageTier::kStore;
    ++*to_load;
  }
  return tier;
}

// How much longer pages may take; `pages` are the first that are asked for.
double Splicer::MsToWait(int64_t pages) {
  using Clock = std::chrono::steady_clock;
  using Millis = std::chrono::duration<double, std::milli>;
  if (!deadline_) {
    PlanInput in;
    in.load_ms_per_page = p_.rates.load_ms_per_page;
    in.compute_ms_per_token = p_.rates.compute_ms_per_token;
    const Millis wait(SplitLoading(in, pages).wait_ms_max);
    deadline_ = Clock::now() + std::chrono::duration_cast<Clock::duration>(wait);
  }
  return Millis(*deadline_ - Clock::now()).count();
}

// Pins what all of `wanted` need; what the store has is loaded, for all of them at once.
void Splicer::Pin(std::span<Wanted> wanted) {
  struct Missing {
    Wanted* of;
    std::vector<int64_t> pages;
    std::shared_ptr<PageLoad> load;
  };
  std::vector<Missing> missing;
  int64_t count = 0;
  for (Wanted& w : wanted) {
    RunSource& source = *w.source;
    const RunSource::Pages pages = source.PagesOf(w.begin, w.end);
    source.pages.resize(source.keys.size());
    std::vector<int64_t> lacks;
    for (size_t p = pages.first; p < pages.end; ++p) {
      PageLease& lease = source.pages[p];
      if (lease) continue;
      lease = p_.pool->Find(source.keys[p], source.tokens.subspan(p * kPageTokens, kPageTokens));
      if (!lease) lacks.push_back(static_cast<int64_t>(p));
    }
    if (lacks.empty()) continue;
    if (p_.store == nullptr) {
      w.status = Status::NotFound("stitcher: a run's page is gone");
      continue;
    }
    count += static_cast<int64_t>(lacks.size());
    auto load = p_.load({request_.scope, p_.fp, source.parent,
                         {source.tokens.begin(), source.tokens.end()}, source.keys, lacks});
    missing.push_back({&w, std::move(lacks), std::move(load)});
  }
  for (Missing& m : missing) {
    std::vector<Result<PageLease>> loaded = m.load->Take(MsToWait(count));
    for (size_t i = 0; i < loaded.size(); ++i) {
      if (loaded[i].ok()) {
        m.of->source->pages[m.pages[i]] = std::move(loaded[i]).value();
      } else if (m.of->status.ok()) {  // the first fault says why
        m.of->status = loaded[i].status();
      }
    }
  }
}

// Pages that are nowhere, from the tokens of their chain.
Status Splicer::PinByComputing(RunSource* source, RunSource::Pages pages) const {
  if (!p_.compute || static_cast<int64_t>(source->left.size()) != source->home) {
    return Status::NotFound("stitcher: a run's page is gone, and its left chain is not known");
  }
  std::vector<TokenId> chain(source->left.begin(), source->left.end());
  const auto own = source->tokens.first(pages.end * kPageTokens);
  chain.insert(chain.end(), own.begin(), own.end());
  HOLDFAST_ASSIGN_OR_RETURN(const Timeline timeline, p_.compute(request_.scope, chain));
  for (size_t p = pages.first; p < pages.end; ++p) {
    source->pages[p] =
        p_.pool->Find(source->keys[p], source->tokens.subspan(p * kPageTokens, kPageTokens));
    if (!source->pages[p]) return Status::Corrupt("stitcher: a recipe's chain has other keys");
  }
  return Status();
}

bool Splicer::Remake(const Recipe& recipe, int64_t length, Stitched* out) {
  const int64_t begin = out->timeline.size();
  std::vector<RunSource> sources;
  std::vector<Wanted> wanted;
  sources.reserve(recipe.spans.size());
  for (const ProvenanceSpan& span : recipe.spans) {
    const int64_t from = std::max(span.begin, begin), to = std::min(span.end, length);
    if (span.origin != KvOrigin::kShifted || from >= to) continue;
    sources.push_back(SourceOf(recipe.sources[span.source], span.shift));
    wanted.push_back({&sources.back(), from, to, Status()});
  }
  Pin(wanted);
  for (Wanted& w : wanted) {
    if (w.status.ok()) continue;
    if (!PinByComputing(w.source, w.source->PagesOf(w.begin, w.end)).ok()) return false;
  }
  size_t next = 0;
  Recipe made = recipe;
  made.spans = out->provenance;
  for (ProvenanceSpan span : recipe.spans) {
    span.begin = std::max(span.begin, begin);
    span.end = std::min(span.end, length);
    if (span.begin >= span.end) continue;
    const int64_t n = span.end - span.begin;
    if (span.origin == KvOrigin::kShifted) {
      if (!SpliceFrom(sources[next++], span.begin, span.end, &out->timeline).ok()) {
        out->timeline.Truncate(begin).IgnoreError();  // it was that long
        return false;
      }
      out->report.shifted += n;
      span.tier = KvTier::kPool;
    } else {
      out->timeline.Extend(request_.tokens.subspan(span.begin, n));
      if (span.origin == KvOrigin::kExact) span.origin = KvOrigin::kFresh;
      span.tier = KvTier::kComputed;
      out->report.to_compute += n;
    }
    AddSpan(&made.spans, span);
  }
  out->provenance = made.spans;
  out->recipe = std::make_shared<const Recipe>(std::move(made));
  out->report.remade = true;
  return true;
}

void Splicer::MakeOffers() {
  for (const Piece& p : request_.pieces) {
    offers_.push_back({.begin = p.at, .end = p.at + p.end - p.begin, .as_is = true});
  }
  for (const FoundRun& run : request_.runs) {
    const RunSource& source = sources_.emplace_back(SourceOf(run));
    RunOffer offer{.begin = run.begin, .end = run.end};
    offer.kind = run.variant->kind;
    offer.tier = TierOf(source, source.PagesOf(run.begin, run.end), &offer.pages_to_load);
    offer.generation = run.variant->generation;
    offer.shift = source.shift;
    offers_.push_back(offer);
  }
  noted_.assign(request_.runs.size(), -1);
}

RunPlan Splicer::MakePlan(int64_t begin) const {
  RunPlanInput in;
  in.tokens = static_cast<int64_t>(request_.tokens.size());
  in.begin = begin;
  in.runs = offers_;
  in.boundaries = request_.boundaries;
  in.reuse = request_.reuse;
  in.card = p_.card.get();
  in.selects = p_.choose != nullptr;
  in.load_ms_per_page = p_.rates.load_ms_per_page;
  in.compute_ms_per_token = p_.rates.compute_ms_per_token;
  return PlanRuns(in);
}

// A plan whose runs are all pinned: what can't be had is planned without.
RunPlan Splicer::PlanPinned(Stitched* out) {
  while (true) {
    RunPlan plan = MakePlan(out->timeline.size());
    if (!request_.pieces.empty()) return plan;
    std::vector<Wanted> wanted;
    for (const RunStep& step : plan.steps) {
      if (step.origin != KvOrigin::kShifted) continue;
      // A probe for windows has whole runs in place.
      const int64_t begin =
          plan.select > 0 ? std::max(offers_[step.run].begin, out->timeline.size()) : step.begin;
      wanted.push_back({&sources_[step.run], begin, step.end, Status()});
    }
    Pin(wanted);
    bool all = true;
    for (const Wanted& w : wanted) {
      if (w.status.ok()) continue;
      all = false;
      RunOffer& offer = offers_[w.source - sources_.data()];
      offer.tier = PageTier::kNone;
      offer.fault = FaultName(w.status);
      out->report.run_faults.push_back(w.status.ToString());
    }
    if (all) return plan;
  }
}

// Asks for windows over a probe: every run in place, nothing of it repaired. Without an answer the
// plan goes without windows, and so without its runs that rest on them: they are computed whole.
void Splicer::AddChosenWindows(const Timeline& timeline, RunPlan* plan) {
  ProbeRequest probe;
  for (const RunStep& step : plan->steps) {
    if (step.origin == KvOrigin::kShifted) probe.runs.push_back({step.begin, step.end});
    if (step.run < 0) continue;
    const int64_t begin = std::max(offers_[step.run].begin, timeline.size());
    if (probe.heads.empty() || probe.heads.back() != begin) probe.heads.push_back(begin);
  }
  probe.budget = plan->select;
  auto fork = timeline.Fork(timeline.size());
  Status status = fork.status();
  if (status.ok()) {
    Timeline t = std::move(fork).value();
    t.KeepPrivate();
    for (RunStep step : plan->steps) {
      if (step.run >= 0) step.origin = KvOrigin::kShifted;
      if (status.ok()) status = Put(step, &t);
    }
    probe.timeline.emplace(std::move(t));
  }
  std::vector<TokenRange> windows;
  if (status.ok()) {
    auto chosen = p_.choose(std::move(probe));
    status = chosen.status();
    if (chosen.ok()) windows = std::move(chosen).value();
  }
  if (!status.ok()) {
    for (const RunStep& step : plan->steps) {
      if (step.origin == KvOrigin::kShifted) windows.push_back({step.begin, step.end});
    }
    plan->fallback = "no windows could be chosen: " + status.ToString();
  }
  *plan = AddWindows(std::move(*plan), windows);
}

Status Splicer::PutPiece(const Piece& piece, const RunStep& step, Timeline* timeline) const {
  const int64_t move = piece.at - piece.begin;  // index here minus index there
  for (const Run& run : piece.source->runs()) {
    const int64_t from = std::max(run.begin, step.begin - move);
    const int64_t to = std::min(run.end(), step.end - move);
    if (from >= to) continue;
    if (!run.page || !run.page.sealed()) {
      return Status::Invalid("stitcher: piece at token " + std::to_string(step.begin) +
                             ": its source is not sealed at token " + std::to_string(from));
    }
    HOLDFAST_RETURN_IF_ERROR(timeline->Splice(
        run.page.Share(), run.first + static_cast<int32_t>(from - run.begin),
        static_cast<int32_t>(to - from), run.shift + static_cast<int32_t>(move)));
  }
  return Status();
}

Status Splicer::Put(const RunStep& step, Timeline* timeline) const {
  if (step.origin != KvOrigin::kShifted) {
    timeline->Extend(request_.tokens.subspan(step.begin, step.end - step.begin));
    return Status();
  }
  if (!request_.pieces.empty()) return PutPiece(request_.pieces[step.run], step, timeline);
  return SpliceFrom(sources_[step.run], step.begin, step.end, timeline);
}

// The recipe's source of that run.
int32_t Splicer::SourceIndex(size_t run, Recipe* recipe) {
  if (run >= noted_.size()) return -1;  // pieces have none
  if (noted_[run] >= 0) return noted_[run];
  const Variant& v = *request_.runs[run].variant;
  RecipeSource source;
  source.segment = v.segment;
  source.variant = v.row;
  source.kind = v.kind;
  source.parent = v.parent;
  source.home = v.position - v.first;
  source.tokens = v.tokens;
  source.left.assign(sources_[run].left.begin(), sources_[run].left.end());
  noted_[run] = static_cast<int32_t>(recipe->sources.size());
  recipe->sources.push_back(std::move(source));
  return noted_[run];
}

void Splicer::Note(const RunStep& step, Recipe* recipe, Stitched* out) {
  ProvenanceSpan span{.begin = step.begin, .end = step.end, .origin = step.origin};
  StitchReport& report = out->report;
  const int64_t n = step.end - step.begin;
  const bool from_run = step.origin == KvOrigin::kShifted;
  const bool loaded = from_run && offers_[step.run].tier == PageTier::kStore;
  if (from_run) span.tier = loaded ? KvTier::kStore : KvTier::kPool;
  if (from_run && out->timeline.taint().IsZero()) {  // it lies at home: no approximation
    span.origin = KvOrigin::kExact;
    (loaded ? report.from_store : report.from_pool) += n;
    return AddSpan(&out->provenance, span);
  }
  (from_run ? report.shifted : report.to_compute) += n;
  if (step.run >= 0) span.source = SourceIndex(static_cast<size_t>(step.run), recipe);
  if (from_run && span.source >= 0) span.shift = sources_[step.run].shift;
  span.generation = out->timeline.taint().IsZero() ? 0 : 1;  // after the step was put
  AddSpan(&out->provenance, span);
}

Status Splicer::Finish(Runs use, Stitched* out) {
  if (use == Runs::kAsPlanned) MakeOffers();
  RunPlan plan = PlanPinned(out);
  if (plan.select > 0) AddChosenWindows(out->timeline, &plan);
  Recipe recipe;
  if (out->recipe != nullptr) recipe = *out->recipe;
  for (const RunStep& step : plan.steps) {
    HOLDFAST_RETURN_IF_ERROR(Put(step, &out->timeline));
    Note(step, &recipe, out);
  }
  StitchReport& report = out->report;
  report.fallback = plan.fallback;
  for (size_t i = 0; i < sources_.size(); ++i) {
    const FoundRun& run = request_.runs[i];
    report.runs.push_back({run.begin, run.end, run.variant->segment, run.variant->row,
                           run.variant->kind, run.shift(), plan.choices[i].used,
                           plan.choices[i].link, plan.choices[i].reason});
  }
  report.cost_ms = plan.cost_ms;
  report.full_ms = plan.full_ms;
  report.totals = TotalsOf(out->provenance);
  if (out->timeline.taint().IsZero()) {
    out->recipe = nullptr;
    return Status();
  }
  const bool more = plan.TokensOf(KvOrigin::kShifted) > 0;
  if (more || out->recipe == nullptr) recipe.reuse = request_.reuse;
  recipe.expected_kl = std::max(recipe.expected_kl, plan.expected_kl);
  recipe.kl_bound = std::max(recipe.kl_bound, plan.kl_bound);
  recipe.spans = out->provenance;
  report.expected_kl = recipe.expected_kl;
  report.kl_bound = recipe.kl_bound;
  out->recipe = std::make_shared<const Recipe>(std::move(recipe));
  return Status();
}

}  // namespace holdfast
