#include "tests/engine/model/naive_llama.h"

#include <cmath>
#include <cstring>

#include "engine/model/gguf.h"

namespace holdfast {
namespace {

using Row = std::vector<double>;

class Naive {
 public:
  explicit Naive(const std::string& file)
      : gguf_(*Gguf::Parse(std::as_bytes(std::span(file)))),
        arch_(*gguf_.Text("general.architecture")),
        is_gemma_(arch_ == "gemma3") {}

  std::vector<Row> Run(std::span<const TokenId> tokens) {
    std::vector<Row> x, logits;
    for (TokenId t : tokens) {
      x.push_back(MatrixRow("token_embd.weight", t));
      if (is_gemma_) Multiply(std::sqrt(static_cast<double>(x.back().size())), &x.back());
    }
    for (int l = 0; l < Number("block_count"); ++l) Layer(l, &x);
    const bool tied = gguf_.FindTensor("output.weight") == nullptr;
    for (const Row& row : x) {
      logits.push_back(
          Times(tied ? "token_embd.weight" : "output.weight", Norm("output_norm.weight", row)));
      const double cap = is_gemma_ ? *gguf_.Real("gemma3.final_logit_softcapping") : 0;
      if (cap == 0) continue;
      for (double& value : logits.back()) value = cap * std::tanh(value / cap);
    }
    return logits;
  }

 private:
  int Number(const std::string& key) const {
    return static_cast<int>(*gguf_.Count(arch_ + "." + key));
  }

  // How many tokens a layer sees; 0 = all.
  int Window(int layer) const {
    if (!is_gemma_ || !gguf_.Has("gemma3.attention.sliding_window")) return 0;
    const int period = Number("attention.sliding_window_pattern");
    return layer % period < period - 1 ? Number("attention.sliding_window") : 0;
  }

  void Layer(int layer, std::vector<Row>* x) const {
    const std::string p = "blk." + std::to_string(layer) + ".";
    const int heads = Number("attention.head_count"), kv_heads = Number("attention.head_count_kv");
    const int dim = Number("rope.dimension_count"), window = Window(layer);
    const double base = *gguf_.Real(arch_ + (window > 0 ? ".rope.freq_base_swa" : ".rope.freq_base"));
    std::vector<Row> k, v;
    for (size_t i = 0; i < x->size(); ++i) {
      const Row h = Norm(p + "attn_norm.weight", (*x)[i]);
      Row q = NormHeads(p + "attn_q_norm.weight", Biased(p + "attn_q", h), dim);
      k.push_back(NormHeads(p + "attn_k_norm.weight", Biased(p + "attn_k", h), dim));
      v.push_back(Biased(p + "attn_v", h));
      Rotate(static_cast<int>(i), dim, base, &q);
      Rotate(static_cast<int>(i), dim, base, &k.back());
      Row mixed(q.size());
      const size_t first = window > 0 && i + 1 > static_cast<size_t>(window) ? i + 1 - window : 0;
      for (int head = 0; head < heads; ++head) {
        MixHead(q, k, v, first, head * dim, head / (heads / kv_heads) * dim, dim, &mixed);
      }
      Row& row = (*x)[i];
      Accumulate(PostNorm(p + "post_attention_norm.weight", Times(p + "attn_output.weight", mixed)),
                 &row);
      const Row n = Norm(p + "ffn_norm.weight", row);
      Row gate = Times(p + "ffn_gate.weight", n);
      const Row up = Times(p + "ffn_up.weight", n);
      for (size_t j = 0; j < gate.size(); ++j) gate[j] = Activation(gate[j]) * up[j];
      Accumulate(PostNorm(p + "post_ffw_norm.weight", Times(p + "ffn_down.weight", gate)), &row);
    }
  }

  double Activation(double g) const {
    if (!is_gemma_) return g / (1 + std::exp(-g));
    return g / 2 * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (g + 0.044715 * g * g * g)));
  }

  static void MixHead(const Row& q, const std::vector<Row>& k, const std::vector<Row>& v,
                      size_t first, int q_at, int kv_at, int dim, Row* out) {
    Row p(k.size());
    double sum = 0;
    for (size_t i = first; i < k.size(); ++i) {
      double dot = 0;
      for (int d = 0; d < dim; ++d) dot += q[q_at + d] * k[i][kv_at + d];
      sum += p[i] = std::exp(dot / std::sqrt(dim));
    }
    for (size_t i = first; i < k.size(); ++i) {
      for (int d = 0; d < dim; ++d) (*out)[q_at + d] += p[i] / sum * v[i][kv_at + d];
    }
  }

  // llama's and mistral's files pair neighbours, the others' the halves.
  void Rotate(int position, int dim, double base, Row* x) const {
    const bool neighbours = arch_ == "llama" || arch_ == "mistral3";
    const GgufTensor* freqs = gguf_.FindTensor("rope_freqs.weight");
    for (size_t head = 0; head < x->size(); head += dim) {
      for (int i = 0; i < dim / 2; ++i) {
        double angle = position * std::pow(base, -2.0 * i / dim);
        if (freqs != nullptr) angle /= At(*freqs, i);
        double& a = (*x)[head + (neighbours ? 2 * i : i)];
        double& b = (*x)[head + (neighbours ? 2 * i + 1 : i + dim / 2)];
        const double a0 = a, b0 = b;
        a = a0 * std::cos(angle) - b0 * std::sin(angle);
        b = a0 * std::sin(angle) + b0 * std::cos(angle);
      }
    }
  }

  Row Norm(const std::string& weight, const Row& x) const {
    double sum = 0;
    for (double value : x) sum += value * value;
    const double eps = *gguf_.Real(arch_ + ".attention.layer_norm_rms_epsilon");
    const double scale = 1 / std::sqrt(sum / static_cast<double>(x.size()) + eps);
    Row y(x);
    for (size_t i = 0; i < x.size(); ++i) y[i] *= scale * At(*gguf_.FindTensor(weight), i);
    return y;
  }

  // Where the file has the weight; else x itself.
  Row NormHeads(const std::string& weight, const Row& x, int dim) const {
    if (gguf_.FindTensor(weight) == nullptr) return x;
    Row y;
    for (auto head = x.begin(); head != x.end(); head += dim) {
      const Row normed = Norm(weight, Row(head, head + dim));
      y.insert(y.end(), normed.begin(), normed.end());
    }
    return y;
  }

  Row PostNorm(const std::string& weight, const Row& x) const {
    return NormHeads(weight, x, static_cast<int>(x.size()));
  }

  Row Biased(const std::string& name, const Row& x) const {
    Row y = Times(name + ".weight", x);
    if (const GgufTensor* bias = gguf_.FindTensor(name + ".bias")) {
      for (size_t i = 0; i < y.size(); ++i) y[i] += At(*bias, i);
    }
    return y;
  }

  Row Times(const std::string& name, const Row& x) const {
    const GgufTensor& w = *gguf_.FindTensor(name);
    Row y(w.dim[1]);
    for (size_t o = 0; o < y.size(); ++o) {
      for (size_t i = 0; i < x.size(); ++i) y[o] += At(w, o * x.size() + i) * x[i];
    }
    return y;
  }

  Row MatrixRow(const std::string& name, int64_t row) const {
    const GgufTensor& w = *gguf_.FindTensor(name);
    Row y(w.dim[0]);
    for (size_t i = 0; i < y.size(); ++i) y[i] = At(w, row * y.size() + i);
    return y;
  }

  static double At(const GgufTensor& t, size_t i) {
    float value;
    std::memcpy(&value, t.data.data() + 4 * i, 4);
    return value;
  }
  static void Multiply(double factor, Row* x) {
    for (double& value : *x) value *= factor;
  }
  static void Accumulate(const Row& add, Row* x) {
    for (size_t i = 0; i < x->size(); ++i) (*x)[i] += add[i];
  }

  const Gguf gguf_;
  const std::string arch_;
  const bool is_gemma_;
};

}  // namespace

std::vector<std::vector<double>> NaiveLogits(const std::string& file,
                                             std::span<const TokenId> tokens) {
  return Naive(file).Run(tokens);
}

}  // namespace holdfast
