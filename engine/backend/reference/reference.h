// NUMERICS.md as code: every operation in its plainest form, one thread, never tuned. This is what
// all other implementations are compared with, by memcmp.
//
// The free functions take weights that reference::Pack made (raw GGUF bytes); the class wraps them.
#pragma once

#include "engine/backend/backend.h"

namespace holdfast {
namespace reference {

// kInvalid for a null, empty or negative shape, a type that is not one of WeightType's, and inputs
// that are no multiple of the type's block. Every backend refuses exactly these.
Status CheckSource(const WeightSource& source);
Result<std::unique_ptr<Weight>> Pack(const WeightSource& source);
void Embed(const Weight& table, std::span<const TokenId> ids, float* out);
void RmsNorm(const RmsNormArgs& args);
void Quantize(const QuantizeArgs& args);
void MatMul(const MatMulArgs& args);
void Glu(const GluArgs& args);
void Add(int64_t count, const float* x, float* y);
void Scale(int64_t count, float factor, float* x);
void SoftCap(int64_t count, float cap, float* x);
void StoreKv(const StoreKvArgs& args);
void Attend(const AttendArgs& args);
void CheckFinite(int64_t rows, int64_t cols, const float* x, uint8_t* row_failed);

}  // namespace reference

std::unique_ptr<Backend> MakeReferenceBackend();

}  // namespace holdfast
