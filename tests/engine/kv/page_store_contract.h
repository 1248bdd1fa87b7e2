// What every PageStore does, as checks that each implementation's test runs in a few lines:
//   PageStoreContract contract([] { return MakeMemoryPageStore(0); });
//   contract.RunAll();
#pragma once

#include <doctest/doctest.h>

#include <functional>
#include <memory>
#include <vector>

#include "engine/kv/page_store.h"

namespace holdfast {

// A page record made from a number.
struct PageRecordSample {
  PageHeader header;
  std::vector<std::vector<std::byte>> payload;

  explicit PageRecordSample(uint8_t seed, std::vector<size_t> sizes = {4096, 100},
                            PageKind kind = PageKind::kPage, int tokens = kPageTokens) {
    header.kind = kind;
    header.fp.bytes.fill(200);
    header.key.bytes.fill(seed);
    header.parent.bytes.fill(static_cast<uint8_t>(seed + 1));
    for (int i = 0; i < tokens; ++i) header.tokens.push_back(seed * 1000 + i);
    for (size_t size : sizes) {
      payload.emplace_back(size);
      for (size_t i = 0; i < size; ++i) payload.back()[i] = static_cast<std::byte>(seed + 7 * i);
    }
  }
  std::vector<std::span<const std::byte>> views() const { return {payload.begin(), payload.end()}; }
};

class PageStoreContract {
 public:
  using Factory = std::function<std::unique_ptr<PageStore>()>;  // a new, empty store
  explicit PageStoreContract(Factory make) : make_(std::move(make)) {}

  void RunAll() {
    ReturnsWhatWasPut();
    KeepsTheFirstOfAKey();
    NeverReturnsAnotherPage();
    ForgetsWhatWasDeleted();
    CollectsWhatIsNotKept();
    KeepsTails();
    Counts();
  }

 private:
  // Get into buffers of the sample's shape; true when the bytes are the sample's.
  static bool GetsSame(PageStore& store, const PageRecordSample& sample) {
    std::vector<std::vector<std::byte>> got;
    for (const auto& group : sample.payload) got.emplace_back(group.size(), std::byte{0xEE});
    std::vector<std::span<std::byte>> spans(got.begin(), got.end());
    return store.Get(sample.header, spans).ok() && got == sample.payload;
  }

  static Code GetCode(PageStore& store, const PageHeader& expect, std::vector<size_t> sizes) {
    std::vector<std::vector<std::byte>> got;
    for (size_t size : sizes) got.emplace_back(size);
    std::vector<std::span<std::byte>> spans(got.begin(), got.end());
    return store.Get(expect, spans).code();
  }

  static void PutAll(PageStore& store, std::initializer_list<const PageRecordSample*> samples) {
    for (const PageRecordSample* s : samples) REQUIRE(store.Put(s->header, s->views()).ok());
    REQUIRE(store.Sync().ok());
  }

  void ReturnsWhatWasPut() {
    auto store = make_();
    const PageRecordSample a(1), b(2);
    CHECK(GetCode(*store, a.header, {4096, 100}) == Code::kNotFound);
    CHECK_FALSE(store->Contains(a.header.key));
    PutAll(*store, {&a, &b});
    CHECK(store->Contains(a.header.key));
    CHECK(GetsSame(*store, a));
    CHECK(GetsSame(*store, b));
    CHECK(GetsSame(*store, a));
  }

  void KeepsTheFirstOfAKey() {
    auto store = make_();
    const PageRecordSample a(1);
    PageRecordSample again(1);
    again.payload[0][5] ^= std::byte{1};
    PutAll(*store, {&a});
    PutAll(*store, {&again});
    CHECK(GetsSame(*store, a));
  }

  void NeverReturnsAnotherPage() {
    const PageRecordSample a(1);
    std::vector<PageHeader> wrong(4, a.header);
    wrong[0].fp.bytes[3] ^= 1;
    wrong[1].tokens[31] ^= 1;
    wrong[2].parent.bytes[0] ^= 1;
    wrong[3].kind = PageKind::kSegment;
    for (const PageHeader& expect : wrong) {
      auto store = make_();
      PutAll(*store, {&a});
      CHECK(GetCode(*store, expect, {4096, 100}) == Code::kCorrupt);
      CHECK(GetCode(*store, a.header, {4096, 100}) == Code::kNotFound);  // forgotten
    }
    for (const std::vector<size_t>& sizes : {std::vector<size_t>{4096}, {4096, 99}, {4096, 100, 1}}) {
      auto store = make_();
      PutAll(*store, {&a});
      CHECK(GetCode(*store, a.header, sizes) == Code::kCorrupt);
    }
  }

  void ForgetsWhatWasDeleted() {
    auto store = make_();
    const PageRecordSample a(1), b(2);
    PutAll(*store, {&a, &b});
    CHECK(store->Delete(a.header.key).ok());
    CHECK(store->Delete(a.header.key).ok());
    CHECK_FALSE(store->Contains(a.header.key));
    CHECK(GetCode(*store, a.header, {4096, 100}) == Code::kNotFound);
    CHECK(GetsSame(*store, b));
    PutAll(*store, {&a});
    CHECK(GetsSame(*store, a));
  }

  void CollectsWhatIsNotKept() {
    auto store = make_();
    const PageRecordSample a(1), b(2), late(3);
    PutAll(*store, {&a, &b});
    const auto deleted = store->Collect([&]() -> Result<KeepPage> {
      PutAll(*store, {&late});
      return KeepPage([&](const PageKey& key) { return key == a.header.key; });
    });
    REQUIRE(deleted.ok());
    CHECK(deleted->pages == 1);
    CHECK(deleted->bytes >= 4196);
    CHECK(GetsSame(*store, a));
    CHECK(GetsSame(*store, late));
    CHECK(GetCode(*store, b.header, {4096, 100}) == Code::kNotFound);
    const auto refused = store->Collect([]() -> Result<KeepPage> { return Status::Io("rows"); });
    CHECK(refused.status().code() == Code::kIo);
    CHECK(GetsSame(*store, a));
  }

  void KeepsTails() {
    auto store = make_();
    const PageRecordSample tail(3, {4096, 100}, PageKind::kTail, 5);
    PutAll(*store, {&tail});
    CHECK(GetsSame(*store, tail));
  }

  void Counts() {
    auto store = make_();
    const PageRecordSample a(1), b(2);
    PutAll(*store, {&a, &b});
    CHECK(GetsSame(*store, a));
    CHECK(GetCode(*store, PageRecordSample(9).header, {4096, 100}) == Code::kNotFound);
    const StoreStats stats = store->stats();
    CHECK(stats.pages == 2);
    CHECK(stats.bytes >= 2 * 4196);
    CHECK(stats.puts == 2);
    CHECK(stats.gets == 2);
    CHECK(stats.get_misses == 1);
    CHECK(stats.corrupt == 0);
  }

  Factory make_;
};

}  // namespace holdfast
