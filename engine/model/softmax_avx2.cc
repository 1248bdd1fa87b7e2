#include "engine/backend/cpu/lanes_avx2.h"
#include "engine/model/softmax_inl.h"

namespace holdfast {

float ExpRowAvx2(const ExpRowArgs& args) { return ExpRowLanes<LanesAvx2>(args); }

}  // namespace holdfast
