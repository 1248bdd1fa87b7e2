#include "engine/engine.h"

#include <doctest/doctest.h>

#include "tests/engine/base/temp_dir.h"
#include "tests/fixtures/tiny_model.h"

namespace holdfast {
namespace {

EngineOptions TinyOptions(const testing::TempDir& dir) {
  REQUIRE(WriteTinyModel({}, dir.File("tiny.gguf")).ok());
  EngineOptions options;
  options.model_path = dir.File("tiny.gguf");
  options.cpu.threads = 1;
  options.kv_bytes = 8u << 20;
  return options;
}

TEST_CASE("an engine opens a model and answers") {
  testing::TempDir dir;
  EngineOptions options = TinyOptions(dir);
  double loaded = 0;
  options.progress = [&](double fraction) { loaded = fraction; };
  auto engine = Engine::Open(options);
  REQUIRE_MESSAGE(engine.ok(), engine.status().ToString());
  CHECK(loaded == 1.0);
  CHECK((*engine)->max_context() == 2048);
  CHECK_FALSE((*engine)->numerics().all.IsZero());
  CHECK_FALSE((*engine)->cpu_level().empty());
  GenerateRequest request;
  request.timeline = (*engine)->NewTimeline(TenantScope("a"));
  request.timeline->Extend(*(*engine)->tokenizer().Encode("hello"));
  request.output_begin = request.timeline->size();
  request.max_tokens = 8;
  auto generation = (*engine)->Submit(std::move(request));
  REQUIRE(generation.ok());
  int tokens = 0;
  while (auto event = (*generation)->Next(-1)) tokens += event->token.has_value();
  CHECK(tokens == 8);
  const EngineStats stats = (*engine)->stats();
  CHECK(stats.generated == 8);
  CHECK(stats.rows == stats.decode_rows + stats.prefill_rows);
  CHECK(stats.pool.slots_max > 64);
  (*engine)->Shutdown();
  GenerateRequest late;
  late.timeline = (*engine)->NewTimeline(TenantScope("a"));
  late.timeline->Extend(std::vector<TokenId>{5});
  CHECK((*engine)->Submit(std::move(late)).status().code() == Code::kUnavailable);
}

TEST_CASE("an engine that can't open says why") {
  testing::TempDir dir;
  EngineOptions options = TinyOptions(dir);
  options.model_path = dir.File("none.gguf");
  CHECK(Engine::Open(options).status().code() == Code::kNotFound);
  options = TinyOptions(dir);
  options.kv_bytes = 1000;
  CHECK(Engine::Open(options).status().code() == Code::kExhausted);
  options = TinyOptions(dir);
  options.cpu.level = "abacus";
  CHECK(Engine::Open(options).status().code() == Code::kInvalid);
  options = TinyOptions(dir);
  options.max_running = 0;
  CHECK(Engine::Open(options).status().code() == Code::kInvalid);
}

TEST_CASE("the context is what model and pool can hold") {
  testing::TempDir dir;
  EngineOptions options = TinyOptions(dir);
  options.kv_bytes = 200000;
  auto engine = Engine::Open(options);
  REQUIRE(engine.ok());
  CHECK((*engine)->max_context() ==
        static_cast<int64_t>((*engine)->pool().stats().slots_max) * kPageTokens);
  CHECK((*engine)->max_context() < 2048);
}

TEST_CASE("the default pool is a part of free memory") {
  testing::TempDir dir;
  EngineOptions options = TinyOptions(dir);
  options.kv_bytes = 0;
  auto engine = Engine::Open(options);
  REQUIRE(engine.ok());
  const size_t bytes = (*engine)->pool().stats().slots_max * (*engine)->pool().page_bytes();
  CHECK(bytes >= (32u << 20));
  CHECK((*engine)->pool().stats().slots * (*engine)->pool().page_bytes() <= 2 * kExtentBytes);
}

}  // namespace
}  // namespace holdfast
