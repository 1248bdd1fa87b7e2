// The GGUF reader on good files, on files that lie, and on files cut off anywhere.
#include "engine/model/gguf.h"

#include <string>

#include <doctest/doctest.h>

#include "tests/fixtures/gguf_writer.h"

namespace holdfast {
namespace {

Result<Gguf> Parse(const std::string& file) { return Gguf::Parse(std::as_bytes(std::span(file))); }

// "" when the file loads, else the code's name and the message.
std::string Error(const std::string& file) {
  const auto gguf = Parse(file);
  return gguf.ok() ? "" : gguf.status().ToString();
}

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

GgufWriter Sample(uint32_t version = 3) {
  GgufWriter w(version);
  w.Text("general.architecture", "llama");
  w.U32("count", 7);
  w.F32("real", 0.5f);
  w.Bool("flag", 1);
  w.Texts("words", std::vector<std::string>{"a", "", "ccc"});
  w.Int32s("numbers", std::vector<int32_t>{1, -2});
  const uint64_t vector[] = {3}, matrix[] = {32, 2};
  w.Tensor("v", vector, 0, std::string(12, 'v'));
  w.Tensor("m", matrix, 8, std::string(68, 'm'));
  return w;
}

TEST_CASE("what was written is read") {
  for (uint32_t version : {2u, 3u}) {
    const std::string file = Sample(version).Finish();
    const auto gguf = Parse(file);
    REQUIRE(gguf.ok());
    CHECK(*gguf->Text("general.architecture") == "llama");
    CHECK(*gguf->Count("count") == 7);
    CHECK(*gguf->CountOr("absent", 9) == 9);
    CHECK(*gguf->Real("real") == 0.5);
    CHECK(*gguf->FlagOr("flag", false));
    CHECK(*gguf->Texts("words") == std::vector<std::string>{"a", "", "ccc"});
    CHECK(*gguf->Int32s("numbers") == std::vector<int32_t>{1, -2});
    REQUIRE(gguf->tensors().size() == 2);
    const GgufTensor* m = gguf->FindTensor("m");
    REQUIRE(m != nullptr);
    CHECK(m->dim[0] == 32);
    CHECK(m->dim[1] == 2);
    CHECK(m->data.size() == 68);
    CHECK(m->data[0] == std::byte{'m'});
    CHECK(gguf->FindTensor("x") == nullptr);
  }
}

TEST_CASE("getters insist on the type") {
  const std::string file = Sample().Finish();
  const auto gguf = Parse(file);
  REQUIRE(gguf.ok());
  CHECK(Contains(gguf->Text("count").status().message(), "'count' is u32 where string"));
  CHECK(Contains(gguf->Count("real").status().message(), "'real' is f32 where an integer"));
  CHECK(Contains(gguf->Real("count").status().message(), "'count' is u32 where f32"));
  CHECK(Contains(gguf->FlagOr("count", false).status().message(), "'count' is u32 where bool"));
  CHECK(Contains(gguf->Texts("numbers").status().message(), "array of i32 where string"));
  CHECK(Contains(gguf->Int32s("words").status().message(), "array of string where i32"));
  CHECK(Contains(gguf->Floats("numbers").status().message(), "array of i32 where f32"));
  CHECK(Contains(gguf->Count("absent").status().message(), "'absent' is missing"));
  CHECK(gguf->Count("absent").status().code() == Code::kCorrupt);
  GgufWriter w;
  w.Raw("n", GgufType::kI32, GgufBytes(int32_t{-1}));
  const std::string negative = w.Finish();
  CHECK(Contains(Parse(negative)->Count("n").status().message(), "negative"));
}

TEST_CASE("each way to lie has its answer") {
  CHECK(Contains(Error("GGML" + std::string(20, '\0')), "not a GGUF file"));
  CHECK(Contains(Error(GgufWriter(1).Finish()), "invalid: gguf: version 1 is not supported"));
  CHECK(Contains(Error(GgufWriter(3u << 24).Finish()), "big-endian"));

  const auto with_key = [](GgufType type, const std::string& value) {
    GgufWriter w;
    w.Raw("k", type, value);
    return Error(w.Finish());
  };
  const auto array = [](uint32_t type, uint64_t count) {
    return GgufBytes(type) + GgufBytes(count);
  };
  CHECK(Contains(with_key(GgufType::kString, GgufBytes(~uint64_t{0})), "the limit is 16777216"));
  CHECK(Contains(with_key(GgufType::kString, GgufBytes(uint64_t{1000000})), "past the file's end"));
  CHECK(Contains(with_key(GgufType::kArray, array(0, uint64_t{1} << 63)), "claims 92233720"));
  CHECK(Contains(with_key(GgufType::kArray, array(8, uint64_t{1} << 23)), "the limit is 4194304"));
  CHECK(Contains(with_key(GgufType::kArray, array(12, 1 << 24)), "past the file's end"));
  CHECK(Contains(with_key(GgufType::kArray, array(9, 1)), "arrays of arrays"));
  CHECK(Contains(with_key(GgufType::kArray, array(13, 1)), "unknown element"));
  CHECK(Contains(with_key(static_cast<GgufType>(13), "        "), "unknown value type 13"));
  CHECK(Contains(with_key(GgufType::kBool, "\2"), "neither 0 nor 1"));

  GgufWriter twice;
  twice.U32("k", 1);
  twice.U32("k", 1);
  CHECK(Contains(Error(twice.Finish()), "key 'k' appears twice"));
  for (uint32_t alignment : {0u, 3u, 48u, 1u << 21}) {
    GgufWriter w;
    w.U32("general.alignment", alignment);
    CHECK(Contains(Error(w.Finish()), "power of two"));
  }
  std::string many = "GGUF" + GgufBytes(uint32_t{3}) + GgufBytes(uint64_t{65537}) +
                     GgufBytes(uint64_t{0});
  CHECK(Contains(Error(many), "65537 tensors"));
}

TEST_CASE("tensors stay inside the file and to themselves") {
  const auto tensor = [](std::vector<uint64_t> dims, uint32_t type, uint64_t offset) {
    GgufWriter w;
    const uint64_t four[] = {4};
    w.Tensor("good", four, 0, std::string(16, 'x'));
    w.RawTensor("bad\n", dims, type, offset);
    return Error(w.Finish() + std::string(4096, '\0'));
  };
  CHECK(tensor({32}, 0, 32) == "");
  CHECK(tensor({32}, 2, 32) == "");  // Q4_0: the size is not known, and nobody reads it
  CHECK(Contains(tensor({32}, 0, 33), "tensor 'bad\\x0a': offset 33 is no multiple"));
  CHECK(Contains(tensor({32}, 0, 8192), "beyond the data's end"));
  CHECK(Contains(tensor({32}, 2, 8192), "beyond the data's end"));
  CHECK(Contains(tensor({32}, 0, ~uint64_t{31}), "beyond the data's end"));
  CHECK(Contains(tensor({1 << 20}, 0, 32), "beyond the data's end"));
  CHECK(Contains(tensor({1u << 31, 1u << 31, 1u << 31, 1u << 31}, 0, 32), "overflows 64 bits"));
  CHECK(Contains(tensor({uint64_t{1} << 62}, 0, 32), "overflows 64 bits"));
  CHECK(Contains(tensor({33}, 8, 32), "no whole blocks of Q8_0"));
  CHECK(Contains(tensor({0}, 0, 32), "dimension of 0"));
  CHECK(Contains(tensor({}, 0, 32), "0 dimensions"));
  CHECK(Contains(tensor({1, 1, 1, 1, 1}, 0, 32), "5 dimensions"));
  CHECK(Contains(tensor({4}, 0, 0), "overlap"));
  GgufWriter twice;
  const uint64_t four[] = {4};
  twice.Tensor("t", four, 0, std::string(16, 'x'));
  twice.Tensor("t", four, 0, std::string(16, 'x'));
  CHECK(Contains(Error(twice.Finish()), "tensor 't' appears twice"));
}

TEST_CASE("a file cut off anywhere is refused") {
  const std::string file = Sample().Finish();
  for (size_t size = 0; size < file.size(); ++size) {
    const std::string cut = file.substr(0, size);
    CHECK(Error(cut).starts_with("corrupt: gguf: "));
  }
  CHECK(Error(file) == "");
}

}  // namespace
}  // namespace holdfast
