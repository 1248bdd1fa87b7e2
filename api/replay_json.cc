#include "api/replay_json.h"

#include <limits>

#include "api/openai_chat.h"

namespace holdfast {
namespace {

constexpr size_t kMaxEdits = 64;
constexpr size_t kMaxContentBytes = 16u << 20;
constexpr int64_t kMaxIndex = int64_t{1} << 40;
constexpr const char* kModes[] = {"verify", "forced", "free"};

std::string Hex(uint64_t v) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out(16, '0');
  for (int i = 0; i < 16; ++i) out[i] = kDigits[v >> (60 - 4 * i) & 15];
  return out;
}

Json DigestJson(uint64_t digest) { return digest == 0 ? Json(nullptr) : Json(Hex(digest)); }

Json TokenJson(TokenId token, const ReplayView& view) {
  if (token == kNoToken) return nullptr;
  return {{"token", token}, {"text", view.tokenizer.TokenText(token)}};
}

std::string TextOf(std::span<const TokenId> tokens, const ReplayView& view) {
  std::string text;
  for (TokenId t : tokens) text += view.tokenizer.TokenText(t);
  return text;
}

Json DivergenceJson(const ReplayDivergence& d, const Recording& recording, const ReplayView& view) {
  const int64_t item = recording.ItemOf(d.index);
  const RecordedTurn* turn = recording.TurnOf(d.index);
  Json expected = TokenJson(d.expected, view), got = TokenJson(d.got, view);
  if (d.expected_digest != 0) expected["digest"] = Hex(d.expected_digest);
  if (d.got_digest != 0) got["digest"] = Hex(d.got_digest);
  return {{"what", d.what},
          {"cause", d.cause},
          {"detail", d.detail},
          {"index", d.index},
          {"item", item},
          {"role", item < 0 ? Json(nullptr) : Json(recording.items[item].role)},
          {"turn_id", turn == nullptr ? Json(nullptr) : Json(turn->id)},
          {"expected", std::move(expected)},
          {"got", std::move(got)},
          {"tier", d.tier.empty() ? Json(nullptr) : Json(d.tier)}};
}

Json FreeJson(const FreeOutcome& f, const ReplayView& view) {
  Json diff = Json::array();
  Json first = nullptr;
  for (const DiffHunk& h : f.diff) {
    const bool equal = h.kind == DiffHunk::Kind::kEqual;
    if (!equal && first.is_null()) first = h.b;
    const auto side = [&](const std::vector<TokenId>& tokens, int64_t at, int64_t count) {
      const auto part = std::span(tokens).subspan(at, count);
      return Json{{"first", at}, {"count", count}, {"text", TextOf(part, view)}};
    };
    diff.push_back({{"equal", equal},
                    {"recorded", side(f.recorded, h.a, h.a_count)},
                    {"replayed", side(f.replayed, h.b, h.b_count)}});
  }
  return {{"branch", f.branch},
          {"turn_id", f.turn_id},
          {"finish", f.finish},
          {"content", f.content},
          {"miss", MissJson(f.miss)},
          {"recorded", {{"first", f.recorded_begin}, {"count", f.recorded.size()}}},
          {"replayed", {{"first", f.begin}, {"count", f.replayed.size()}, {"forced", f.forced}}},
          {"first_divergence", std::move(first)},
          {"diff", std::move(diff)}};
}

std::string ReadSampling(const Json& object, Fields& body) {
  Fields f(object, "sampling", body.error());
  Json out = Json::object();
  const auto number = [&](const char* name, double min, double max) {
    if (f.Find(name) != nullptr) out[name] = f.Number(name, min, max, min);
  };
  const auto integer = [&](const char* name, int64_t min, int64_t max) {
    if (f.Find(name) != nullptr) out[name] = f.Int(name, min, max, min);
  };
  number("temperature", 0, 2);
  integer("top_k", 0, 1 << 20);
  number("top_p", 1e-9, 1);
  number("min_p", 0, 0.999);
  number("presence_penalty", -2, 2);
  number("frequency_penalty", -2, 2);
  number("repetition_penalty", 0.1, 10);
  integer("repetition_window", 0, 1 << 20);
  integer("max_tokens", 1, int64_t{1} << 31);
  for (const auto& [name, value] : object.items()) {
    if (value.is_null() || out.contains(name)) continue;
    f.Fail(name, "is not a sampling parameter that can be changed");
  }
  return out.empty() ? "" : DumpJson(out);
}

void ReadEdits(Fields& body, ReplayRequest* out) {
  const Json* edits = body.Array("edits", kMaxEdits);
  for (size_t i = 0; edits != nullptr && i < edits->size(); ++i) {
    Fields edit((*edits)[i], "edits[" + std::to_string(i) + "]", body.error());
    if (edit.Find("item") == nullptr) edit.Fail("item", "is missing");
    if (edit.Find("content") == nullptr) edit.Fail("content", "is missing");
    out->edits.push_back(
        {edit.Int("item", 0, kMaxIndex, 0), edit.Text("content", "", kMaxContentBytes)});
  }
}

}  // namespace

const char* ModeName(ReplayMode mode) { return kModes[static_cast<size_t>(mode)]; }

Json TurnJson(const RecordedTurn& t) {
  return {{"turn_id", t.id},
          {"tokens", {{"first", t.begin}, {"output", t.output}, {"end", t.end}}},
          {"finish", t.finish},
          {"created_ms", t.created_ms},
          {"ended_ms", t.ended_ms},
          {"queue_ms", t.timing.queue_ms},
          {"restore_ms", t.timing.restore_ms},
          {"prefill_ms", t.timing.prefill_ms},
          {"decode_ms", t.timing.decode_ms}};
}

Json StepJson(const ReplayStep& s, const ReplayView& view) {
  const bool free = view.mode == ReplayMode::kFree;
  Json j = free ? TokenJson(s.drawn, view) : TokenJson(s.recorded, view);
  Json step = {{"type", "step"},
               {"index", s.index},
               {"item", s.item},
               {"origin", s.origin == TokenOrigin::kSampled ? "sampled" : "forced"},
               {"token", j["token"]},
               {"text", j["text"]},
               {"digest", DigestJson(s.digest)}};
  if (free) {
    step["recorded"] = TokenJson(s.recorded, view);
    step["same"] = s.recorded == s.drawn;
  } else {
    step["recorded_digest"] = DigestJson(s.recorded_digest);
    step["drawn"] = TokenJson(s.drawn, view);
    step["same"] = s.recorded == s.drawn &&
                   (s.recorded_digest == 0 || s.recorded_digest == s.digest);
  }
  if (!view.Shows(s)) return step;
  step["logprob"] = s.logprob;
  if (s.rank > 0) step["rank"] = s.rank;
  step["top"] = Json::array();
  for (const TokenLogprob& t : s.top) {
    step["top"].push_back({{"token", t.token},
                           {"text", view.tokenizer.TokenText(t.token)},
                           {"logprob", t.logprob}});
  }
  return step;
}

Json ReportJson(const ReplayEvent& event, const Recording& recording, const ReplayView& view) {
  const ReplayReport& r = *event.report;
  Json j = {{"object", "replay"},
            {"mode", ModeName(view.mode)},
            {"session_id", recording.session_id},
            {"branch", recording.branch},
            {"diverged", r.divergence.has_value()},
            {"tokens", r.tokens}};
  if (event.free) {
    const Json free = FreeJson(*event.free, view);
    // What rests on something else is not called the same, whatever its tokens are.
    j["diverged"] = !free["first_divergence"].is_null() || !r.changed.empty();
    j["changed"] = r.changed;
    j["free"] = free;
  } else {
    j["steps"] = r.steps;
    j["undigested"] = r.undigested;
    j["pages"] = {{"memory", r.pages_memory}, {"disk", r.pages_disk}};
    j["changed"] = r.changed;
    j["divergence"] =
        r.divergence ? DivergenceJson(*r.divergence, recording, view) : Json(nullptr);
  }
  j["ms"] = r.ms;
  j["turns"] = Json::array();
  for (const RecordedTurn& t : recording.turns) j["turns"].push_back(TurnJson(t));
  return j;
}

std::optional<ApiError> ReadReplay(const Json& json, ReplayRequest* out, bool* stream) {
  std::optional<ApiError> error;
  Fields body(json, "", &error);
  out->mode = static_cast<ReplayMode>(body.OneOf("mode", {"verify", "forced", "free"}));
  out->session = body.Text("session_id", "", 256);
  out->branch = body.Text("branch", "", 256);
  out->snapshot = body.Text("snapshot", "", 256);
  out->name = body.Text("name", "", 256);
  out->from = body.Int("from", 0, kMaxIndex, 0);
  if (body.Find("to") != nullptr) out->to = body.Int("to", 0, kMaxIndex, 0);
  if (body.Find("from_item") != nullptr) out->from_item = body.Int("from_item", 0, kMaxIndex, 0);
  if (body.Find("to_item") != nullptr) out->to_item = body.Int("to_item", 0, kMaxIndex, 0);
  const bool forced = out->mode == ReplayMode::kForced;
  out->top_k = static_cast<int>(body.Int("top_k", 0, 20, forced ? 5 : 0));
  if (body.Find("seed") != nullptr) {
    out->seed = static_cast<uint64_t>(body.Int("seed", std::numeric_limits<int64_t>::min(),
                                               std::numeric_limits<int64_t>::max(), 0));
  }
  if (const Json* s = body.Object("sampling")) out->sampling_json = ReadSampling(*s, body);
  ReadEdits(body, out);
  const bool free = out->mode == ReplayMode::kFree;
  if (!out->branch.empty() && !out->snapshot.empty()) {
    body.Fail("snapshot", "excludes branch");
  }
  if (!free && !out->edits.empty()) body.Fail("edits", "is for mode 'free'");
  if (!free && !out->name.empty()) body.Fail("name", "is for mode 'free'");
  if (free && (out->to >= 0 || out->to_item)) body.Fail("to", "is for modes 'verify' and 'forced'");
  *stream = body.Bool("stream", false);
  return error;
}

ApiError ErrorOfReplay(const Status& status) {
  ApiError e = ErrorOf(status);
  for (const char* field : {"from", "to", "top_k", "branch", "edits", "sampling", "name:"}) {
    if (e.status != 400 || !e.message.starts_with(field)) continue;
    e.param = e.message.substr(0, e.message.find_first_of(",: "));
    break;
  }
  return e;
}

}  // namespace holdfast
