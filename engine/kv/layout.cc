#include "engine/kv/layout.h"

namespace holdfast {

void LayerGroup::HashInto(Hasher& h) const {
  h.U64(static_cast<uint64_t>(kind)).U64(first_layer).U64(layers).U64(heads).U64(k_dim).U64(v_dim);
  h.U64(static_cast<uint64_t>(k_type)).U64(static_cast<uint64_t>(v_type)).U64(window);
  h.U64(layout_id);
}

}  // namespace holdfast
