#include "sessions/basis.h"

#include <map>
#include <set>
#include <sstream>

namespace holdfast {

Digest Basis::digest() const {
  return Hasher("basis-1").Add(weights).Add(fp).Add(numerics).Text(operations).Add(chat_template)
      .Add(tokenizer).Text(kv).Finish();
}

Basis BasisOf(const Engine& engine, const ChatTemplate& chat_template) {
  Basis basis;
  basis.weights = engine.model().weights_digest();
  basis.fp = engine.model().fingerprint();
  basis.numerics = engine.numerics().all;
  for (const NumericsDigest::Entry& e : engine.numerics().ops) {
    basis.operations += e.op + " " + e.digest.Hex() + "\n";
  }
  basis.chat_template = chat_template.digest();
  basis.tokenizer = engine.tokenizer().digest();
  basis.kv = KvTypeName(engine.model().groups().front().k_type);
  return basis;
}

std::vector<std::string> ChangesBetween(const Basis& recorded, const Basis& now) {
  std::vector<std::string> names;
  if (recorded.weights != now.weights) names.push_back("weights");
  // Operations that this model does not use may come and go: its fingerprint holds the others.
  if (recorded.fp != now.fp && recorded.numerics != now.numerics) names.push_back("numerics");
  if (recorded.kv != now.kv) names.push_back("kv_type");
  if (recorded.tokenizer != now.tokenizer) names.push_back("tokenizer");
  if (names.empty() && recorded.fp != now.fp) names.push_back("model");
  if (recorded.chat_template != now.chat_template) names.push_back("template");
  return names;
}

std::string ChangedOperations(const Basis& recorded, const Basis& now) {
  std::map<std::string, std::set<std::string>> digests;
  for (const Basis* b : {&recorded, &now}) {
    std::istringstream lines(b->operations);
    for (std::string name, digest; lines >> name >> digest;) {
      digests[name].insert((b == &recorded ? "a" : "b") + digest);
    }
  }
  std::string out;
  for (const auto& [name, seen] : digests) {
    const bool same = seen.size() == 2 && seen.begin()->substr(1) == seen.rbegin()->substr(1);
    if (!same) out += (out.empty() ? "" : ", ") + name;
  }
  return out;
}

}  // namespace holdfast
