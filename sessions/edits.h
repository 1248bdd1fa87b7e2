// Edits of a history: messages taken out, changed or put in. Pure.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "engine/base/status.h"
#include "sessions/history.h"

namespace holdfast {

// Items are counted in the history as it is before any edit of the same list.
struct ItemEdit {
  enum class Op : uint8_t { kRemove, kReplace, kInsert } op = Op::kRemove;
  int64_t item = 0;     // kInsert: it goes before this one; their number: behind the last
  int64_t count = 1;    // kRemove: so many items
  std::function<void(ChatMessage*)> change;  // kReplace: text and raw_json alike; not the role
  ChatMessage message;  // kInsert
};

// Edits may come in any order; what is put in before one item keeps theirs. kInvalid, beginning
// with the edit ("edits[2].item: ..."): an item that is not there, or that an edit before has taken
// or surrounds.
Result<History> ApplyEdits(History history, std::span<const ItemEdit> edits);

// So many items at the front are as they were.
int64_t UntouchedItems(std::span<const ItemEdit> edits, int64_t items);

}  // namespace holdfast
