// What a Model holds; for model.cc and forward.cc alone.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/model/model.h"
#include "engine/model/weights.h"

namespace holdfast {

struct Model::Impl {
  Backend* backend = nullptr;  // borrowed; outlives the model
  ModelConfig config;
  std::vector<double> freq_scale;  // RopeTable's
  std::vector<LayerGroup> groups;
  std::vector<LayerPlace> places;  // [layers]
  std::unique_ptr<Tokenizer> tokenizer;
  std::string chat_template;
  ModelWeights weights;
  Digest fingerprint;

  void PlaceLayers(KvType kv_type);  // fills groups and places
  RopeTable MakeRope(size_t group) const;
  // Over everything that decides what KV holds; `operations` covers how it is computed.
  Digest Fingerprint(const Digest& operations) const;
};

}  // namespace holdfast
