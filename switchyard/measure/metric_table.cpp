#include "switchyard/measure/metric_table.hpp"

namespace switchyard {

const std::vector<MetricEntry>& metric_table() {
  static const std::vector<MetricEntry> kTable = {
      {"loss", "cross-entropy of the next token", "[0, inf)", "nats per scored token", "held-out set, or one of its domains"},
      {"perplexity", "exp(loss)", "[1, inf)", "-", "held-out set, or one of its domains"},
      {"max_vio", "load of the busiest expert over the even load, minus 1", "[0, E/K - 1]", "-",
       "micro-batch (mean of each one's) and global"},
      {"utilization", "sum over experts of min(f_e, 1/E): share of the even load that is used", "[K/E, 1]", "-",
       "micro-batch (mean of each one's) and global"},
      {"dead_experts", "experts without a token", "[0, E - K]", "experts", "micro-batch (mean of each one's) and global"},
      {"entropy", "entropy of the expert fractions", "[ln K, ln E]", "nats", "micro-batch (mean of each one's) and global"},
      {"variation", "coefficient of variation of the expert counts", "[0, sqrt(E/K - 1)]", "-",
       "micro-batch (mean of each one's) and global"},
      {"counts", "requested slots of each domain and expert", "[0, inf)", "slots", "held-out set"},
      {"information", "mutual information I(D; E) of domain and expert, domains weighing equally",
       "[0, information_ceiling]", "nats", "held-out set"},
      {"information_null", "the same under random domain labels of documents: mean (and deviation) over permutations",
       "[0, information_ceiling]", "nats", "held-out set"},
      {"information_ceiling", "what the reference router attains: min(ln N, ln(E/K)) where N, E, K divide",
       "[0, min(ln N, ln(E/K))]", "nats", "shape of the model"},
      {"specialization", "S: share of the attainable information, above the null", "about 0 to 1", "-", "held-out set"},
      {"specialization_first_choice", "S of each token's first choice alone, over min(ln N, ln E)", "about 0 to 1", "-",
       "held-out set"},
      {"purity", "share of the most frequent domain of each expert, with null and ceiling", "[1/N, 1]", "-", "held-out set"},
      {"agreement", "share of slots inside the best prescribed assignment of experts to domains", "[m/E, 1]", "-",
       "held-out set"},
      {"jensen_shannon", "divergence of the expert distributions of each two domains", "[0, ln 2]", "nats", "held-out set"},
      {"margin", "K-th minus (K+1)-th largest router probability, mean over tokens", "[0, 1]", "probability",
       "held-out set"},
      {"lbl", "load-balancing loss E sum_e f_e P_e, raw: 1 is uniform", "(0, E/K]", "-",
       "training step, at the scope of the first lbl entry"},
      {"z_loss", "mean squared log-sum-exp of the router logits, raw", "[0, inf)", "nats^2", "training step"},
      {"max_vio_step", "max_vio of the counts of the whole optimizer step, mean over layers", "[0, E/K - 1]", "-",
       "training step"},
      {"max_vio_micro_batch", "max_vio of each training micro-batch, mean over layers and micro-batches", "[0, E/K - 1]", "-",
       "training micro-batches"},
      {"gradient_norm", "Euclidean norm of all gradients before clipping", "[0, inf)", "-", "training step"},
  };
  return kTable;
}

}  // namespace switchyard
