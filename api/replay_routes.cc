// Replays over HTTP (sessions/replay.h says what they are).
//
// POST /v1/sessions/{id}/replay waits for one: the answer is one object, or with "stream": true a
// line of JSON per step (application/x-ndjson):
//   {"type":"start",...}  {"type":"step",...}*  {"type":"progress",...}*  {"type":"report",...}
// An error in the middle of a stream is its last line: {"error":{...}}.
//
// /v1/replays are those that nobody waits for (replay_jobs.h).
#include <chrono>
#include <memory>
#include <string>

#include "api/replay_jobs.h"
#include "api/replay_json.h"
#include "api/route.h"

namespace holdfast {
namespace {

constexpr size_t kMaxSteps = 1u << 16;  // in an answer that is no stream

void AnswerWhole(Call& call, Replay& replay, const ReplayView& view) {
  Json steps = Json::array(), report;
  bool too_many = false;
  const Status s = Pump(replay, call.exchange, [&](const ReplayEvent& event) {
    if (event.step && view.Shows(*event.step)) {
      too_many = steps.size() == kMaxSteps;
      if (too_many) return false;
      steps.push_back(StepJson(*event.step, view));
    }
    if (event.report) report = ReportJson(event, replay.recording(), view);
    return true;
  });
  if (too_many) {
    s.IgnoreError();  // the cancellation
    return call.Refuse(Status::Invalid("more than " + std::to_string(kMaxSteps) +
                                       " steps: use \"stream\": true, or from and to"));
  }
  if (!s.ok()) return call.Refuse(s);
  if (view.mode != ReplayMode::kVerify || !steps.empty()) report["data"] = std::move(steps);
  call.Reply(200, report);
}

void AnswerStream(Call& call, std::shared_ptr<Replay> replay, const ReplayView& view) {
  call.exchange.Stream(200, "application/x-ndjson", [replay, view](HttpBody& body) {
    const auto send = [&](const Json& line) { return body.Write(DumpJson(line) + "\n"); };
    const Recording& recording = replay->recording();
    send({{"type", "start"},
          {"mode", ModeName(view.mode)},
          {"session_id", recording.session_id},
          {"branch", recording.branch},
          {"tokens", recording.tokens.size()},
          {"items", recording.items.size()}});
    const Status s = Pump(*replay, body, [&](const ReplayEvent& event) {
      if (event.step && !send(StepJson(*event.step, view))) return false;
      if (event.report) {
        Json report = {{"type", "report"}};
        report.update(ReportJson(event, recording, view));
        return send(report);
      }
      if (event.step) return true;
      return send({{"type", "progress"}, {"done", event.done}, {"total", event.total}});
    });
    if (!s.ok()) body.Write(ErrorJson(ErrorOf(s)) + "\n");
  });
}

// Reads the body; empty after a refusal.
std::optional<ReplayRequest> ReadRequest(Call& call, bool* stream) {
  const std::optional<Json> body = ReadBody(call);
  if (!body) return std::nullopt;
  ReplayRequest request;
  if (const auto error = ReadReplay(*body, &request, stream)) {
    call.Refuse(*error);
    return std::nullopt;
  }
  request.tenant = call.tenant;
  return request;
}

Json JobJson(const ReplayJobInfo& j) {
  const auto time = [](int64_t ms) { return ms == 0 ? Json(nullptr) : Json(ms / 1000); };
  return {{"object", "replay.job"},
          {"id", j.id},
          {"session_id", j.session_id},
          {"mode", ModeName(j.mode)},
          {"state", JobStateName(j.state)},
          {"progress", {{"done", j.done}, {"total", j.total}}},
          {"steps", j.steps},
          {"result", j.result},
          {"error", j.error},
          {"created_at", time(j.created_ms)},
          {"started_at", time(j.started_ms)},
          {"ended_at", time(j.ended_ms)}};
}

// What a stored step is: it was JSON when it was stored.
Json StoredStep(const std::string& text) {
  auto step = ParseJson(text);
  return step.ok() ? std::move(*step) : Json(nullptr);
}

// Sends the steps behind `range.after`, then each new one, and how far it is, until the job has
// ended, which is the last event; or until it is deleted or the client is gone.
void FollowJob(ReplayJobs& jobs, const std::string& tenant, const std::string& id, ListRange range,
               HttpBody& body) {
  auto said = std::chrono::steady_clock::now();
  int64_t at = range.after.empty() ? 0 : std::stoll(range.after) + 1, told = -1;
  const auto send = [&](const std::string& head, const std::string& data) {
    said = std::chrono::steady_clock::now();
    return body.Write(head + "\ndata: " + data + "\n\n");
  };
  for (bool open = body.Write(": ok\n\n"); open && !body.ClientGone();) {
    const uint64_t seen = jobs.WaitForChange(0, 0);
    const auto job = jobs.Get(tenant, id);
    if (!job.ok()) return;
    const auto steps = jobs.Steps(tenant, id, range);
    if (!steps.ok()) return;
    for (const std::string& step : steps->rows) {
      range.after = std::to_string(at++);
      open = open && send("id: " + range.after + "\nevent: step", step);
    }
    if (!steps->next.empty()) continue;
    if (job->ended_ms != 0) {
      send("event: " + std::string(JobStateName(job->state)), DumpJson(JobJson(*job)));
      return;
    }
    if (open && job->done != told) {
      told = job->done;
      open = send("event: progress", DumpJson({{"done", job->done}, {"total", job->total}}));
    }
    open = open && AwaitChange(body, &said, [&](int ms) {
             return jobs.WaitForChange(seen, ms) != seen;
           });
  }
}

}  // namespace

// GET /v1/sessions/{id}/turns: the turns of a branch, as a replay's report has them.
void HandleListTurns(Call& call) {
  auto recording = call.runtime.keeper().Recorded(call.tenant, call.request.segments[0],
                                                  QueryText(call, "branch"));
  if (!recording.ok()) return call.Refuse(recording.status());
  ReplyRows(call, Result<std::vector<RecordedTurn>>(std::move(recording->turns)),
            &RecordedTurn::id, TurnJson, "turn_id");
}

namespace {

void Answer(Call& call, ReplayRequest request, bool stream) {
  request.session = call.request.segments[0];
  const ReplayView view{call.runtime.engine().tokenizer(), request.mode};
  auto replay = call.runtime.StartReplay(std::move(request));
  if (!replay.ok()) return call.Refuse(ErrorOfReplay(replay.status()));
  if (stream) return AnswerStream(call, std::move(replay).value(), view);
  AnswerWhole(call, **replay, view);
}

}  // namespace

void HandleReplay(Call& call) {
  bool stream = false;
  auto request = ReadRequest(call, &stream);
  if (request) Answer(call, std::move(*request), stream);
}

// POST /v1/sessions/{id}/snapshots/{snapshot}/verify: a replay of the way to it.
void HandleVerifySnapshot(Call& call) {
  bool stream = false;
  auto request = ReadRequest(call, &stream);
  if (!request) return;
  const char* field = request->mode != ReplayMode::kVerify ? "mode"
                      : !request->branch.empty()           ? "branch"
                      : !request->snapshot.empty()         ? "snapshot"
                                                           : nullptr;
  if (field != nullptr) {
    ApiError e = ErrorOf(400, std::string(field) + " is not for this route: it verifies the "
                                                   "snapshot that the path names");
    e.param = field;
    return call.Refuse(e);
  }
  request->snapshot = call.request.segments[1];
  Answer(call, std::move(*request), stream);
}

void HandleCreateReplay(Call& call) {
  bool stream = false;  // says nothing here
  auto request = ReadRequest(call, &stream);
  if (!request) return;
  if (request->session.empty()) {
    ApiError e = ErrorOf(400, "session_id is missing");
    e.param = "session_id";
    return call.Refuse(e);
  }
  // By the server's id: the client's own may be another session's when the job's time has come.
  const auto session = call.runtime.keeper().Get(call.tenant, request->session);
  if (!session.ok()) return call.Refuse(session.status());
  request->session = session->id;
  ReplyOne(call, 202, call.jobs.Create(std::move(*request), RandomId("rep_")), JobJson);
}

void HandleListReplays(Call& call) {
  const auto range = ReadRange(call);
  if (!range) return;
  ReplyList(call, call.jobs.List(call.tenant, *range), JobJson, "id");
}

void HandleGetReplay(Call& call) {
  ReplyOne(call, 200, call.jobs.Get(call.tenant, call.request.segments[0]), JobJson);
}

void HandleCancelReplay(Call& call) {
  ReplyOne(call, 200, call.jobs.Cancel(call.tenant, call.request.segments[0]), JobJson);
}

void HandleDeleteReplay(Call& call) {
  const std::string& id = call.request.segments[0];
  if (const Status s = call.jobs.Delete(call.tenant, id); !s.ok()) return call.Refuse(s);
  call.Reply(200, {{"id", id}, {"object", "replay.job.deleted"}, {"deleted", true}});
}

void HandleReplaySteps(Call& call) {
  auto range = ReadRange(call);
  if (!range) return;
  const auto stream = WantsStream(call);
  if (!stream) return;
  const std::string id = call.request.segments[0];
  if (*stream) {
    range->limit = kMaxPage;
    range->order = ListOrder::kAscending;
    if (const auto last = call.request.header("last-event-id"); !last.empty()) range->after = last;
  }
  const auto steps = call.jobs.Steps(call.tenant, id, *range);
  if (!*stream || !steps.ok()) return ReplyList(call, steps, StoredStep, "index");
  call.exchange.AddHeader("cache-control", "no-cache");
  call.exchange.Stream(200, "text/event-stream; charset=utf-8",
                       [&jobs = call.jobs, tenant = call.tenant, id, range = *range](
                           HttpBody& body) { FollowJob(jobs, tenant, id, range, body); });
}

}  // namespace holdfast
