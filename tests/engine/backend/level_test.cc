// How a backend is chosen: option, then environment, then the processor.
#include <doctest/doctest.h>

#include <cstdlib>

#include "engine/backend/backend.h"
#include "engine/backend/cpu/levels.h"

using namespace holdfast;

namespace {

// HOLDFAST_CPU for the life of the object.
class Environment {
 public:
  explicit Environment(const char* value) { setenv("HOLDFAST_CPU", value, 1); }
  ~Environment() { unsetenv("HOLDFAST_CPU"); }
};

std::string NameOf(const CpuOptions& options) {
  const auto backend = MakeCpuBackend(options);
  REQUIRE(backend.ok());
  return std::string(backend.value()->name());
}

}  // namespace

TEST_CASE("the option wins over the environment, which wins over the processor") {
  const std::string best = [] {
    unsetenv("HOLDFAST_CPU");
    return NameOf({.threads = 1});
  }();
  CHECK(best != "reference");
  const Environment environment("portable");
  CHECK(NameOf({.threads = 1}) == "portable");
  CHECK(NameOf({.threads = 1, .level = "reference"}) == "reference");
  const Environment empty("");
  CHECK(NameOf({.threads = 1}) == best);
}

TEST_CASE("an unknown level is refused, with the names that exist") {
  const Environment environment("sse9");
  const auto backend = MakeCpuBackend({});
  REQUIRE(!backend.ok());
  CHECK(backend.status().code() == Code::kInvalid);
  const std::string message = backend.status().message();
  CHECK(message.starts_with("HOLDFAST_CPU=sse9: must be reference, portable"));
  CHECK(message.ends_with(" or " + std::string(CpuLevels().front().name)));
}

TEST_CASE("thread counts out of range are refused; zero means one per core") {
  CHECK(MakeCpuBackend({.threads = -1}).status().code() == Code::kInvalid);
  CHECK(MakeCpuBackend({.threads = 257}).status().code() == Code::kInvalid);
  CHECK(MakeCpuBackend({.threads = 0}).ok());
}
