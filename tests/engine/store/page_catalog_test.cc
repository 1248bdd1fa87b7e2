#include "engine/store/page_catalog.h"

#include <doctest/doctest.h>

#include <random>
#include <string>

namespace holdfast {
namespace {

PageKey KeyOf(uint8_t n) {
  PageKey key;
  key.bytes.fill(n);
  return key;
}

void Add(PageCatalog* catalog, uint8_t key, uint8_t parent, uint64_t length = 4096) {
  catalog->Begin(KeyOf(key), KeyOf(parent), length);
  catalog->Written(KeyOf(key), {1, key * uint64_t{4096}, length}, {});
  catalog->Indexed(KeyOf(key));
}

// The order in which pages go, by their first bytes.
std::string Drain(PageCatalog* catalog) {
  std::string order;
  while (const std::optional<PageKey> key = catalog->EvictionCandidate()) {
    order += static_cast<char>(key->bytes[0]);
    catalog->Erase(*key);
  }
  return order;
}

TEST_CASE("eviction takes the least recently used leaf, never an ancestor first") {
  struct Case {
    std::string chains;   // "ab" = b continues a
    std::string touches;  // in order, after all were added in the order of the alphabet
    std::string evicted;
  };
  const std::vector<Case> cases = {
      {"", "", "abcd"},
      {"", "a", "bcda"},
      {"ab bc cd", "", "dcba"},
      {"ab bc cd", "abcd", "dcba"},   // as a restore reads: first to last
      {"ab bc cd", "dcba", "dcba"},
      {"ab ac", "b", "cdba"},
      {"ab cd", "ab", "dcba"},        // the older chain was used last
      {"ab cd", "cdab", "dcba"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.chains);
    CAPTURE(c.touches);
    PageCatalog catalog;
    for (char key = 'a'; key <= 'd'; ++key) {
      char parent = '0';
      for (size_t i = 0; i + 1 < c.chains.size(); i += 3) {
        if (c.chains[i + 1] == key) parent = c.chains[i];
      }
      Add(&catalog, static_cast<uint8_t>(key), static_cast<uint8_t>(parent));
    }
    for (char key : c.touches) catalog.Touch(KeyOf(static_cast<uint8_t>(key)));
    CHECK(Drain(&catalog) == c.evicted);
    CHECK(catalog.pages() == 0);
    CHECK(catalog.bytes() == 0);
    CHECK(catalog.reserved_bytes() == 0);
  }
}

TEST_CASE("a page that is being written protects its ancestor and cannot go itself") {
  PageCatalog catalog;
  Add(&catalog, 'a', '0');
  catalog.Begin(KeyOf('b'), KeyOf('a'), 8192);
  CHECK_FALSE(catalog.EvictionCandidate().has_value());
  CHECK(catalog.bytes() == 4096);
  CHECK(catalog.reserved_bytes() == 4096 + 8192);
  catalog.Erase(KeyOf('b'));
  CHECK(catalog.EvictionCandidate() == KeyOf('a'));
}

TEST_CASE("a renewed page goes last, and the index is not told") {
  PageCatalog catalog;
  for (char key = 'a'; key <= 'd'; ++key) {
    Add(&catalog, static_cast<uint8_t>(key), key == 'b' ? 'a' : '0');
  }
  catalog.Renew(KeyOf('b'));
  catalog.Renew(KeyOf('a'));
  catalog.Renew(KeyOf('c'));
  CHECK(catalog.TakeTouched().empty());
  CHECK(Drain(&catalog) == "dbac");
}

TEST_CASE("uses go to the index once each, and not for pages that are gone") {
  PageCatalog catalog;
  Add(&catalog, 'a', '0');
  Add(&catalog, 'b', '0');
  for (char key : std::string("aabab")) catalog.Touch(KeyOf(static_cast<uint8_t>(key)));
  catalog.Erase(KeyOf('b'));
  const std::vector<IndexEntry> touched = catalog.TakeTouched();
  REQUIRE(touched.size() == 1);
  CHECK(touched[0].key == KeyOf('a'));
  CHECK(catalog.TakeTouched().empty());
}

TEST_CASE("a catalog that was restored from its entries evicts in the same order") {
  std::mt19937 random(7);
  for (int round = 0; round < 50; ++round) {
    PageCatalog catalog;
    const auto page = [&] { return static_cast<uint8_t>(1 + random() % 40); };
    for (int i = 0; i < 60; ++i) {
      const uint8_t key = page();
      if (catalog.Find(KeyOf(key)) != nullptr) catalog.Touch(KeyOf(key));
      else Add(&catalog, key, page());
    }
    PageCatalog again;
    for (uint8_t key = 0; key < 64; ++key) {
      if (catalog.Find(KeyOf(key)) != nullptr) again.Restore(catalog.EntryOf(KeyOf(key)));
    }
    CHECK(again.pages() == catalog.pages());
    CHECK(Drain(&again) == Drain(&catalog));
  }
}

}  // namespace
}  // namespace holdfast
