// Replays as JSON: requests read, steps and reports written; and how one is pulled to its end.
#pragma once

#include <optional>

#include "api/api_error.h"
#include "api/json.h"
#include "api/route.h"
#include "api/runtime.h"

namespace holdfast {

const char* ModeName(ReplayMode mode);

// What replays are shown with.
struct ReplayView {
  const Tokenizer& tokenizer;
  ReplayMode mode;

  // verify shows a step where there are alternatives to show.
  bool Shows(const ReplayStep& step) const {
    return mode != ReplayMode::kVerify || !step.top.empty();
  }
};

// The body of a replay's request; all but the tenant.
std::optional<ApiError> ReadReplay(const Json& json, ReplayRequest* out, bool* stream);
// Of Runtime::StartReplay and of what it started: names the field.
ApiError ErrorOfReplay(const Status& status);

Json TurnJson(const RecordedTurn& turn);
Json StepJson(const ReplayStep& step, const ReplayView& view);
// Of the last event.
Json ReportJson(const ReplayEvent& event, const Recording& recording, const ReplayView& view);

// Pulls a replay to its end. `peer` says whether anybody listens. False from on_event: stop.
template <typename Peer, typename OnEvent>
Status Pump(Replay& replay, const Peer& peer, const OnEvent& on_event) {
  for (bool cancelled = false;;) {
    auto next = replay.Next(kAliveCheckMs);
    if (!next.ok()) return next.status();
    if (!next->has_value()) {
      if (!cancelled && peer.ClientGone()) replay.Cancel(), cancelled = true;
      continue;
    }
    if (!cancelled && (!on_event(**next) || peer.ClientGone())) replay.Cancel(), cancelled = true;
    if ((*next)->report) return Status();
  }
}

}  // namespace holdfast
