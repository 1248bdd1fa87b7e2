#include "engine/model/weights.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>

namespace holdfast {
namespace {

// One tensor on its way to one place: a matrix or a vector.
struct Job {
  const GgufTensor* tensor = nullptr;
  std::unique_ptr<Weight>* matrix = nullptr;
  std::vector<float>* vector = nullptr;
  int64_t outputs = 0;       // rows of a matrix, length of a vector
  int64_t inputs = 0;        // of a matrix
  int interleaved_heads = 0; // heads whose rows change their order; 0 = none
  Digest digest;
};

std::string Shape(uint64_t inner, uint64_t outer) {
  std::string text = "[";
  text += std::to_string(inner);
  if (outer != 0) text.append(" x ").append(std::to_string(outer));
  return text += "]";
}

std::string SupportedTypes() {
  std::string text;
  for (WeightType type : AllWeightTypes()) text.append(" ").append(WeightTypeName(type));
  return text;
}

enum class Need : uint8_t { kRequired, kOptional };

// Lists the tensors of the model and verifies that the file has exactly these.
class Planner {
 public:
  Planner(const Gguf& gguf, const ModelConfig& config, ModelWeights* out)
      : gguf_(gguf), c_(config), out_(out) {}

  Result<std::vector<Job>> Plan() {
    out_->layers.resize(c_.layers);
    HOLDFAST_RETURN_IF_ERROR(Matrix("token_embd.weight", c_.width, c_.vocab, &out_->embed));
    HOLDFAST_RETURN_IF_ERROR(
        Matrix("output.weight", c_.width, c_.vocab, &out_->output, Need::kOptional));
    HOLDFAST_RETURN_IF_ERROR(Vector("output_norm.weight", c_.width, &out_->output_norm));
    for (int i = 0; i < c_.layers; ++i) HOLDFAST_RETURN_IF_ERROR(PlanLayer(i));
    if (gguf_.FindTensor("rope_freqs.weight") != nullptr) used_.insert("rope_freqs.weight");
    for (const GgufTensor& t : gguf_.tensors()) {
      if (!used_.contains(t.name)) {
        return Status::Invalid("model: tensor " + GgufQuote(t.name) + " has no place in a " +
                               c_.architecture + " model of " + std::to_string(c_.layers) +
                               " layers");
      }
    }
    return std::move(jobs_);
  }

 private:
  Status PlanLayer(int i) {
    const std::string p = "blk." + std::to_string(i) + ".";
    LayerWeights& w = out_->layers[i];
    const int64_t q = int64_t{c_.heads} * c_.head_dim, kv = int64_t{c_.kv_heads} * c_.head_dim;
    const int q_turn = c_.interleaved_rope ? c_.heads : 0;
    const int k_turn = c_.interleaved_rope ? c_.kv_heads : 0;
    const Need bias = c_.qkv_bias ? Need::kRequired : Need::kOptional;
    HOLDFAST_RETURN_IF_ERROR(Vector(p + "attn_norm.weight", c_.width, &w.attn_norm));
    HOLDFAST_RETURN_IF_ERROR(
        Matrix(p + "attn_q.weight", c_.width, q, &w.q, Need::kRequired, q_turn));
    HOLDFAST_RETURN_IF_ERROR(
        Matrix(p + "attn_k.weight", c_.width, kv, &w.k, Need::kRequired, k_turn));
    HOLDFAST_RETURN_IF_ERROR(Matrix(p + "attn_v.weight", c_.width, kv, &w.v));
    HOLDFAST_RETURN_IF_ERROR(Matrix(p + "attn_output.weight", q, c_.width, &w.o));
    HOLDFAST_RETURN_IF_ERROR(Vector(p + "attn_q.bias", q, &w.q_bias, bias, q_turn));
    HOLDFAST_RETURN_IF_ERROR(Vector(p + "attn_k.bias", kv, &w.k_bias, bias, k_turn));
    HOLDFAST_RETURN_IF_ERROR(Vector(p + "attn_v.bias", kv, &w.v_bias, bias));
    HOLDFAST_RETURN_IF_ERROR(
        Vector(p + "attn_output.bias", c_.width, &w.o_bias, Need::kOptional));
    if (c_.qk_norm) {
      HOLDFAST_RETURN_IF_ERROR(Vector(p + "attn_q_norm.weight", c_.head_dim, &w.q_norm));
      HOLDFAST_RETURN_IF_ERROR(Vector(p + "attn_k_norm.weight", c_.head_dim, &w.k_norm));
    }
    if (c_.post_norms) {
      HOLDFAST_RETURN_IF_ERROR(
          Vector(p + "post_attention_norm.weight", c_.width, &w.attn_post_norm));
      HOLDFAST_RETURN_IF_ERROR(Vector(p + "post_ffw_norm.weight", c_.width, &w.ffn_post_norm));
    }
    HOLDFAST_RETURN_IF_ERROR(Vector(p + "ffn_norm.weight", c_.width, &w.ffn_norm));
    HOLDFAST_RETURN_IF_ERROR(Matrix(p + "ffn_gate.weight", c_.width, c_.ffn, &w.gate));
    HOLDFAST_RETURN_IF_ERROR(Matrix(p + "ffn_up.weight", c_.width, c_.ffn, &w.up));
    return Matrix(p + "ffn_down.weight", c_.ffn, c_.width, &w.down);
  }

  // Null without an error for an optional tensor that is not there.
  Result<const GgufTensor*> Find(const std::string& name, uint64_t inner, uint64_t outer,
                                 Need need) {
    const GgufTensor* t = gguf_.FindTensor(name);
    if (t == nullptr) {
      if (need == Need::kOptional) return t;
      return Status::Corrupt("model: tensor '" + name + "' is missing");
    }
    if (!t->known()) {
      return Status::Invalid("model: tensor '" + name + "' is " + GgufTensorTypeName(t->type) +
                             ", which is not supported; the types that are:" + SupportedTypes());
    }
    if (t->dims != (outer == 0 ? 1u : 2u) || t->dim[0] != inner ||
        (outer != 0 && t->dim[1] != outer)) {
      return Status::Corrupt("model: tensor '" + name + "' is " +
                             Shape(t->dim[0], t->dims == 1 ? 0 : t->dim[1]) + " where " +
                             Shape(inner, outer) + " is expected");
    }
    used_.insert(t->name);
    return t;
  }

  Status Matrix(const std::string& name, int64_t inputs, int64_t outputs,
                std::unique_ptr<Weight>* to, Need need = Need::kRequired,
                int interleaved_heads = 0) {
    HOLDFAST_ASSIGN_OR_RETURN(const GgufTensor* t, Find(name, inputs, outputs, need));
    if (t == nullptr) return {};
    out_->types.insert(static_cast<WeightType>(t->type));
    jobs_.push_back({t, to, nullptr, outputs, inputs, interleaved_heads, {}});
    return {};
  }

  Status Vector(const std::string& name, int64_t size, std::vector<float>* to,
                Need need = Need::kRequired, int interleaved_heads = 0) {
    HOLDFAST_ASSIGN_OR_RETURN(const GgufTensor* t, Find(name, size, 0, need));
    if (t == nullptr) return {};
    if (t->type != static_cast<uint32_t>(WeightType::kF32)) {
      return Status::Invalid("model: tensor '" + name + "' is " + GgufTensorTypeName(t->type) +
                             "; norms and biases must be F32");
    }
    jobs_.push_back({t, nullptr, to, size, 1, interleaved_heads, {}});
    return {};
  }

  const Gguf& gguf_;
  const ModelConfig& c_;
  ModelWeights* out_;
  std::vector<Job> jobs_;
  std::set<std::string_view> used_;
};

// Rows of each head, in the order x0 y0 x1 y1 ..., become x0 x1 ... y0 y1 ...: the file pairs
// (2i, 2i+1), the kernels (i, i + dim/2).
std::vector<std::byte> HalfSplitRows(std::span<const std::byte> data, int64_t rows, int heads) {
  const size_t row_bytes = data.size() / static_cast<size_t>(rows);
  const int64_t dim = rows / heads;
  std::vector<std::byte> out(data.size());
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t i = r % dim;
    const int64_t from = r - i + (i < dim / 2 ? 2 * i : 2 * (i - dim / 2) + 1);
    std::memcpy(out.data() + r * row_bytes, data.data() + from * row_bytes, row_bytes);
  }
  return out;
}

// Runs the jobs on several threads, of which the calling one works too and reports.
class Packer {
 public:
  Packer(const FileMap& map, Backend& backend, std::vector<Job>& jobs)
      : map_(map), backend_(backend), jobs_(jobs) {
    for (const Job& job : jobs) total_ += job.tensor->data.size();
    // Large ones first: a file's copy and a packed copy of the largest then stand alone.
    std::stable_sort(jobs.begin(), jobs.end(), [](const Job& a, const Job& b) {
      return a.tensor->data.size() > b.tensor->data.size();
    });
  }

  Status Run(int threads, const std::function<void(double)>& progress) {
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back([this] { Work({}); });
    Work(progress);
    for (std::thread& other : others) other.join();
    if (failed_.ok() && progress) progress(1.0);
    return std::move(failed_);
  }

 private:
  void Work(const std::function<void(double)>& progress) {
    for (size_t i = next_++; i < jobs_.size() && !stop_; i = next_++) {
      Status status = Pack(&jobs_[i]);
      if (!status.ok()) {
        stop_ = true;
        std::lock_guard lock(mu_);
        if (failed_.ok()) failed_ = std::move(status);
        return;
      }
      const size_t bytes = packed_ += jobs_[i].tensor->data.size();
      if (progress) progress(static_cast<double>(bytes) / static_cast<double>(total_));
    }
  }

  Status Pack(Job* job) {
    const std::span<const std::byte> raw = job->tensor->data;
    job->digest = Sha256(raw.data(), raw.size());
    std::span<const std::byte> data = raw;
    std::vector<std::byte> split;
    if (job->interleaved_heads != 0) {
      split = HalfSplitRows(raw, job->outputs, job->interleaved_heads);
      map_.Drop(raw);
      data = split;
    }
    if (job->vector != nullptr) {
      job->vector->resize(static_cast<size_t>(job->outputs));
      std::memcpy(job->vector->data(), data.data(), data.size());
    } else {
      WeightSource source;
      source.type = static_cast<WeightType>(job->tensor->type);
      source.outputs = job->outputs;
      source.inputs = job->inputs;
      source.data = data.data();
      auto packed = backend_.Pack(source);
      if (!packed.ok()) {
        return {packed.status().code(), "model: tensor " + GgufQuote(job->tensor->name) + ": " +
                                            packed.status().message()};
      }
      *job->matrix = std::move(packed).value();
    }
    map_.Drop(raw);
    return {};
  }

  const FileMap& map_;
  Backend& backend_;
  std::vector<Job>& jobs_;
  size_t total_ = 0;
  std::atomic<size_t> next_{0};
  std::atomic<size_t> packed_{0};  // bytes
  std::atomic<bool> stop_{false};
  std::mutex mu_;
  Status failed_;  // the first failure; guarded by mu_ while others work
};

Digest TreeDigest(std::vector<Job> jobs) {
  std::sort(jobs.begin(), jobs.end(),
            [](const Job& a, const Job& b) { return a.tensor->name < b.tensor->name; });
  Hasher h("weights-1");
  h.U64(jobs.size());
  for (const Job& job : jobs) {
    h.Text(job.tensor->name).U64(job.tensor->type).U64(job.tensor->dims);
    for (uint64_t dim : job.tensor->dim) h.U64(dim);
    h.Add(job.digest);
  }
  return h.Finish();
}

}  // namespace

Result<ModelWeights> LoadWeights(const FileMap& map, const Gguf& gguf, const ModelConfig& config,
                                 Backend& backend, int threads,
                                 const std::function<void(double)>& progress) {
  ModelWeights weights;
  HOLDFAST_ASSIGN_OR_RETURN(std::vector<Job> jobs, Planner(gguf, config, &weights).Plan());
  if (threads <= 0) threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  threads = std::min<int>(threads, static_cast<int>(jobs.size()));
  HOLDFAST_RETURN_IF_ERROR(Packer(map, backend, jobs).Run(threads, progress));
  for (const Job& job : jobs) {
    weights.bytes += job.matrix ? (*job.matrix)->bytes() : job.vector->size() * sizeof(float);
  }
  weights.digest = TreeDigest(jobs);
  return weights;
}

}  // namespace holdfast
