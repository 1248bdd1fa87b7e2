#include <doctest/doctest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "engine/base/hash.h"
#include "engine/base/memory.h"
#include "engine/base/queue.h"
#include "engine/base/status.h"

namespace holdfast {
namespace {

TEST_CASE("SHA-256 is the standard's") {
  CHECK(Sha256("abc", 3).Hex() ==
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(Sha256("", 0).Hex() ==
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

TEST_CASE("a digest goes to hexadecimal and back, and nothing else does") {
  const Digest d = Sha256("abc", 3);
  Digest back;
  CHECK(Digest::FromHex(d.Hex(), &back));
  CHECK(back == d);
  CHECK_FALSE(Digest::FromHex(d.Hex().substr(1), &back));
  std::string bad = d.Hex();
  bad[0] = 'g';
  CHECK_FALSE(Digest::FromHex(bad, &back));
  CHECK(Digest().IsZero());
  CHECK_FALSE(d.IsZero());
}

TEST_CASE("a built hash tells fields, their order and the tag apart") {
  const Digest base = Hasher("t").Text("ab").Text("c").Finish();
  CHECK(base == Hasher("t").Text("ab").Text("c").Finish());
  CHECK(base != Hasher("t").Text("a").Text("bc").Finish());
  CHECK(base != Hasher("t").Text("c").Text("ab").Finish());
  CHECK(base != Hasher("t").Text("abc").Finish());
  CHECK(base != Hasher("u").Text("ab").Text("c").Finish());
  CHECK(Hasher("t").Finish() != Hasher("t").Text("").Finish());
  // The definition, spelled out: lengths as u64 little endian before tag and field.
  const char bytes[] = "\x01\0\0\0\0\0\0\0t\x02\0\0\0\0\0\0\0ab";
  CHECK(Hasher("t").Text("ab").Finish() == Sha256(bytes, sizeof(bytes) - 1));
}

Result<int> Half(int n) {
  if (n % 2 != 0) return Status::Invalid("odd");
  return n / 2;
}

Result<int> Quarter(int n) {
  HOLDFAST_ASSIGN_OR_RETURN(const int half, Half(n));
  return Half(half);
}

TEST_CASE("results carry a value or an error, through the macros too") {
  CHECK(*Quarter(8) == 2);
  CHECK(Quarter(6).status().code() == Code::kInvalid);
  CHECK(Quarter(6).status().ToString() == "invalid: odd");
  CHECK(Status().ToString() == "ok");
  Result<std::unique_ptr<int>> moved(std::make_unique<int>(3));
  CHECK(*std::move(moved).value() == 3);
}

TEST_CASE("a bounded queue refuses when full, keeps order, and ends when closed") {
  BoundedQueue<std::unique_ptr<int>> queue(2);
  CHECK(queue.TryPush(std::make_unique<int>(1)));
  CHECK(queue.TryPush(std::make_unique<int>(2)));
  auto third = std::make_unique<int>(3);
  CHECK_FALSE(queue.TryPush(std::move(third)));
  CHECK(third != nullptr);
  CHECK(**queue.TryPop() == 1);
  CHECK(queue.TryPush(std::move(third)));
  queue.Close();
  CHECK_FALSE(queue.Push(std::make_unique<int>(4)));
  CHECK(**queue.Pop() == 2);
  CHECK(**queue.Pop() == 3);
  CHECK_FALSE(queue.Pop().has_value());
  CHECK_FALSE(queue.PopFor(std::chrono::milliseconds(0)).has_value());
}

TEST_CASE("many threads push and pop; nothing is lost or doubled") {
  BoundedQueue<int> queue(8);
  std::atomic<int64_t> sum{0}, count{0};
  std::vector<std::thread> producers, consumers;
  for (int t = 0; t < 3; ++t) {
    producers.emplace_back([&, t] {
      for (int i = 0; i < 1000; ++i) queue.Push(t * 1000 + i);
    });
    consumers.emplace_back([&] {
      while (const std::optional<int> v = queue.Pop()) {
        sum += *v;
        ++count;
      }
    });
  }
  for (std::thread& t : producers) t.join();
  queue.Close();
  for (std::thread& t : consumers) t.join();
  CHECK(count == 3000);
  CHECK(sum == 2999 * 3000 / 2);
}

TEST_CASE("memory that is touched is resident") {
  constexpr size_t kBytes = size_t{64} << 20;
  const size_t before = ResidentMemory();
  CHECK(before > (size_t{1} << 20));
  const std::vector<char> touched(kBytes, 1);
  CHECK(ResidentMemory() >= before + kBytes * 9 / 10);
  CHECK(touched.back() == 1);
  CHECK(AvailableMemory() > (size_t{1} << 20));
}

}  // namespace
}  // namespace holdfast
