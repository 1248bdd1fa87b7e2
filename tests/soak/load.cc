#include "tests/soak/load.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "api/chat_stream.h"
#include "api/upkeep.h"
#include "tests/api/bundle_bench.h"
#include "tests/fixtures/tiny_model.h"

namespace holdfast::soak {
namespace {

constexpr size_t kSteps = 14;  // of a round
constexpr char kBundleKey[] = "the campaign's bundle key";

void PutBytes(std::string* out, const void* data, uint32_t size) {
  out->append(reinterpret_cast<const char*>(&size), sizeof(size));
  out->append(static_cast<const char*>(data), size);
}

std::string_view TakeBytes(std::string_view* in) {
  uint32_t size;
  std::memcpy(&size, in->data(), sizeof(size));
  const std::string_view bytes = in->substr(sizeof(size), size);
  in->remove_prefix(sizeof(size) + size);
  return bytes;
}

std::vector<TokenId> TakeTokens(std::string_view* in) {
  const std::string_view bytes = TakeBytes(in);
  std::vector<TokenId> out(bytes.size() / sizeof(TokenId));
  if (!bytes.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

std::string Quote(const std::string& text) {  // the scripts need no escapes
  return "\"" + text + "\"";
}

ChatMessage Said(const char* role, const std::string& text, const std::string& more) {
  ChatMessage m;
  m.role = role;
  m.text = text;
  m.raw_json = std::string("{\"role\":") + Quote(role) + ",\"content\":" + Quote(text) + more + "}";
  return m;
}

StepKind KindOf(uint64_t chance, bool anonymous) {
  struct Share {
    StepKind kind;
    uint64_t below;
    bool by_name;  // wants a session with a name
  };
  static constexpr Share kShares[] = {
      {StepKind::kFork, 9, true},      {StepKind::kRewind, 18, true},
      {StepKind::kSnapshot, 26, true}, {StepKind::kEvict, 36, false},
      {StepKind::kExport, 43, false},  {StepKind::kCollect, 47, false},
      {StepKind::kDelete, 52, false},
  };
  for (const Share& s : kShares) {
    if (chance < s.below) return s.by_name && anonymous ? StepKind::kTurn : s.kind;
  }
  return StepKind::kTurn;
}

[[noreturn]] void FailAt(const Ack& a, const std::string& why) {
  Fail("client " + std::to_string(a.client) + ", round " + std::to_string(a.round) + ", step " +
       std::to_string(a.step) + ": " + why);
}

}  // namespace

void Fail(const std::string& why) {
  std::fprintf(stderr, "campaign: %s\n", why.c_str());
  std::fflush(nullptr);
  std::_Exit(1);
}

std::string Encode(const Ack& a) {
  std::string body;
  const uint32_t numbers[3] = {a.client, a.round, a.step};
  PutBytes(&body, numbers, sizeof(numbers));
  for (const std::string* s : {&a.session, &a.branch, &a.result}) {
    PutBytes(&body, s->data(), static_cast<uint32_t>(s->size()));
  }
  for (const auto* t : {&a.prompt, &a.completion}) {
    PutBytes(&body, t->data(), static_cast<uint32_t>(t->size() * sizeof(TokenId)));
  }
  std::string out;
  PutBytes(&out, body.data(), static_cast<uint32_t>(body.size()));
  return out;
}

bool Decode(std::string* stream, Ack* a) {
  uint32_t size;
  if (stream->size() < sizeof(size)) return false;
  std::memcpy(&size, stream->data(), sizeof(size));
  if (stream->size() < sizeof(size) + size) return false;
  std::string_view body = std::string_view(*stream).substr(sizeof(size), size);
  const std::string_view numbers = TakeBytes(&body);
  uint32_t values[3];
  std::memcpy(values, numbers.data(), sizeof(values));
  a->client = values[0];
  a->round = values[1];
  a->step = values[2];
  for (std::string* s : {&a->session, &a->branch, &a->result}) *s = TakeBytes(&body);
  a->prompt = TakeTokens(&body);
  a->completion = TakeTokens(&body);
  stream->erase(0, sizeof(size) + size);
  return true;
}

Load::Load(std::string campaign, uint64_t seed, const std::vector<StepKind>& kinds)
    : tenant_(std::move(campaign)), scripts_(kClients), clients_(kClients) {
  std::mt19937_64 random(seed);
  static const char* const kWords[] = {"open", "the", "file", "and", "tell", "me", "what", "stands",
                                       "in", "line", "seven", "please", "then", "list", "again"};
  for (int client = 0; client < kClients; ++client) {
    for (size_t t = 0; t < (kinds.empty() ? kSteps : kinds.size()); ++t) {
      ScriptStep step;
      step.kind = t < 2 ? StepKind::kTurn : KindOf(random() % 100, client == 0);
      if (!kinds.empty()) step.kind = kinds[t];
      for (uint64_t n = 5 + random() % 40; n > 0; --n) {
        step.text += kWords[random() % std::size(kWords)];
        step.text += ' ';
      }
      step.seed = random() % 3 == 0 ? 0 : 1 + random() % 1000;
      step.max_tokens = 8 + static_cast<int>(random() % 40);
      step.call_tool = random() % 4 == 0;
      if (step.call_tool) step.max_tokens = 120;
      step.keyed = random() % 3 == 0;
      static constexpr Durability kOf[] = {Durability::kTurn, Durability::kLazy, Durability::kLazy,
                                           Durability::kKv};
      step.durability = kOf[random() % std::size(kOf)];
      step.pick = random();
      scripts_[client].push_back(std::move(step));
    }
  }
}

std::string Load::WriteModel(const std::string& folder) {
  TinyModelSpec spec;
  spec.head = TinyHead::kSeparate;  // with a tied one it says one letter for ever
  spec.context_length = 8192;       // longer than any round becomes
  const std::string path = folder + "/tiny.gguf";
  if (!WriteTinyModel(spec, path).ok()) Fail("the model can't be written to " + path);
  return path;
}

RuntimeOptions Load::OptionsFor(const std::string& model, const std::string& data) {
  RuntimeOptions options;
  options.engine.model_path = model;
  options.engine.kv_bytes = 16u << 20;
  options.engine.cpu.threads = 1;
  options.data_dir = data;
  options.disk_bytes = 512u << 20;
  return options;
}

std::string Load::NameOf(int client) const {
  return "client" + std::to_string(client) + "-" + std::to_string(clients_[client].round);
}

// By which the client names its session: the first one has no name of its own.
std::string Load::IdOf(int client) const {
  return client == 0 ? clients_[client].session : NameOf(client);
}

const Load::ScriptStep& Load::StepOf(const Client& client, int index) const {
  return scripts_[index][client.step];
}

// Turns that a fork or rewind keeps.
size_t Load::Keep(const ScriptStep& step, const Client& client) const {
  return client.history.empty() ? 0 : 1 + step.pick % client.history.size();
}

// The whole history, as the client saw it, and what it says next.
ChatRequest Load::NextRequest(int index) const {
  const Client& client = clients_[index];
  const ScriptStep& step = StepOf(client, index);
  const std::string name = NameOf(index);
  ChatRequest r;
  r.tenant = tenant_;
  if (index > 0) r.session = {name, client.branch};
  std::string call_id;
  auto say = [&](const ScriptStep& said) {
    const std::string more =
        call_id.empty() ? "" : ",\"tool_call_id\":" + Quote(call_id);
    r.messages.push_back(Said(call_id.empty() ? "user" : "tool", said.text + name, more));
    r.messages.back().tool_call_id = call_id;
  };
  for (const auto& [at, ack] : client.history) {
    say(scripts_[index][at]);
    auto response = DecodeResponse(ack.result);
    if (!response.ok()) FailAt(ack, response.status().ToString());
    ChatMessage m;
    m.role = "assistant";
    m.text = response->content;
    m.tool_calls = response->tool_calls;
    m.raw_json = AssistantJson(m.text, m.tool_calls);
    call_id = m.tool_calls.empty() ? "" : m.tool_calls.front().id;
    r.messages.push_back(std::move(m));
  }
  say(step);
  r.tools = {{"read_file", R"({"type":"object","properties":{"path":{"enum":["a","bb"]}},)"
                           R"("required":["path"],"additionalProperties":false})"}};
  r.tools_json = R"([{"type":"function","function":{"name":"read_file"}}])";
  r.tool_choice = step.call_tool ? ToolChoice::kRequired : ToolChoice::kNone;
  r.parallel_tool_calls = false;
  r.sampling.temperature = step.seed == 0 ? 0.0f : 1.0f;
  if (step.seed != 0) r.seed = step.seed;
  r.max_tokens = step.max_tokens;
  r.durability = step.durability;
  if (step.keyed) r.idempotency_key = name + "-" + std::to_string(client.step);
  return r;
}

Status Load::Turn(Runtime& runtime, int index, Ack* ack) const {
  HOLDFAST_ASSIGN_OR_RETURN(const auto stream, runtime.Chat(NextRequest(index)));
  std::optional<ChatDone> done;
  while (auto event = stream->Next(-1)) {
    if (event->done) done = std::move(event->done);
  }
  if (!done) return Status::Io("a turn without an end");
  HOLDFAST_RETURN_IF_ERROR(done->status);
  if (!done->report.committed) return Status::Exhausted("the turn is not committed");
  const bool lazy = StepOf(clients_[index], index).durability == Durability::kLazy;
  // One that is served again is durable whatever it was.
  if (done->report.durable != (!lazy || done->report.start.replayed)) {
    return Status::Corrupt("a turn does not say rightly whether it is durable");
  }
  ack->session = done->report.start.session_id;
  ack->branch = done->report.start.branch;
  ack->result = EncodeResponse({done->finish, done->content, done->warning, done->tool_calls});
  ack->prompt = done->prompt_tokens;
  ack->completion = done->completion_tokens;
  return Status();
}

Status Load::Branch(Runtime& runtime, int index, Ack* ack) const {
  const Client& client = clients_[index];
  const ScriptStep& step = StepOf(client, index);
  const size_t keep = Keep(step, client);
  ack->branch = "step-" + std::to_string(client.step);
  MakeBranch make;
  make.from = client.history.back().second.branch;
  make.at_item = static_cast<int64_t>(2 * keep);
  make.name = ack->branch;
  if (step.kind == StepKind::kRewind) make.default_branch = MakeBranch::Default::kMove;
  const Status made = runtime.keeper().Branch(tenant_, IdOf(index), make).status();
  return made.code() == Code::kConflict ? Status() : made;  // taken: made before the crash
}

Status Load::ExportAndImport(Runtime& runtime, int index) const {
  Keeper& keeper = runtime.keeper();
  const std::string copy = NameOf(index) + "-copy";
  const Status before = keeper.Delete(tenant_, copy);  // left by a crash
  if (before.code() != Code::kNotFound) HOLDFAST_RETURN_IF_ERROR(before);
  HOLDFAST_ASSIGN_OR_RETURN(
      const Bytes bytes, ExportBytes(keeper, tenant_, IdOf(index), {.key = kBundleKey}));
  HOLDFAST_RETURN_IF_ERROR(
      ImportBytes(keeper, tenant_, bytes, {.key = kBundleKey, .as = copy}).status());
  HOLDFAST_ASSIGN_OR_RETURN(const auto tokens, keeper.Tokens(tenant_, IdOf(index), ""));
  HOLDFAST_ASSIGN_OR_RETURN(const auto copied, keeper.Tokens(tenant_, copy, ""));
  if (tokens != copied) Fail("an imported copy of " + NameOf(index) + " has other tokens");
  return keeper.Delete(tenant_, copy);
}

Result<Ack> Load::Step(Runtime& runtime, int index) const {
  const Client& client = clients_[index];
  const ScriptStep& step = StepOf(client, index);
  Ack ack;
  ack.client = static_cast<uint32_t>(index);
  ack.round = client.round;
  ack.step = client.step;
  if (step.kind == StepKind::kTurn) {
    HOLDFAST_RETURN_IF_ERROR(Turn(runtime, index, &ack));
    return ack;
  }
  if (client.history.empty()) return ack;  // nothing is there yet, or not any more
  ack.session = client.session;
  switch (step.kind) {
    case StepKind::kFork:
    case StepKind::kRewind: HOLDFAST_RETURN_IF_ERROR(Branch(runtime, index, &ack)); break;
    case StepKind::kSnapshot: {
      HOLDFAST_ASSIGN_OR_RETURN(
          const auto taken, runtime.keeper().Snapshot(tenant_, IdOf(index), "", NameOf(index)));
      ack.result = taken.id;
      break;
    }
    case StepKind::kEvict: runtime.keeper().MakeRoom(INT64_MAX); break;
    case StepKind::kCollect:
      HOLDFAST_RETURN_IF_ERROR(CollectGarbage(runtime, Gc::kNow).status());
      break;
    case StepKind::kExport: HOLDFAST_RETURN_IF_ERROR(ExportAndImport(runtime, index)); break;
    case StepKind::kDelete: {
      const Status gone = runtime.keeper().Delete(tenant_, IdOf(index));
      if (gone.code() != Code::kNotFound) HOLDFAST_RETURN_IF_ERROR(gone);
      break;
    }
    case StepKind::kTurn: break;
  }
  return ack;
}

Ack Load::MustStep(Runtime& runtime, int client) const {
  Result<Ack> ack = Step(runtime, client);
  if (ack.ok()) return std::move(ack).value();
  Ack where;
  where.client = static_cast<uint32_t>(client);
  where.round = clients_[client].round;
  where.step = clients_[client].step;
  FailAt(where, ack.status().ToString());
}

void Load::Advance(Ack ack) {
  const int index = static_cast<int>(ack.client);
  Client& client = clients_[index];
  if (ack.round != client.round || ack.step != client.step) FailAt(ack, "acknowledged out of order");
  const ScriptStep& step = StepOf(client, index);
  ++steps_;
  if (step.kind == StepKind::kTurn && step.durability == Durability::kLazy) {
    auto before = std::make_shared<const Client>(client);
    LazyTurn lazy{ack, Clock::now(), std::move(before)};
    Apply(index, std::move(ack));
    client.lazy = std::move(lazy);
    return;
  }
  // These may have had nothing to write.
  const bool idle = step.kind == StepKind::kEvict || step.kind == StepKind::kCollect ||
                    (step.kind != StepKind::kTurn && client.history.empty());
  Apply(index, std::move(ack));
  if (!idle) client.lazy.reset();
}

// What the end of a step means for what its client knows.
void Load::Apply(int index, Ack ack) {
  Client& client = clients_[index];
  const ScriptStep& step = StepOf(client, index);
  if (step.kind == StepKind::kTurn) {
    client.session = ack.session;
    client.branch.clear();
    client.heads[ack.branch] = ack;
    client.history.emplace_back(client.step, std::move(ack));
  } else if (!client.history.empty()) {
    switch (step.kind) {
      case StepKind::kFork:
      case StepKind::kRewind:
        client.history.resize(Keep(step, client));
        client.branches.push_back(ack.branch);
        // A rewind is found by its history and by being the default.
        client.branch = step.kind == StepKind::kFork ? ack.branch : "";
        break;
      case StepKind::kSnapshot: client.snapshots.push_back(ack.result); break;
      case StepKind::kDelete: {
        Client fresh;
        fresh.round = client.round;
        fresh.step = client.step;
        fresh.deleted = std::move(client.deleted);
        fresh.deleted.push_back(ack.session);
        client = std::move(fresh);
        break;
      }
      default: break;
    }
  }
  if (++client.step < scripts_[index].size()) return;
  Client next;
  next.round = client.round + 1;
  next.lazy = std::move(client.lazy);
  client = std::move(next);
}

std::vector<TokenId> HeadAfter(const Ack& turn) {
  std::vector<TokenId> head = turn.prompt;
  head.insert(head.end(), turn.completion.begin(), turn.completion.end());
  if (!head.empty() && head.back() == kTinyEndOfText) head.pop_back();  // not the template's end
  return head;
}

int Load::TakeBackLost(Runtime& runtime, Clock::time_point at) {
  int lost = 0;
  for (int i = 0; i < kClients; ++i) {
    Client& client = clients_[i];
    // A deletion that has no ack yet may have ended.
    if (StepOf(client, i).kind == StepKind::kDelete &&
        runtime.keeper().Get(tenant_, client.session).status().code() == Code::kNotFound) {
      continue;
    }
    while (client.lazy && at - client.lazy->seen < std::chrono::seconds(2)) {
      const Ack& last = client.lazy->ack;
      const auto tokens = runtime.keeper().Tokens(tenant_, last.session, last.branch);
      const std::vector<TokenId> want = HeadAfter(last);
      if (tokens.ok() && tokens->size() >= want.size() &&
          std::equal(want.begin(), want.end(), tokens->begin())) {
        break;
      }
      const std::shared_ptr<const Client> before = client.lazy->before;
      client = *before;
      ++lost;
    }
  }
  return lost;
}

void Load::Check(Runtime& runtime) const {
  Keeper& keeper = runtime.keeper();
  for (int i = 0; i < kClients; ++i) {
    const Client& client = clients_[i];
    for (const std::string& id : client.deleted) {
      if (keeper.Get(tenant_, id).status().code() != Code::kNotFound) {
        Fail("session " + id + " was deleted, and is there again");
      }
    }
    // A deletion may have ended without an ack: then all of it is gone.
    if (StepOf(client, i).kind == StepKind::kDelete &&
        keeper.Get(tenant_, client.session).status().code() == Code::kNotFound) {
      continue;
    }
    for (const auto& [branch, last] : client.heads) {  // its prompt holds those before it
      const auto tokens = keeper.Tokens(tenant_, last.session, branch);
      if (!tokens.ok()) FailAt(last, "an acknowledged turn is lost: " + tokens.status().ToString());
      const std::vector<TokenId> want = HeadAfter(last);
      if (tokens->size() >= want.size() && std::equal(want.begin(), want.end(), tokens->begin())) {
        continue;
      }
      FailAt(last, "not what was acknowledged: " + std::to_string(tokens->size()) +
                       " tokens in branch " + branch + " of " + last.session + ", " +
                       std::to_string(want.size()) + " were");
    }
    for (const std::string& name : client.branches) {
      const Status there = keeper.Tokens(tenant_, client.session, name).status();
      if (!there.ok()) Fail("an acknowledged branch is lost: " + there.ToString());
    }
    if (client.snapshots.empty()) continue;
    const auto snapshots = keeper.Snapshots(tenant_, client.session);
    for (const std::string& id : client.snapshots) {
      if (!snapshots.ok() || std::none_of(snapshots->begin(), snapshots->end(),
                                          [&](const SnapshotInfo& s) { return s.id == id; })) {
        Fail("the acknowledged snapshot " + id + " is lost");
      }
    }
  }
  const auto report = Fsck(runtime, FilePageStore::Repair::kNo);
  if (!report.ok()) Fail("fsck: " + report.status().ToString());
  if (report->clean()) return;
  std::string what = "fsck is not clean:";
  for (const std::string& w : report->log.what) what += "\n  " + w;
  for (const std::string& w : report->pages.what) what += "\n  " + w;
  Fail(what);
}

}  // namespace holdfast::soak
