#include "sessions/edits.h"

#include <algorithm>
#include <string>
#include <vector>

namespace holdfast {
namespace {

constexpr int64_t kNobody = -1;

Status Bad(int64_t edit, const std::string& what) {
  return Status::Invalid("edits[" + std::to_string(edit) + "].item: " + what);
}

// Which edit removes or replaces each item.
Result<std::vector<int64_t>> Takers(std::span<const ItemEdit> edits, int64_t items) {
  std::vector<int64_t> taker(items, kNobody);
  for (int64_t i = 0; i < static_cast<int64_t>(edits.size()); ++i) {
    const ItemEdit& e = edits[i];
    const bool insert = e.op == ItemEdit::Op::kInsert;
    const int64_t count = e.op == ItemEdit::Op::kRemove ? e.count : 1;
    if (e.item < 0 || count < 1 || e.item > items - (insert ? 0 : count)) {
      return Bad(i, std::to_string(e.item) + (count > 1 ? " and those behind it" : "") +
                        " is not there: the branch has " + std::to_string(items) + " items");
    }
    for (int64_t k = e.item; !insert && k < e.item + count; ++k) {
      if (taker[k] != kNobody) {
        return Bad(i, "edits[" + std::to_string(taker[k]) + "] has taken item " +
                          std::to_string(k) + " already");
      }
      taker[k] = i;
    }
  }
  return taker;
}

}  // namespace

int64_t UntouchedItems(std::span<const ItemEdit> edits, int64_t items) {
  for (const ItemEdit& e : edits) items = std::min(items, e.item);
  return items;
}

Result<History> ApplyEdits(History history, std::span<const ItemEdit> edits) {
  const auto items = static_cast<int64_t>(history.messages.size());
  HOLDFAST_ASSIGN_OR_RETURN(const std::vector<int64_t> taker, Takers(edits, items));
  History out;
  for (int64_t k = 0; k <= items; ++k) {
    for (int64_t i = 0; i < static_cast<int64_t>(edits.size()); ++i) {
      const ItemEdit& e = edits[i];
      if (e.op != ItemEdit::Op::kInsert || e.item != k) continue;
      if (k > 0 && k < items && taker[k] != kNobody && taker[k] == taker[k - 1]) {
        return Bad(i, "edits[" + std::to_string(taker[k]) + "] takes out what is around item " +
                          std::to_string(k));
      }
      out.Add(e.message, IdentityOf(e.message));
    }
    if (k == items) break;
    const ItemEdit* edit = taker[k] == kNobody ? nullptr : &edits[taker[k]];
    if (edit != nullptr && edit->op == ItemEdit::Op::kRemove) continue;
    ChatMessage& message = history.messages[k];
    ItemIdentity& identity = history.identities[k];
    if (edit != nullptr) {
      edit->change(&message);
      identity.content = IdentityOf(message).content;
    }
    out.Add(std::move(message), std::move(identity));
  }
  return out;
}

}  // namespace holdfast
