#include "switchyard/data/few_documents.hpp"

#include <algorithm>
#include <cmath>

#include "switchyard/core/error.hpp"

namespace switchyard {

std::vector<DomainDocuments> heldout_documents(const Manifest& manifest) {
  std::vector<DomainDocuments> domains;
  for (const DomainRecord& domain : manifest.domains) domains.push_back({domain.name, domain.heldout.documents});
  return domains;
}

double specialization_shortfall(const std::vector<DomainDocuments>& domains) {
  double sum = 0.0;
  for (const DomainDocuments& domain : domains) sum += 1.0 / static_cast<double>(std::max<int64_t>(domain.documents, 1));
  return domains.empty() ? 0.0 : sum / static_cast<double>(domains.size());
}

std::string few_documents_text(const std::vector<DomainDocuments>& domains, DocumentsOf of) {
  if (domains.empty()) return "";
  if (domains.size() == 1) {
    return join_text("'", domains.front().domain, "' is the only domain: S is 0 whatever the router does, it needs at least two");
  }
  const auto by_documents = [](const DomainDocuments& left, const DomainDocuments& right) { return left.documents < right.documents; };
  const auto [fewest, most] = std::minmax_element(domains.begin(), domains.end(), by_documents);
  const std::string has = of == DocumentsOf::Dataset ? " has " : " is evaluated on ";
  if (most->documents <= 1) {  // exchanging their labels only renames the domains
    return join_text("each domain", has, "1 held-out document: S is 0 whatever the router does; ", kAdvisedDocuments,
                     " or more of each domain are advised");
  }
  if (fewest->documents >= kAdvisedDocuments) return "";
  return join_text("domain '", fewest->domain, "'", has, fewest->documents,
                   fewest->documents == 1 ? " held-out document" : " held-out documents", "; ", kAdvisedDocuments,
                   " or more of each domain are advised: S comes out too low, by about ",
                   std::ceil(100.0 * specialization_shortfall(domains)),
                   " % of itself, and by up to twice that where there are many domains or few of them specialise");
}

}  // namespace switchyard
