#pragma once
// What few held-out documents do to specialisation S: its chance level exchanges the domain labels of whole documents
// (docs/metrics.md, information_null), so of n documents in each of several domains about one in n keeps its domain by chance.

#include <cstdint>
#include <string>
#include <vector>

#include "switchyard/data/manifest.hpp"

namespace switchyard {

/// Of each domain; below it a reader of S should know.
inline constexpr int64_t kAdvisedDocuments = 10;

struct DomainDocuments {
  std::string domain;
  int64_t documents = 0;
};

/// All that are held out.
[[nodiscard]] std::vector<DomainDocuments> heldout_documents(const Manifest& manifest);

/// By about what share of itself S comes out too low: the mean of 1/n over the domains. Held against simulated routers, whose experts
/// are drawn to domains and to single documents: within .06 at 8 domains, 16 experts, K = 2 from n = 1 to 50, also where one domain
/// alone has few; up to 1.8 times as much at 16 domains, most where one domain alone specialises (n = 9: .21 to .22 for .12). A
/// perfect router measures 1 from n = 2 on.
[[nodiscard]] double specialization_shortfall(const std::vector<DomainDocuments>& domains);

enum class DocumentsOf { Dataset, Evaluation };

/// What a reader of S must know; empty where each of several domains has documents enough, or where none is given.
[[nodiscard]] std::string few_documents_text(const std::vector<DomainDocuments>& domains, DocumentsOf of);

}  // namespace switchyard
