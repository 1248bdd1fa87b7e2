// What a machine allows at most: the work of a pass over a model, divided by the machine's rates.
// Pure.
//
//   seconds = max(bytes / read rate, INT8 operations / INT8 rate + FP32 operations / FP32 rate)
//
// Bytes are counted once per pass: every matrix that is multiplied, as the model file holds it (the
// embedding only where it is the head too; of its table one row per token is read, which is
// nothing), and the KV that rows see, once where sequences share it. Operations are a multiply and
// an add for each element of a matrix and row (of the head only for rows whose logits are wanted),
// and the same for QK and PV of each pair of a row and a token that it sees (causal, inside the
// layer's window). QK counts as INT8 where K is stored so, else both are FP32, as the engine
// computes them. Norms, activations, rotations and what is written are left out: a limit is never
// too low.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/base/moving_median.h"

namespace holdfast {

struct MachineRates {
  double read = 0;  // bytes/s
  double int8 = 0;  // operations/s
  double fp32 = 0;
};
MachineRates MedianOf(const std::vector<MachineRates>& rates);  // of each rate alone

struct ModelCost {
  double weight_bytes = 0;                       // of all matrices that a pass reads
  double int8_elements = 0, fp32_elements = 0;   // of matrices that every row meets
  double int8_head = 0, fp32_head = 0;           // of the head
  struct Group {                                 // layers that are alike
    int layers = 0;
    int window = 0;                              // 0: a row sees all before it
    double kv_bytes = 0;                         // of one token in one layer
    double qk_ops = 0, pv_ops = 0;               // of a row and a token that it sees, one layer
    bool int8_keys = false;
  };
  std::vector<Group> groups;
};

// `sequences` of them, each computing `rows` new rows after `context` cached tokens.
struct PassWork {
  int64_t sequences = 1, rows = 1, context = 0;
  int64_t logits = 0;  // of each sequence: rows that meet the head
  int64_t shared = 0;  // of the context: tokens that all sequences have in common, read once
};

double PassBytes(const ModelCost& model, const PassWork& work);  // weights and KV that it reads

struct Limit {
  double bytes_s = 0, int8_s = 0, fp32_s = 0;
  double arithmetic_s() const { return int8_s + fp32_s; }
  double seconds() const { return bytes_s > arithmetic_s() ? bytes_s : arithmetic_s(); }
  bool by_arithmetic() const { return arithmetic_s() > bytes_s; }
};
Limit LimitOf(const ModelCost& model, const MachineRates& rates, const PassWork& work);

// Bytes of KV of `tokens` tokens, all layers; windows not applied (what a store keeps).
double KvBytes(const ModelCost& model, int64_t tokens);

double Percentile(std::vector<double> v, size_t percent);  // 0..99; 0 of nothing

// The slope of the straight line through points by least squares; 0 for fewer than two.
double FittedSlope(const std::vector<double>& x, const std::vector<double>& y);

}  // namespace holdfast
