// Hostile model files: 20,000 seeded mutations of tiny models end in a typed error or a model whose
// forward pass runs. Meant for the sanitizer builds as much as for this one.
#include <chrono>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "engine/model/gguf.h"
#include "engine/model/model.h"
#include "engine/model/sequence_kv.h"
#include "tests/engine/base/temp_dir.h"
#include "tests/fixtures/gguf_writer.h"
#include "tests/fixtures/tiny_model.h"

namespace holdfast {
namespace {

constexpr int kMutations = 20000;

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  size_t Below(size_t n) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<size_t>((state_ >> 33) % n);
  }

 private:
  uint64_t state_;
};

TinyModelSpec Smallest(const std::string& architecture, WeightType type) {
  TinyModelSpec spec;
  spec.architecture = architecture;
  spec.type = type;
  spec.layers = 1;
  spec.width = 32;
  spec.vocab = 265;
  spec.head_dim = 16;
  spec.ffn = 32;
  return spec;
}

// Most of what can go wrong is in the header, so most mutations go there.
size_t Place(Random& random, const std::string& bytes, size_t header) {
  return random.Below(random.Below(8) == 0 ? bytes.size() : std::min(header, bytes.size()));
}

std::string Mutate(Random& random, std::string bytes, size_t header) {
  static constexpr uint64_t kOdd[] = {0, 1, 31, 33, 255, 256, 65536, 0x7fffffff, 0x80000000,
                                      0xffffffff, uint64_t{1} << 32, uint64_t{1} << 62,
                                      uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{31}};
  for (size_t n = 1 + random.Below(3); n > 0 && bytes.size() > 16; --n) {
    const size_t at = Place(random, bytes, header);
    switch (random.Below(8)) {
      case 0: bytes[at] = static_cast<char>(random.Below(256)); break;
      case 1: bytes[at] = static_cast<char>(bytes[at] ^ 1 << random.Below(8)); break;
      case 2: {
        const std::string odd = GgufBytes(kOdd[random.Below(std::size(kOdd))]);
        const size_t width = random.Below(2) == 0 ? 4 : 8;
        for (size_t i = 0; i < width && at + i < bytes.size(); ++i) bytes[at + i] = odd[i];
        break;
      }
      case 3: bytes[at] = static_cast<char>(bytes[at] + (random.Below(2) == 0 ? 1 : -1)); break;
      case 4: bytes.erase(at, 1 + random.Below(16)); break;
      case 5: bytes.insert(at, bytes.substr(Place(random, bytes, header), 1 + random.Below(32)));
        break;
      case 6: {
        const std::string piece = bytes.substr(Place(random, bytes, header), 1 + random.Below(64));
        bytes.replace(at, piece.size(), piece);
        break;
      }
      default:
        if (random.Below(4) == 0) bytes.resize(at);
    }
  }
  return bytes;
}

// Loads the bytes as Model::Load does; a model that comes of it runs two rows.
class Victim {
 public:
  Victim() : backend_(*MakeCpuBackend({.threads = 1, .level = "portable"})) {}

  Status Try(const std::string& bytes) {
    std::ofstream(dir_.File("m.gguf"), std::ios::binary) << bytes;
    const NumericsDigest none;
    auto model = Model::Load(dir_.File("m.gguf"), *backend_,
                             {.threads = 1, .progress = {}, .numerics = &none});
    if (!model.ok()) return model.status();
    SequenceKv kv(**model);
    kv.Reserve(2);
    ForwardBatch batch;
    for (int i = 0; i < 2; ++i) {
      batch.rows.push_back({.token = 1 + i, .position = i, .page = kv.PageOf(i),
                            .slot = SequenceKv::SlotOf(i), .logits = true});
    }
    batch.sequences.push_back({kv.Runs(2)});
    ForwardPass pass(**model);
    pass.Begin(std::move(batch));
    pass.Run();
    CHECK(pass.logits(1).size() == (pass.failed(1) ? 0u : 265u));
    return {};
  }

 private:
  testing::TempDir dir_;
  std::unique_ptr<Backend> backend_;
};

TEST_CASE("mutated models give typed errors or load") {
  Victim victim;
  int loaded = 0, refused = 0;
  for (const TinyModelSpec& spec :
       {Smallest("llama", WeightType::kQ8_0), Smallest("qwen2", WeightType::kQ4_1)}) {
    const std::string good = TinyModelFile(spec);
    REQUIRE(victim.Try(good).ok());
    const size_t header = good.find("blk.0.ffn_down.weight") + 64;
    Random random(spec.architecture == "llama" ? 1 : 2);
    for (int i = 0; i < kMutations / 2; ++i) {
      const Status status = victim.Try(Mutate(random, good, header));
      (status.ok() ? loaded : refused) += 1;
      if (status.ok()) continue;
      INFO("mutation " << i << " of " << spec.architecture << ": " << status.ToString());
      CHECK((status.code() == Code::kCorrupt || status.code() == Code::kInvalid));
      CHECK(!status.message().empty());
    }
  }
  MESSAGE(refused << " refused, " << loaded << " loaded");
  CHECK(refused > kMutations / 4);
  CHECK(loaded > kMutations / 100);
}

TEST_CASE("a model cut off anywhere is refused") {
  Victim victim;
  const std::string good = TinyModelFile(Smallest("llama", WeightType::kQ8_0));
  const auto gguf = Gguf::Parse(std::as_bytes(std::span(good)));
  REQUIRE(gguf.ok());
  std::vector<size_t> edges;
  for (const GgufTensor& t : gguf->tensors()) {
    const size_t begin = reinterpret_cast<const char*>(t.data.data()) - good.data();
    const size_t name = t.name.data() - good.data();
    edges.insert(edges.end(), {begin, begin + t.data.size(), name, name + t.name.size()});
  }
  for (size_t edge : edges) {
    for (size_t size = edge - 1; size <= edge + 1; ++size) {
      if (size < good.size()) CHECK_FALSE(victim.Try(good.substr(0, size)).ok());
    }
  }
  for (size_t size = 1; size < good.size(); size += 97) {
    CHECK_FALSE(victim.Try(good.substr(0, size)).ok());
  }
}

}  // namespace
}  // namespace holdfast
