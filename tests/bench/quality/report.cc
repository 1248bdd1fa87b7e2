#include "tests/bench/quality/report.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>

#include "api/bench/plot.h"
#include "api/card_json.h"

namespace holdfast {
namespace {

std::string Print(const char* format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof(text), format, args);
  va_end(args);
  return text;
}

// " (low-high)"; one context has no interval.
std::string Between(const Interval& i, double factor, const char* format, int contexts) {
  if (contexts < 2) return " (-)";
  return " (" + Print(format, factor * i.low) + "-" + Print(format, factor * i.high) + ")";
}

const Summary* Find(const std::vector<Summary>& all, const std::string& edit,
                    const std::string& method) {
  for (const Summary& s : all) {
    if (s.edit == edit && s.method == method) return &s;
  }
  return nullptr;
}

constexpr const char* kIntro = R"(# What reuse costs in quality

Made by `quality_bench` (tests/bench/quality) from seeded contexts; nothing here is edited by hand.
KL is KL(full prefill || method) in nats per token over the whole vocabulary, on the tokens of full
prefill's own greedy answer (at most 60), averaged per context and then over contexts, with a 95 %
interval by bootstrap over contexts. Top-1: tokens with the same likeliest continuation. Recomputed:
share of the reusable tokens that is computed after all. Rows: rows computed, the probe included,
against full prefill, both counted behind the exact prefix. Same answer: contexts without any
divergence in top-1.

Contexts are agent sessions in the model's own chat template: a system message, a task, tool calls
with outputs of 70-600 tokens, an answer, a new question. A1: an early tool output and its call
deleted; A2: one replaced; A3: one inserted near the front; A4: first and last swapped; A5: every
other of many deleted. B256, B512, B1024: text in chunks of that many tokens, each computed alone
behind the role's real beginning and a fixed text (stitcher/isolated.h), put together.
Methods: rot: runs only re-positioned; link-k: the first k tokens of each run recomputed; win20: 20 %
of the tokens in windows of 32 chosen by the question's attention; rand20: as many at random.
Controls and noise: no rotation: queries not turned; prefix only: everything behind the exact prefix
computed (must be 0); translated: all computed, for positions 77 later, read by turned queries; f32
KV: all computed with F32 instead of F16 KV.

**Reading it.** No such set is a user's workload: `holdfast calibrate --text` measures on the user's
model and text, and `verify` mode on the user's traffic. Where a table has few contexts its
intervals say so.

![KL against share recomputed](quality.svg)
)";

void Table(const std::vector<Summary>& all, std::string* out) {
  *out += "| edit | method | n | KL mean (95 %) | median | largest token | top-1 (95 %) | same answer "
          "| recomputed | rows |\n|---|---|---|---|---|---|---|---|---|---|\n";
  for (const Summary& s : all) {
    *out += Print("| %s | %s | %d | %.5f%s | %.5f | %.3f | %.1f %%%s | %.0f %% | %.1f %% | "
                  "%.1f %% |\n",
                  s.edit.c_str(), s.method.c_str(), s.contexts, s.kl.mean,
                  Between(s.kl, 1, "%.5f", s.contexts).c_str(), s.median_kl, s.largest_kl,
                  100 * s.same_top.mean, Between(s.same_top, 100, "%.1f", s.contexts).c_str(),
                  100 * s.same_answer, 100 * s.recomputed, 100 * s.rows);
  }
}

// In order of edits as declared, methods as measured.
std::vector<Summary> Ordered(const std::vector<Trial>& trials) {
  const auto all = Summarise(trials);
  std::vector<Summary> out;
  for (const ContextEdit edit : kContextEdits) {
    for (const Summary& s : all) {
      if (s.edit == ContextEditName(edit)) out.push_back(s);
    }
  }
  return out;
}

// All in-context edits, or chunks of 512, as one row per method.
std::vector<Summary> Pooled(const std::vector<Trial>& trials, CardKind kind,
                            const std::string& label) {
  std::vector<Trial> some;
  for (const Trial& t : trials) {
    if (t.kind != kind || (kind == CardKind::kIsolated && t.edit != "B512")) continue;
    some.push_back(t);
    some.back().edit = label;
  }
  return Summarise(some);
}

void Target(const std::string& what, const std::string& target, const Summary* s,
            const std::string& measured, std::string* out) {
  *out += "| " + what + " | " + target + " | " + (s == nullptr ? "not measured" : measured) + " |\n";
}

void Targets(const MeasuredModel& m, std::string* out) {
  const auto in_context = Pooled(m.records.trials, CardKind::kInContext, "A");
  const auto chunks = Pooled(m.records.trials, CardKind::kIsolated, "B512");
  const bool is_large = m.records.name.find("1.5b") != std::string::npos;
  const bool has_target = is_large || m.records.name.find("0.5b") != std::string::npos;
  *out += "| figure | target | measured |\n|---|---|---|\n";
  const Summary* link = Find(in_context, "A", "link128");
  const auto kl = [](const Summary* s) {
    return s == nullptr ? std::string()
                        : Print("median %.5f, mean %.5f%s, n = %d", s->median_kl, s->kl.mean,
                                Between(s->kl, 1, "%.5f", s->contexts).c_str(), s->contexts);
  };
  const auto top = [](const Summary* s) {
    return s == nullptr ? std::string()
                        : Print("%.2f %%%s", 100 * s->same_top.mean,
                                Between(s->same_top, 100, "%.2f", s->contexts).c_str());
  };
  Target("in-context edits, link128: median KL",
         !has_target ? "-" : is_large ? "<= 0.003" : "<= 0.006", link, kl(link), out);
  Target("the same: top-1", has_target ? ">= 98 %" : "-", link, top(link), out);
  const Summary* win = Find(chunks, "B512", "link32+win20");
  Target("isolated chunks of 512, link32 + win20: mean KL",
         !has_target ? "-" : is_large ? "<= 0.001" : "<= 0.004", win, kl(win), out);
  Target("the same: top-1", !has_target ? "-" : is_large ? ">= 99 %" : ">= 98 %", win, top(win), out);
  const Summary* noise = Find(in_context, "A", "f32 KV");
  const Summary* moved = Find(in_context, "A", "translated");
  if (noise != nullptr && moved != nullptr) {
    Target("E5: mean KL of translated against f32 KV", "<= 2", moved,
           Print("%.6f / %.6f = %.2f, n = %d", moved->kl.mean, noise->kl.mean,
                 moved->kl.mean / noise->kl.mean, moved->contexts), out);
  }
  for (const double max_kl : {0.002, 0.005, 0.01, 0.02, 0.05}) {
    const ContractCheck c = CheckContract(m.records.trials, max_kl);
    if (c.served == 0) {
      *out += Print("| max_kl %.3f on contexts that the card has not seen | >= 95 %% stay under | "
                    "none of %d served: too few contexts, or no setting is good enough |\n",
                    max_kl, c.contexts);
      continue;
    }
    *out += Print("| max_kl %.3f on contexts that the card has not seen | >= 95 %% stay under | "
                  "%d of %d served (%.1f %%), of %d asked; rows %.0f %% |\n",
                  max_kl, c.kept, c.served, 100.0 * c.kept / c.served, c.contexts, 100 * c.rows);
  }
}

void Tasks(const std::vector<TaskResult>& tasks, std::string* out) {
  struct Sum {
    int n = 0, passed = 0;
    double score = 0, where_full_passes = 0;
  };
  std::vector<std::string> methods, rows;
  std::map<std::string, Sum> sums;
  for (const TaskResult& t : tasks) {
    const std::string row = t.category + " | " + t.edit;
    if (std::find(methods.begin(), methods.end(), t.method) == methods.end()) {
      methods.push_back(t.method);
    }
    if (std::find(rows.begin(), rows.end(), row) == rows.end()) rows.push_back(row);
    Sum& s = sums[row + t.method];
    ++s.n;
    s.score += t.score;
    s.passed += t.full_score == 1;
    s.where_full_passes += t.full_score == 1 ? t.score : 0;
  }
  if (rows.empty()) return;
  *out += "\nTasks: mean score over all instances, and in brackets over those alone that full "
          "prefill passes (their number in the last column).\n\n| category | context |";
  for (const auto& m : methods) *out += " " + m + " |";
  *out += " n, passed by full |\n|---|---|---|";
  for (size_t i = 0; i < methods.size(); ++i) *out += "---|";
  *out += "\n";
  for (const std::string& row : rows) {
    *out += "| " + row + " |";
    for (const std::string& m : methods) {
      const Sum& s = sums[row + m];
      *out += s.n == 0        ? " - |"
              : s.passed == 0 ? Print(" %.2f (-) |", s.score / s.n)
                              : Print(" %.2f (%.2f) |", s.score / s.n,
                                      s.where_full_passes / s.passed);
    }
    const Sum& full = sums[row + "full"];
    *out += Print(" %d, %d |\n", full.n, full.passed);
  }
}

// E7: KL against the share recomputed, one chart per kind of edit.
std::vector<Chart> Charts(const std::vector<MeasuredModel>& models) {
  std::vector<Chart> charts;
  for (const MeasuredModel& m : models) {
    for (const CardKind kind : {CardKind::kInContext, CardKind::kIsolated}) {
      const bool is_isolated = kind == CardKind::kIsolated;
      const auto pooled = Pooled(m.records.trials, kind, "x");
      if (pooled.empty()) continue;
      Chart chart;
      chart.title = m.records.name + (is_isolated ? ": isolated chunks of 512, n = "
                                                  : ": in-context edits A1-A5, n = ") +
                    std::to_string(pooled[0].contexts);
      chart.x_label = "share of the reusable tokens recomputed, %";
      chart.y_label = "mean KL, nats per token";
      const std::pair<const char*, std::vector<const char*>> lines[] = {
          {"rot, link 16-128", {"rot", "link16", "link32", "link64", "link128", "prefix only"}},
          {"rot, windows 20 %", {"rot", "win20"}},
          {"link32, + windows 20, 40 %", {"rot", "link32", "link32+win20", "link32+win40"}},
          {"link128, + windows 20 %", {"link128", "link128+win20"}},
          {"random windows 20 %", {"rand20"}}};
      for (const auto& [label, methods] : lines) {
        ChartSeries series{label, methods.size() > 1 ? ChartSeries::Style::kLine
                                                     : ChartSeries::Style::kPoints, {}};
        for (const char* method : methods) {
          const Summary* s = Find(pooled, "x", method);
          if (s != nullptr) series.points.push_back({100 * s->recomputed, s->kl.mean});
        }
        chart.series.push_back(std::move(series));
      }
      charts.push_back(std::move(chart));
    }
  }
  return charts;
}

Status WriteFile(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << text << std::flush;
  return out ? Status() : Status::Io("cannot write " + path);
}

// The trials of one context: same edit and seed.
using ByContext = std::map<std::pair<std::string, uint64_t>, std::vector<const Trial*>>;

}  // namespace

ContractCheck CheckContract(const std::vector<Trial>& trials, double max_kl) {
  ContractCheck check;
  check.max_kl = max_kl;
  for (const uint64_t odd : {0, 1}) {
    std::vector<Trial> known;
    ByContext unseen;
    for (const Trial& t : trials) {
      if (t.how != ReuseHow::kReuse) continue;
      if (t.seed % 2 == odd) {
        known.push_back(t);
      } else {
        unseen[{t.edit, t.seed}].push_back(&t);
      }
    }
    const ModelCard card = MakeCard(Digest{}, "", "", known);
    for (const auto& [context, some] : unseen) {
      ++check.contexts;
      const Trial& any = *some[0];
      CardChoice choice;
      choice.kind = any.kind;
      choice.tokens = any.min_tokens;
      choice.runs = any.runs;
      choice.shift = any.max_shift;
      choice.context = any.context;
      const auto setting = CheapestUnder(card, choice, max_kl);
      if (!setting) continue;
      for (const Trial* t : some) {
        if (t->setting != *setting) continue;
        ++check.served;
        check.kept += t->kl <= max_kl;
        check.rows += t->rows;
        break;
      }
    }
  }
  if (check.served > 0) check.rows /= check.served;
  return check;
}

Status WriteReport(const std::string& dir, const std::string& source,
                   const std::vector<MeasuredModel>& models) {
  std::string text = kIntro;
  text += source.empty() ? "\nThe text is made up: logs, tables, JSON, code, listings, prose.\n"
                         : "\nThe text: stretches of files under " + source + ".\n";
  for (const MeasuredModel& m : models) {
    text += "\n## " + m.records.name + "\n\n";
    Targets(m, &text);
    text += "\n";
    Table(Pooled(m.records.trials, CardKind::kInContext, "A1-A5"), &text);
    text += "\n";
    Table(Ordered(m.records.trials), &text);
    Tasks(m.records.tasks, &text);
    std::error_code ignored;
    std::filesystem::create_directories(dir + "/cards", ignored);
    if (m.card.cells.empty()) continue;
    HOLDFAST_RETURN_IF_ERROR(WriteFile(dir + "/cards/" + m.records.name + ".json",
                                       DumpJson(CardJson(m.card)) + "\n"));
  }
  HOLDFAST_RETURN_IF_ERROR(WriteFile(dir + "/quality.svg", PlotSvg(Charts(models))));
  return WriteFile(dir + "/QUALITY.md", text);
}

}  // namespace holdfast
