#include "stitcher/card.h"

#include <algorithm>
#include <cstdlib>
#include <tuple>
#include <utility>

namespace holdfast {
namespace {

bool Covers(const ModelCard& card, const CardChoice& choice) {
  return choice.runs >= 1 && choice.runs <= card.max_runs && choice.tokens >= card.min_tokens &&
         choice.context <= card.max_context && choice.generation <= card.max_generation;
}

bool Usable(const CardCell& cell, CardKind kind) {
  return cell.kind == kind && cell.kl.contexts >= kCardMinContexts;
}

// Windows first: they are what a setting with both gains most by.
std::pair<int, int> Strength(const CardSetting& s) { return {s.windows, s.link}; }

}  // namespace

const char* CardKindName(CardKind kind) {
  return kind == CardKind::kInContext ? "in_context" : "isolated";
}

ModelCard OpenCard(const Digest& model, CardKl kl) {
  ModelCard card;
  card.model = model;
  card.name = "allows everything";
  card.kv_type = "f16";
  card.max_context = 1'000'000'000;
  card.min_tokens = 1;
  card.max_runs = 1 << 16;
  for (const CardKind kind : {CardKind::kInContext, CardKind::kIsolated}) {
    for (const CardSetting& s :
         {CardSetting{32, 0}, {128, 0}, {32, 20}, {128, 20}, {128, 40}}) {
      card.cells.push_back({.kind = kind,
                            .runs = static_cast<int>(kCardRuns.size()) - 1,
                            .setting = s,
                            .kl = kl});
    }
  }
  return card;
}

std::optional<CardKl> ExpectedKl(const ModelCard& card, const CardChoice& choice) {
  if (!Covers(card, choice)) return std::nullopt;
  std::optional<CardSetting> setting;
  for (const CardCell& cell : card.cells) {
    if (!Usable(cell, choice.kind) || cell.setting.link > choice.setting.link ||
        cell.setting.windows > choice.setting.windows) {
      continue;
    }
    if (!setting || Strength(*setting) < Strength(cell.setting)) setting = cell.setting;
  }
  if (!setting) return std::nullopt;
  const int tokens = CardClass(kCardTokens, choice.tokens);
  const int runs = CardClass(kCardRuns, choice.runs);
  const int shift = CardClass(kCardShift, choice.shift);
  const CardCell* best = nullptr;
  std::tuple<int, int, int, int> nearest;
  for (const CardCell& cell : card.cells) {
    if (!Usable(cell, choice.kind) || cell.setting != *setting || cell.tokens > tokens ||
        cell.runs < runs) {
      continue;
    }
    const std::tuple distance{tokens - cell.tokens, cell.runs - runs, std::abs(cell.shift - shift),
                              -cell.shift};
    if (best != nullptr && nearest <= distance) continue;
    best = &cell;
    nearest = distance;
  }
  if (best == nullptr) return std::nullopt;
  return best->kl;
}

std::vector<CardSetting> CardSettings(const ModelCard& card, CardKind kind) {
  struct Cost {
    CardSetting setting;
    double rows = 0;
    int cells = 0;
    double mean() const { return rows / cells; }
  };
  std::vector<Cost> costs;
  for (const CardCell& cell : card.cells) {
    if (!Usable(cell, kind)) continue;
    auto it = std::find_if(costs.begin(), costs.end(),
                           [&](const Cost& c) { return c.setting == cell.setting; });
    if (it == costs.end()) it = costs.insert(costs.end(), Cost{cell.setting});
    it->rows += cell.kl.rows;
    ++it->cells;
  }
  std::stable_sort(costs.begin(), costs.end(),
                   [](const Cost& a, const Cost& b) { return a.mean() < b.mean(); });
  std::vector<CardSetting> out;
  for (const Cost& c : costs) out.push_back(c.setting);
  return out;
}

std::optional<CardSetting> CheapestUnder(const ModelCard& card, const CardChoice& choice,
                                         double max_kl) {
  CardChoice with = choice;
  for (const CardSetting& setting : CardSettings(card, choice.kind)) {
    with.setting = setting;
    const auto kl = ExpectedKl(card, with);
    if (kl && kl->bound <= max_kl) return setting;
  }
  return std::nullopt;
}

}  // namespace holdfast
