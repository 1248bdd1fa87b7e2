#include "stitcher/select.h"

#include <algorithm>
#include <cstring>

#include "engine/backend/half.h"
#include "engine/model/softmax.h"

namespace holdfast {
namespace {

constexpr int kBlock = kPageTokens;

// K of the slots of one page and head as fp32, [k_dim][kPageTokens]; kI8 stays mixed (NUMERICS.md
// section 7).
void ReadKeys(const LayerGroup& g, const std::byte* k, float* out) {
  if (g.k_type == KvType::kF32) {
    std::memcpy(out, k, sizeof(float) * g.k_dim * kBlock);
    return;
  }
  for (int d = 0; d < g.k_dim; ++d) {
    for (int slot = 0; slot < kBlock; ++slot) {
      const std::byte* at = k + g.KOffset(d, slot);
      float value;
      if (g.k_type == KvType::kF16) {
        uint16_t half;
        std::memcpy(&half, at, sizeof(half));
        value = HalfToFloat(half);
      } else {
        std::memcpy(&value, k + g.KScaleOffset(slot), sizeof(value));
        value *= static_cast<float>(static_cast<int8_t>(*at));
      }
      out[d * kBlock + slot] = value;
    }
  }
}

// Turns one query by a row of the table; dims beyond it stay.
void Turn(const float* turn, int rope_dim, int dim, const float* q, float* out) {
  std::copy_n(q, dim, out);
  const int half = rope_dim / 2;
  for (int i = 0; i < half; ++i) {
    const float c = turn[i], s = turn[half + i];
    out[i] = q[i] * c - q[i + half] * s;
    out[i + half] = q[i + half] * c + q[i] * s;
  }
}

// Mixes a query as stored kI8 K is mixed, so that the dot product is that of the unmixed ones.
void Mix(int dim, float* x) {
  const int block = dim & -dim;
  std::vector<float> from(dim);
  for (int step = 1; step < block; step *= 2) {
    std::copy_n(x, dim, from.begin());
    for (int n = 0; n < dim / 2; ++n) {
      const int at = 2 * n / block * block + n % (block / 2);
      x[2 * n] = from[at] + from[at + block / 2];
      x[2 * n + 1] = from[at] - from[at + block / 2];
    }
  }
  for (int d = 0; d < dim; ++d) x[d] /= static_cast<float>(block);
}

// The rows of one KV head's query heads over one sequence.
class HeadScores {
 public:
  HeadScores(const LayerGroup& group, int layer, const RopeTable& rope, float scale, int q_heads)
      : group_(group), layer_(layer), rope_(rope), scale_(scale), q_heads_(q_heads) {}

  // Adds to mass[i] what index i gets.
  void AddTo(int kv_head, std::span<const float> q, std::span<const int64_t> position,
             std::span<const KvRun> runs, double* mass) {
    const int64_t length = *std::max_element(position.begin(), position.end()) + 1;
    const int per_head = q_heads_ / group_.heads;
    const size_t n = position.size() * per_head;
    turned_.resize(n * group_.k_dim);
    keys_.resize(static_cast<size_t>(group_.k_dim) * kBlock);
    scores_.resize(n * length);
    Score(kv_head, q, position, runs, length);
    for (size_t r = 0; r < n; ++r) {
      const int64_t end = position[r / per_head] + 1;
      const int64_t begin = group_.window > 0 ? std::max<int64_t>(0, end - group_.window) : 0;
      const std::span<float> visible(&scores_[r * length + begin], end - begin);
      const double sum = ExpRow(visible, RowMax(visible), 1.0f, visible.data());
      for (int64_t i = begin; i < end; ++i) mass[i] += visible[i - begin] / sum;
    }
  }

 private:
  void Score(int kv_head, std::span<const float> q, std::span<const int64_t> position,
             std::span<const KvRun> runs, int64_t length) {
    int64_t index = 0;
    const KvRun* before = nullptr;
    for (const KvRun& run : runs) {
      if (index >= length) break;
      if (before == nullptr || before->shift != run.shift) {
        TurnAll(kv_head, q, position, run.shift);
      }
      if (before == nullptr || before->page != run.page) {
        ReadKeys(group_, run.page + group_.HeadOffset(layer_, kv_head), keys_.data());
      }
      before = &run;
      const auto count = std::min<int64_t>(run.count, length - index);
      ScoreRun(run.first, static_cast<int>(count), index, length);
      index += run.count;
    }
  }

  void TurnAll(int kv_head, std::span<const float> q, std::span<const int64_t> position,
               int32_t shift) {
    const int dim = group_.k_dim, per_head = q_heads_ / group_.heads;
    float* out = turned_.data();
    for (size_t r = 0; r < position.size(); ++r) {
      // Indices before a run that is used earlier than it was computed: no row there sees it.
      const float* turn = rope_.Row(std::max<int64_t>(0, position[r] - shift));
      for (int h = 0; h < per_head; ++h, out += dim) {
        const size_t head = r * q_heads_ + kv_head * per_head + h;
        Turn(turn, rope_.dim(), dim, q.data() + head * dim, out);
        for (int d = 0; d < dim; ++d) out[d] *= scale_;
        if (group_.k_type == KvType::kI8) Mix(dim, out);
      }
    }
  }

  void ScoreRun(int first, int count, int64_t index, int64_t length) {
    const int dim = group_.k_dim;
    const size_t n = turned_.size() / dim;
    for (size_t r = 0; r < n; ++r) {
      float sum[kBlock] = {};
      const float* x = &turned_[r * dim];
      for (int d = 0; d < dim; ++d) {
        const float* key = &keys_[static_cast<size_t>(d) * kBlock];
        for (int j = 0; j < kBlock; ++j) sum[j] = sum[j] + x[d] * key[j];
      }
      std::copy_n(sum + first, count, &scores_[r * length + index]);
    }
  }

  const LayerGroup& group_;
  const int layer_;
  const RopeTable& rope_;
  const float scale_;
  const int q_heads_;
  std::vector<float> turned_;  // [rows * heads][k_dim]
  std::vector<float> keys_;    // [k_dim][kPageTokens]
  std::vector<float> scores_;  // [rows * heads][length]
};

}  // namespace

AttentionMass::AttentionMass(const Model& model, int64_t tokens)
    : model_(model), mass_(static_cast<size_t>(tokens), 0.0) {
  for (size_t g = 0; g < model.groups().size(); ++g) ropes_.push_back(model.MakeRope(g));
}

void AttentionMass::Add(int layer, std::span<const float> q, std::span<const int64_t> position,
                        std::span<const KvRun> runs) {
  if (position.empty()) return;
  const LayerPlace at = model_.place(layer);
  const LayerGroup& group = model_.groups()[at.group];
  int32_t least_shift = 0;
  for (const KvRun& run : runs) least_shift = std::min(least_shift, run.shift);
  const int64_t length = *std::max_element(position.begin(), position.end()) + 1;
  ropes_[at.group].Reserve(length - least_shift);
  std::vector<std::vector<double>> of_head(group.heads, std::vector<double>(length, 0.0));
  model_.backend().ForEach(group.heads, [&](int64_t head) {
    HeadScores scores(group, at.layer, ropes_[at.group], model_.config().attention_scale,
                      model_.config().heads);
    scores.AddTo(static_cast<int>(head), q, position, runs, of_head[head].data());
  });
  const int64_t known = std::min<int64_t>(length, static_cast<int64_t>(mass_.size()));
  for (const auto& one : of_head) {
    for (int64_t i = 0; i < known; ++i) mass_[i] += one[i];
  }
}

QuestionProbe::QuestionProbe(AttentionMass* mass, const Model& model, int64_t question,
                             int64_t tokens)
    : mass_(mass), model_(&model), first_(std::max(question, tokens - kProbeRows)) {}

void QuestionProbe::operator()(int layer, const Timeline& timeline, std::span<const int64_t> rows,
                               std::span<const float> q) const {
  if (layer < model_->config().layers / 2) return;
  const auto from = std::lower_bound(rows.begin(), rows.end(), first_) - rows.begin();
  const auto scored = rows.subspan(from);
  if (scored.empty()) return;
  std::vector<KvRun> runs;
  timeline.Views(rows.back() + 1, static_cast<int>(model_->place(layer).group), &runs);
  const size_t width = q.size() / rows.size();
  mass_->Add(layer, q.subspan(from * width), scored, runs);
}

std::vector<TokenRange> ChooseWindows(std::span<const double> mass,
                                      std::span<const TokenRange> runs,
                                      std::span<const int64_t> heads, int64_t budget) {
  struct Window {
    TokenRange range;
    double sum = 0;
  };
  const auto is_sink = [&](int64_t i) {
    const auto after = std::upper_bound(heads.begin(), heads.end(), i);
    return i < kSinkTokens || (after != heads.begin() && i - *(after - 1) < kSinkTokens);
  };
  std::vector<Window> windows;
  for (const TokenRange& run : runs) {
    for (int64_t begin = run.begin; begin < run.end;) {
      const int64_t end = std::min(run.end, (begin / kBlock + 1) * kBlock);
      Window w{{begin, end}};
      for (int64_t i = begin; i < end; ++i) w.sum += is_sink(i) ? 0 : mass[i];
      windows.push_back(w);
      begin = end;
    }
  }
  std::stable_sort(windows.begin(), windows.end(),
                   [](const Window& a, const Window& b) { return a.sum > b.sum; });
  std::vector<TokenRange> chosen;
  for (const Window& w : windows) {
    if (w.range.size() > budget) continue;
    budget -= w.range.size();
    chosen.push_back(w.range);
  }
  std::sort(chosen.begin(), chosen.end(),
            [](const TokenRange& a, const TokenRange& b) { return a.begin < b.begin; });
  return Union(chosen, {});
}

std::vector<TokenRange> Without(std::span<const TokenRange> ranges,
                                std::span<const TokenRange> gone) {
  std::vector<TokenRange> out;
  for (TokenRange rest : ranges) {
    for (const TokenRange& g : gone) {
      if (g.end <= rest.begin || g.begin >= rest.end) continue;
      if (g.begin > rest.begin) out.push_back({rest.begin, g.begin});
      rest.begin = std::min(rest.end, g.end);
    }
    if (rest.begin < rest.end) out.push_back(rest);
  }
  return out;
}

std::vector<TokenRange> Union(std::span<const TokenRange> a, std::span<const TokenRange> b) {
  std::vector<TokenRange> all(a.begin(), a.end());
  all.insert(all.end(), b.begin(), b.end());
  std::sort(all.begin(), all.end(),
            [](const TokenRange& x, const TokenRange& y) { return x.begin < y.begin; });
  std::vector<TokenRange> out;
  for (const TokenRange& r : all) {
    if (r.begin >= r.end) continue;
    if (!out.empty() && out.back().end >= r.begin) {
      out.back().end = std::max(out.back().end, r.end);
    } else {
      out.push_back(r);
    }
  }
  return out;
}

int64_t TokensIn(std::span<const TokenRange> ranges) {
  int64_t n = 0;
  for (const TokenRange& r : ranges) n += r.size();
  return n;
}

}  // namespace holdfast
