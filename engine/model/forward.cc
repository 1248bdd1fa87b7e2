// The forward pass: what a layer is, over rows of any sequences.
//
// Rows live side by side in one buffer per kind of activation; each operation takes all rows at
// once and computes each alone (NUMERICS.md), so it makes no difference which rows share a pass. In
// the last layer, once K and V are stored, only the rows whose logits are wanted are kept.
#include <algorithm>
#include <cassert>
#include <initializer_list>

#include "engine/model/model_impl.h"

namespace holdfast {

struct ForwardPass::Impl {
  Impl(Model::Impl& m, Backend& b)
      : model(m),
        backend(b),
        next_layer(m.config.layers) {
    for (size_t g = 0; g < m.groups.size(); ++g) ropes.push_back(m.MakeRope(g));
  }

  struct Projection {
    const Weight* weight;
    const std::vector<float>* bias;  // null or empty: none
    float* y;
  };

  void Begin(ForwardBatch new_batch);
  void ReserveRope();
  void GroupBySequence();
  void Layer(int layer);
  void Logits();
  void Normalize(const std::vector<float>& weight, const QuantizeTarget& to);
  void NormalizeHeads(int heads, const std::vector<float>& weight, std::vector<float>& x);
  void Balance(const std::vector<float>& factor, std::vector<float>& x);
  void AddBranch(const std::vector<float>& post_norm);
  template <typename F>
  void Project(const float* x, std::initializer_list<Projection> projections, const F& make);
  void StoreKv(int layer);
  void KeepLogitRows();
  void Attend(int layer);
  void SpreadFailures();

  Model::Impl& model;
  Backend& backend;
  std::vector<RopeTable> ropes;  // [groups]
  ForwardBatch batch;
  int next_layer;

  // Of the rows still computed (`live`), in the batch's order:
  int64_t rows = 0;
  std::vector<int32_t> live;       // index into batch.rows
  std::vector<int32_t> row_index;  // 0 .. rows-1
  std::vector<int32_t> position;
  std::vector<uint8_t> failed;
  std::vector<float> residual;     // [rows][width]
  std::vector<float> hidden;       // [rows][max(width, heads * head_dim)]: input of projections
  std::vector<float> q, k, v;      // [rows][heads * head_dim], [rows][kv_heads * head_dim]
  std::vector<float> branch;       // [rows][width]: what a half-layer adds to the residual
  std::vector<float> gate, up;     // [rows][ffn]
  QuantizedRows quantized;
  std::vector<MatMulArgs> products;  // of one Project
  std::vector<std::vector<AttendSequence>> attend;  // [groups]

  // Of all rows of the batch:
  std::vector<int32_t> home, slot;
  std::vector<std::vector<std::byte*>> page;  // [groups][rows]
  std::vector<uint8_t> row_failed;
  std::vector<int32_t> logits_row;  // into `logits`, -1 = none
  std::vector<float> logits;        // [logit rows][vocab]
};

// ---- The transformer.

void ForwardPass::Impl::Layer(int layer) {
  const ModelConfig& c = model.config;
  const LayerWeights& w = model.weights.layers[layer];

  Project(hidden.data(),
          {{w.q.get(), &w.q_bias, q.data()},
           {w.k.get(), &w.k_bias, k.data()},
           {w.v.get(), &w.v_bias, v.data()}},
          [&](const QuantizeTarget& to) { Normalize(w.attn_norm, to); });
  if (c.qk_norm) {
    NormalizeHeads(c.heads, w.q_norm, q);
    NormalizeHeads(c.kv_heads, w.k_norm, k);
  }
  Balance(w.q_factor, q);
  Balance(w.k_factor, k);
  StoreKv(layer);
  if (batch.observe_queries) {
    batch.observe_queries(layer, std::span(q).first(rows * size_t(c.heads) * c.head_dim));
  }
  if (layer + 1 == c.layers) KeepLogitRows();
  if (rows == 0) return;
  Attend(layer);
  const int64_t attended = int64_t{c.heads} * c.head_dim;
  Project(hidden.data(), {{w.o.get(), &w.o_bias, branch.data()}},
          [&](const QuantizeTarget& to) {
            if (to.out != nullptr) backend.Quantize({rows, attended, hidden.data(), to});
          });
  AddBranch(w.attn_post_norm);

  Project(hidden.data(),
          {{w.gate.get(), nullptr, gate.data()}, {w.up.get(), nullptr, up.data()}},
          [&](const QuantizeTarget& to) { Normalize(w.ffn_norm, to); });
  Project(gate.data(), {{w.down.get(), nullptr, branch.data()}},
          [&](const QuantizeTarget& to) {
            backend.Glu({.activation = c.gelu ? Activation::kGelu : Activation::kSilu,
                         .rows = rows, .cols = c.ffn, .gate = gate.data(), .up = up.data(),
                         .h = gate.data(), .quantize = to});
          });
  AddBranch(w.ffn_post_norm);
}

void ForwardPass::Impl::Logits() {
  const ModelConfig& c = model.config;
  if (rows > 0) {
    logits.resize(static_cast<size_t>(rows) * c.vocab);
    Project(hidden.data(), {{&model.weights.head(), nullptr, logits.data()}},
            [&](const QuantizeTarget& to) { Normalize(model.weights.output_norm, to); });
    backend.CheckFinite(rows, c.vocab, logits.data(), failed.data());
    if (c.logit_cap != 0) backend.SoftCap(rows * c.vocab, c.logit_cap, logits.data());
  }
  SpreadFailures();
}

// ---- Its parts.

void ForwardPass::Impl::Normalize(const std::vector<float>& weight, const QuantizeTarget& to) {
  backend.RmsNorm({.rows = rows, .cols = model.config.width, .x = residual.data(),
                   .w = weight.data(), .eps = model.config.norm_eps, .y = hidden.data(),
                   .quantize = to});
}

// `x` is [rows][heads * head_dim]; a head is a row of its own.
void ForwardPass::Impl::NormalizeHeads(int heads, const std::vector<float>& weight,
                                       std::vector<float>& x) {
  backend.RmsNorm({.rows = rows * heads, .cols = model.config.head_dim, .x = x.data(),
                   .w = weight.data(), .eps = model.config.norm_eps, .y = x.data()});
}

// Powers of two: exact, so that this is no operation of the backend (key_balance.h).
void ForwardPass::Impl::Balance(const std::vector<float>& factor, std::vector<float>& x) {
  if (factor.empty()) return;
  backend.ForEach(rows, [&](int64_t r) {
    float* row = x.data() + r * factor.size();
    for (size_t i = 0; i < factor.size(); ++i) row[i] = row[i] * factor[i];
  });
}

void ForwardPass::Impl::AddBranch(const std::vector<float>& post_norm) {
  if (model.config.post_norms) {
    backend.RmsNorm({.rows = rows, .cols = model.config.width, .x = branch.data(),
                     .w = post_norm.data(), .eps = model.config.norm_eps, .y = branch.data()});
  }
  backend.Add(rows * model.config.width, branch.data(), residual.data());
}

// Several matrices over the same rows `x`, which `make` makes, quantised once where it is told to.
template <typename F>
void ForwardPass::Impl::Project(const float* x, std::initializer_list<Projection> projections,
                                const F& make) {
  products.clear();
  QuantizeTarget to;
  for (const Projection& p : projections) {
    if (NeedsQuantized(p.weight->type())) to = {&quantized, failed.data()};
    const bool biased = p.bias != nullptr && !p.bias->empty();
    products.push_back({.w = p.weight, .rows = rows, .x = x, .xq = &quantized,
                        .bias = biased ? p.bias->data() : nullptr, .y = p.y,
                        .y_stride = p.weight->outputs()});
  }
  make(to);
  backend.MatMuls(products);
}

void ForwardPass::Impl::StoreKv(int layer) {
  const LayerPlace at = model.places[layer];
  backend.StoreKv({.group = &model.groups[at.group], .layer = at.layer, .rope = &ropes[at.group],
                   .rows = rows, .k = k.data(), .v = v.data(), .position = home.data(),
                   .page = page[at.group].data(), .slot = slot.data(),
                   .row_failed = failed.data()});
}

void ForwardPass::Impl::Attend(int layer) {
  const LayerPlace at = model.places[layer];
  backend.Attend({.group = &model.groups[at.group], .layer = at.layer, .rope = &ropes[at.group],
                  .q_heads = model.config.heads, .scale = model.config.attention_scale,
                  .q = q.data(), .out = hidden.data(), .sequences = attend[at.group]});
}

// ---- Rows.

void ForwardPass::Impl::Begin(ForwardBatch new_batch) {
  const ModelConfig& c = model.config;
  batch = std::move(new_batch);
  rows = static_cast<int64_t>(batch.rows.size());
  const size_t n = batch.rows.size();
  next_layer = rows == 0 ? c.layers : 0;
  live.clear();
  position.clear();
  home.clear();
  slot.clear();
  page.assign(model.groups.size(), {});
  std::vector<TokenId> tokens;
  for (const ForwardRow& row : batch.rows) {
    assert(row.token >= 0 && row.token < c.vocab);
    live.push_back(static_cast<int32_t>(live.size()));
    position.push_back(row.position);
    home.push_back(row.home >= 0 ? row.home : row.position);
    slot.push_back(row.slot);
    for (size_t g = 0; g < page.size(); ++g) page[g].push_back(row.page[g]);
    tokens.push_back(row.token);
  }
  failed.assign(n, 0);
  row_failed.assign(n, 0);
  logits_row.assign(n, -1);
  const size_t q_size = static_cast<size_t>(c.heads) * c.head_dim;
  const size_t kv_size = static_cast<size_t>(c.kv_heads) * c.head_dim;
  residual.resize(n * c.width);
  hidden.resize(n * std::max<size_t>(c.width, q_size));
  branch.resize(n * c.width);
  q.resize(n * q_size);
  k.resize(n * kv_size);
  v.resize(n * kv_size);
  gate.resize(n * c.ffn);
  up.resize(n * c.ffn);
  ReserveRope();
  GroupBySequence();
  if (rows == 0) return;
  backend.Embed(*model.weights.embed, tokens, residual.data());
  if (c.embed_scale != 1) backend.Scale(rows * c.width, c.embed_scale, residual.data());
}

// The table must reach every place where K is put and every p - shift that a query turns to.
void ForwardPass::Impl::ReserveRope() {
  std::vector<int32_t> least_shift(batch.sequences.size(), 0);
  for (size_t s = 0; s < least_shift.size(); ++s) {
    for (const auto& runs : batch.sequences[s].runs) {
      for (const KvRun& run : runs) least_shift[s] = std::min(least_shift[s], run.shift);
    }
  }
  int64_t last = -1;
  for (const ForwardRow& row : batch.rows) {
    const int64_t turned = int64_t{row.position} - least_shift[row.sequence];
    last = std::max<int64_t>({last, turned, row.home});
  }
  for (RopeTable& rope : ropes) rope.Reserve(last + 1);
}

void ForwardPass::Impl::GroupBySequence() {
  row_index.resize(live.size());
  for (size_t i = 0; i < live.size(); ++i) row_index[i] = static_cast<int32_t>(i);
  attend.assign(model.groups.size(), {});
  for (size_t begin = 0, end = 0; begin < live.size(); begin = end) {
    const int32_t sequence = batch.rows[live[begin]].sequence;
    while (end < live.size() && batch.rows[live[end]].sequence == sequence) ++end;
    for (size_t g = 0; g < attend.size(); ++g) {
      attend[g].push_back({.runs = batch.sequences[sequence].runs[g],
                           .row = std::span(row_index).subspan(begin, end - begin),
                           .position = std::span(position).subspan(begin, end - begin)});
    }
  }
}

void ForwardPass::Impl::KeepLogitRows() {
  const size_t width = static_cast<size_t>(model.config.width);
  const size_t q_size = static_cast<size_t>(model.config.heads) * model.config.head_dim;
  size_t kept = 0;
  for (size_t i = 0; i < live.size(); ++i) {
    row_failed[live[i]] = failed[i];
    if (!batch.rows[live[i]].logits) continue;
    logits_row[live[i]] = static_cast<int32_t>(kept);
    live[kept] = live[i];
    position[kept] = position[i];
    failed[kept] = failed[i];
    if (kept != i) {
      std::copy_n(residual.begin() + i * width, width, residual.begin() + kept * width);
      std::copy_n(q.begin() + i * q_size, q_size, q.begin() + kept * q_size);
    }
    ++kept;
  }
  live.resize(kept);
  position.resize(kept);
  rows = static_cast<int64_t>(kept);
  GroupBySequence();
}

// A row that failed has left unspecified KV, which later rows of its sequence saw.
void ForwardPass::Impl::SpreadFailures() {
  for (size_t i = 0; i < live.size(); ++i) row_failed[live[i]] |= failed[i];
  std::vector<uint8_t> sequence_failed(batch.sequences.size(), 0);
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    sequence_failed[batch.rows[r].sequence] |= row_failed[r];
  }
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    row_failed[r] = sequence_failed[batch.rows[r].sequence];
  }
}

// ---- The boundary.

ForwardPass::ForwardPass(Model& model, Backend* backend)
    : impl_(std::make_unique<Impl>(*model.impl_, backend ? *backend : *model.impl_->backend)) {}
ForwardPass::~ForwardPass() = default;

void ForwardPass::Begin(ForwardBatch batch) { impl_->Begin(std::move(batch)); }

bool ForwardPass::done() const { return layers_left() == 0; }

int ForwardPass::layers_left() const { return impl_->model.config.layers - impl_->next_layer; }

void ForwardPass::StepLayer() {
  assert(!done());
  impl_->Layer(impl_->next_layer++);
  if (done()) impl_->Logits();
}

std::span<const float> ForwardPass::logits(int64_t row) const {
  const int32_t at = impl_->logits_row[static_cast<size_t>(row)];
  if (at < 0 || failed(row)) return {};
  const size_t vocab = static_cast<size_t>(impl_->model.config.vocab);
  return std::span(impl_->logits).subspan(static_cast<size_t>(at) * vocab, vocab);
}

bool ForwardPass::failed(int64_t row) const {
  return impl_->row_failed[static_cast<size_t>(row)] != 0;
}

}  // namespace holdfast
