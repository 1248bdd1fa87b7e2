// The load of the crash campaigns: a few clients that talk to one Runtime, each alone in sessions
// of its own, by a script made of a seed. Steps are turns (greedy or with a seed of their own, tool
// calls, idempotency keys, durability `kv` or `lazy`), forks and rewinds by name, snapshots, eviction,
// garbage collection, an export that is imported beside and compared, and deletion. A client does a
// step again until it has seen its end; what a step gives does not depend on how often it was begun.
// What follows a lazy turn, up to the next step that is durable, a power cut may take with it: the
// client then stands where it was before that turn (TakeBackLost).
//
// A Load is what the clients have seen so far. Copy it to remember a moment. Not thread-safe; what
// one client is about may be read and advanced by a thread of its own.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "api/runtime.h"

namespace holdfast::soak {

enum class StepKind : uint8_t {
  kTurn, kFork, kRewind, kSnapshot, kEvict, kCollect, kExport, kDelete,
};
inline constexpr int kStepKinds = 8;

// What a client has seen the end of.
struct Ack {
  uint32_t client = 0, round = 0, step = 0;
  std::string session, branch;
  std::string result;  // of a turn: EncodeResponse; of a snapshot: its id
  std::vector<TokenId> prompt, completion;
};
std::string Encode(const Ack& ack);
// Takes one whole ack from the front of `stream`; false when there is none.
bool Decode(std::string* stream, Ack* ack);

// The tokens of the branch after a turn.
std::vector<TokenId> HeadAfter(const Ack& turn);

// Ends the process with a message: the campaign has failed.
[[noreturn]] void Fail(const std::string& why);

class Load {
 public:
  static constexpr int kClients = 4;

  // `kinds`: of the steps of a round; empty = chance decides.
  Load(std::string campaign, uint64_t seed, const std::vector<StepKind>& kinds = {});

  // Makes the tiny model that the load talks to.
  static std::string WriteModel(const std::string& folder);
  static RuntimeOptions OptionsFor(const std::string& model, const std::string& data);

  // Does the next step of a client, to its end.
  Result<Ack> Step(Runtime& runtime, int client) const;
  Ack MustStep(Runtime& runtime, int client) const;  // Fail where it does
  void Advance(Ack ack);
  uint32_t round(int client) const { return clients_[client].round; }
  uint64_t steps() const { return steps_; }  // all that were acknowledged
  // The last turn on each branch of the client's session.
  const std::map<std::string, Ack>& Heads(int client) const { return clients_[client].heads; }

  // After a power cut at `at`: clients whose last lazy turns are lost go back to before them. Returns
  // how many turns those were. A lazy turn that is older than 2 s must be there (Check sees that).
  using Clock = std::chrono::steady_clock;
  int TakeBackLost(Runtime& runtime, Clock::time_point at);
  // Everything acknowledged is there, token for token; what was deleted is not; fsck is clean.
  void Check(Runtime& runtime) const;

 private:
  struct ScriptStep {
    StepKind kind = StepKind::kTurn;
    std::string text;
    uint64_t seed = 0;  // 0: temperature 0
    uint64_t pick = 0;
    int max_tokens = 0;
    bool call_tool = false, keyed = false;
    Durability durability = Durability::kTurn;
  };
  struct Client;
  struct LazyTurn {
    Ack ack;
    Clock::time_point seen;
    std::shared_ptr<const Client> before;
  };
  struct Client {
    uint32_t round = 0, step = 0;
    std::string branch;             // that the next turn names, or ""
    std::string session;            // its id, once known
    std::vector<std::pair<uint32_t, Ack>> history;  // turns that are still of the conversation
    std::map<std::string, Ack> heads;               // the last turn on each branch
    std::vector<std::string> branches, snapshots, deleted;
    std::optional<LazyTurn> lazy;   // the last one, if nothing durable came after it
  };

  std::string NameOf(int client) const;
  std::string IdOf(int client) const;
  const ScriptStep& StepOf(const Client& client, int index) const;
  size_t Keep(const ScriptStep& step, const Client& client) const;
  ChatRequest NextRequest(int index) const;
  Status Turn(Runtime& runtime, int index, Ack* ack) const;
  Status Branch(Runtime& runtime, int index, Ack* ack) const;
  Status ExportAndImport(Runtime& runtime, int index) const;
  void Apply(int index, Ack ack);

  std::string tenant_;
  std::vector<std::vector<ScriptStep>> scripts_;
  std::vector<Client> clients_;
  uint64_t steps_ = 0;
};

}  // namespace holdfast::soak
