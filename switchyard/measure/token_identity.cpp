#include "switchyard/measure/token_identity.hpp"

#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/core/rng.hpp"
#include "switchyard/measure/specialization.hpp"

namespace switchyard {
namespace {

constexpr double kNoTokenRoom = 1e-9;

at::Tensor host_labels(const at::Tensor& labels_T, const char* name, int64_t num_tokens) {
  SWITCHYARD_CHECK(labels_T.defined() && labels_T.dim() == 1 && labels_T.scalar_type() == at::kLong &&
                       labels_T.size(0) == num_tokens,
                   ShapeError, "token identity: ", name, " must be an int64 tensor of the routing's ", num_tokens,
                   " tokens");
  return labels_T.to(at::kCPU).contiguous();
}

// Rows that sum to 1; a row without slots becomes the sum of all rows.
Matrix<double> expert_given_token(const Matrix<double>& slots_VE) {
  std::vector<double> total_E(static_cast<size_t>(slots_VE.columns()));
  double total = 0.0;
  for (int64_t v = 0; v < slots_VE.rows(); ++v) {
    for (int64_t e = 0; e < slots_VE.columns(); ++e) {
      total_E[static_cast<size_t>(e)] += slots_VE(v, e);
      total += slots_VE(v, e);
    }
  }
  Matrix<double> share_VE(slots_VE.rows(), slots_VE.columns());
  for (int64_t v = 0; v < slots_VE.rows(); ++v) {
    double sum = 0.0;
    for (const double slots : slots_VE.row(v)) sum += slots;
    for (int64_t e = 0; e < slots_VE.columns(); ++e) {
      if (sum > 0.0) share_VE(v, e) = slots_VE(v, e) / sum;
      if (sum <= 0.0 && total > 0.0) share_VE(v, e) = total_E[static_cast<size_t>(e)] / total;
    }
  }
  return share_VE;
}

Matrix<double> apply_across(const std::array<TokenTable, 2>& halves, const std::array<Matrix<double>, 2>& slots_VE) {
  Matrix<double> weight_NE(halves[0].tokens_NV.rows(), slots_VE[0].columns());
  for (size_t half = 0; half < 2; ++half) {
    const Matrix<double> share_VE = expert_given_token(slots_VE[1 - half]);
    const Matrix<int64_t>& tokens_NV = halves[half].tokens_NV;
    for (int64_t d = 0; d < tokens_NV.rows(); ++d) {
      for (int64_t v = 0; v < tokens_NV.columns(); ++v) {
        if (tokens_NV(d, v) == 0) continue;
        const double tokens = static_cast<double>(tokens_NV(d, v));
        for (int64_t e = 0; e < share_VE.columns(); ++e) weight_NE(d, e) += tokens * share_VE(v, e);
      }
    }
  }
  return joint_shares(weight_NE);
}

}  // namespace

TokenIdentityTally::TokenIdentityTally(int64_t num_domains, int64_t vocab_size, int64_t num_experts) {
  SWITCHYARD_CHECK(num_domains >= 1 && vocab_size >= 1 && num_experts >= 1, ShapeError, "token identity of ",
                   num_domains, " domains, ", vocab_size, " token ids, ", num_experts, " experts; expected at least 1");
  for (TokenTable& half : halves_) {
    half.slots_VE = Matrix<int64_t>(vocab_size, num_experts);
    half.tokens_NV = Matrix<int64_t>(num_domains, vocab_size);
  }
}

void TokenIdentityTally::add(const Routing& routing, const at::Tensor& token_T, const at::Tensor& domain_T,
                             const at::Tensor& document_T) {
  const int64_t vocab_size = halves_[0].slots_VE.rows();
  const int64_t num_domains = halves_[0].tokens_NV.rows();
  SWITCHYARD_CHECK(routing.num_experts == halves_[0].slots_VE.columns(), ShapeError, "token identity: a routing over ",
                   routing.num_experts, " experts; expected ", halves_[0].slots_VE.columns());
  const at::Tensor host_token_T = host_labels(token_T, "token_T", routing.num_tokens);
  const at::Tensor host_domain_T = host_labels(domain_T, "domain_T", routing.num_tokens);
  const at::Tensor host_document_T = host_labels(document_T, "document_T", routing.num_tokens);
  const int64_t* ids = host_token_T.const_data_ptr<int64_t>();
  const int64_t* domains = host_domain_T.const_data_ptr<int64_t>();
  const int64_t* documents = host_document_T.const_data_ptr<int64_t>();
  std::vector<uint8_t> half_T(static_cast<size_t>(routing.num_tokens));
  for (int64_t t = 0; t < routing.num_tokens; ++t) {
    SWITCHYARD_CHECK(domains[t] >= -1 && domains[t] < num_domains && (domains[t] < 0) == (documents[t] < 0), ShapeError,
                     "token identity: token ", t, " has domain ", domains[t], " of ", num_domains, " and document ",
                     documents[t]);
    if (domains[t] < 0) continue;
    SWITCHYARD_CHECK(ids[t] >= 0 && ids[t] < vocab_size, ShapeError, "token identity: token ", t, " has the id ", ids[t],
                     "; expected 0 to ", vocab_size - 1);
    half_T[static_cast<size_t>(t)] = static_cast<uint8_t>(hash_words({static_cast<uint64_t>(documents[t])}) & 1u);
    ++halves_[half_T[static_cast<size_t>(t)]].tokens_NV(domains[t], ids[t]);
  }
  const at::Tensor token_A = routing.token_A.to(at::kCPU).contiguous();
  const at::Tensor expert_A = routing.expert_A.to(at::kCPU).contiguous();
  const int64_t* tokens = token_A.const_data_ptr<int64_t>();
  const int64_t* experts = expert_A.const_data_ptr<int64_t>();
  for (int64_t slot = 0; slot < token_A.numel(); ++slot) {
    SWITCHYARD_CHECK(tokens[slot] >= 0 && tokens[slot] < routing.num_tokens && domains[tokens[slot]] >= 0 &&
                         experts[slot] >= 0 && experts[slot] < routing.num_experts,
                     ShapeError, "token identity: slot ", slot, " is token ", tokens[slot], ", expert ", experts[slot],
                     "; expected a valid token that is not padding");
    ++halves_[half_T[static_cast<size_t>(tokens[slot])]].slots_VE(ids[tokens[slot]], experts[slot]);
  }
}

Matrix<double> token_identity_shares(const std::array<TokenTable, 2>& halves) {
  std::array<Matrix<double>, 2> slots_VE;
  for (size_t half = 0; half < 2; ++half) {
    const Matrix<int64_t>& source_VE = halves[half].slots_VE;
    slots_VE[half] = Matrix<double>(source_VE.rows(), source_VE.columns());
    for (int64_t v = 0; v < source_VE.rows(); ++v) {
      for (int64_t e = 0; e < source_VE.columns(); ++e) slots_VE[half](v, e) = static_cast<double>(source_VE(v, e));
    }
  }
  return apply_across(halves, slots_VE);
}

Matrix<double> token_identity_shares(const std::array<TokenTable, 2>& halves, const Matrix<double>& reference_NE) {
  std::array<Matrix<double>, 2> slots_VE;
  for (size_t half = 0; half < 2; ++half) {
    const Matrix<int64_t>& tokens_NV = halves[half].tokens_NV;
    SWITCHYARD_CHECK(reference_NE.rows() == tokens_NV.rows(), ShapeError, "token identity: the reference has ",
                     reference_NE.rows(), " rows; expected one for each of ", tokens_NV.rows(), " domains");
    slots_VE[half] = Matrix<double>(tokens_NV.columns(), reference_NE.columns());
    for (int64_t d = 0; d < tokens_NV.rows(); ++d) {
      for (int64_t v = 0; v < tokens_NV.columns(); ++v) {
        if (tokens_NV(d, v) == 0) continue;
        const double tokens = static_cast<double>(tokens_NV(d, v));
        for (int64_t e = 0; e < reference_NE.columns(); ++e) slots_VE[half](v, e) += tokens * reference_NE(d, e);
      }
    }
  }
  return apply_across(halves, slots_VE);
}

double beyond_token_score(double information, double token_information, double reference_information,
                          double reference_token_information) {
  const double room = reference_information - reference_token_information;
  return room > kNoTokenRoom ? (information - token_information) / room : 0.0;
}

}  // namespace switchyard
