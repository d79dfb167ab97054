#pragma once
// The run log, log.jsonl: one JSON object a line, each with "kind". This file is its schema (docs/file-formats.md explains it);
// train writes it, testbed and report read it, on any machine. Integers are exact; doubles read back to the same bits; a value
// that does not exist is null. JSON has no NaN and no infinity: a number that is not finite is written as null and reads back
// as NaN (as nothing, where the field is optional). N domains, E experts. What each number means: docs/metrics.md.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "switchyard/core/append_file.hpp"
#include "switchyard/measure/load.hpp"

namespace switchyard {

inline constexpr int64_t kRunLogSchema = 1;

/// One MoE layer over the whole held-out set.
struct LayerEvaluation {
  int64_t layer = 0;                        // index among MoE layers
  LoadMetrics micro_batch;                  // mean over held-out micro-batches of one domain
  LoadMetrics global;                       // from the counts summed over all of them
  std::vector<std::vector<int64_t>> counts_NE;  // requested slots, domain x expert
  double specialization = 0.0;              // S, corrected by the null; 1 is attainable (docs/metrics.md)
  double specialization_first_choice = 0.0; // S of the first choice alone
  double information = 0.0;                 // I(D; E) in nats, domains weighing equally
  double information_null = 0.0;            // I0: mean over document permutations
  double purity = 0.0;                      // sum_e max_d J_de
  double purity_null = 0.0;
  double purity_ceiling = 0.0;
  double agreement = 0.0;                   // with the best prescribed assignment
  std::vector<std::vector<double>> jensen_shannon_NN;  // pairwise divergence, nats; NaN beside a domain without slots
  double margin = 0.0;                      // mean over tokens of the K-th minus the (K+1)-th probability; 0 without scores
  double information_ceiling = 0.0;         // Imax, what S divides by after taking off the null
  double information_null_deviation = 0.0;  // over the permutations
  double agreement_floor = 0.0;             // of a routing that does not know the domain
  double information_first_choice = 0.0;    // of first choices, its null and its ceiling
  double information_first_choice_null = 0.0;
  double information_first_choice_ceiling = 0.0;

  bool operator==(const LayerEvaluation&) const = default;
};

struct DomainEvaluation {
  std::string name;
  double loss = 0.0;        // nats per scored token; NaN without one
  double perplexity = 0.0;  // exp(loss)
  int64_t tokens = 0;       // scored

  bool operator==(const DomainEvaluation&) const = default;
};

/// Held-out sequences below which the error of an evaluation is near the difference between seeds.
inline constexpr int64_t kEnoughSequences = 512;

/// "kind": "evaluation".
struct EvaluationRecord {
  int64_t step = 0;          // optimizer steps done before it
  int64_t sequences = 0;
  int64_t tokens = 0;        // scored
  int64_t permutations = 0;  // behind the nulls
  double loss = 0.0;         // nats per scored token, domains weighing by their tokens
  double perplexity = 0.0;
  std::vector<DomainEvaluation> domains;
  std::vector<LayerEvaluation> layers;
  // Means over the MoE layers.
  LoadMetrics micro_batch;
  LoadMetrics global;
  double specialization = 0.0;
  double purity = 0.0;
  double agreement = 0.0;
  double margin = 0.0;

  bool operator==(const EvaluationRecord&) const = default;
};

/// "kind": "start". One per process that worked on the run; a resumed run has several.
struct StartRecord {
  int64_t schema = kRunLogSchema;
  std::string name;           // of the run
  std::string arm;            // of the testbed; the run's name outside one
  int64_t seed = 0;
  int64_t step = 0;           // first step to be done
  int64_t total_steps = 0;
  std::string scope;          // balancing scope, its config spelling; "none" without balancing
  std::string method;
  double coefficient = 0.0;
  std::string layers;         // how the losses of the MoE layers are put together: "mean" or "sum"; empty in older logs
  std::string router;
  std::vector<std::string> domains;
  int64_t num_layers = 0;     // MoE layers
  int64_t num_experts = 0;
  int64_t num_chosen = 0;
  int64_t parameters = 0;
  std::string compute_type;
  std::string data_hash;      // SHA-256 of the data set's manifest
  std::string version, commit, torch_version, processor, time_utc, command;

  bool operator==(const StartRecord&) const = default;
};

/// "kind": "step". Scope: the training tokens of this optimizer step.
struct BalanceTermRecord {
  std::string method;              // lbl, variance, ...; also orthogonality and simbal
  std::string scope;               // "none" for those that have none
  double coefficient = 0.0;        // lambda
  std::optional<double> value;     // raw, mean over MoE layers; null where there is none yet

  bool operator==(const BalanceTermRecord&) const = default;
};

struct StepRecord {
  int64_t step = 0;           // steps done, so the first is 1
  int64_t tokens = 0;         // valid tokens since step 0
  double loss = 0.0;          // cross-entropy, nats per scored token; balancing excluded
  double balance_loss = 0.0;  // weighted, as added
  std::vector<double> lbl_layers;     // raw LBL per MoE layer of the first lbl entry, 1 is uniform; empty where it has none
  std::optional<double> lbl;          // their mean
  std::optional<double> z_loss;       // mean over layers, raw
  std::vector<BalanceTermRecord> balance_terms;  // every loss of the step but the z-loss; absent in the earliest logs
  double max_vio_step = 0.0;          // mean over layers, counts of the whole step
  double max_vio_micro_batch = 0.0;   // mean over layers and micro-batches
  double learning_rate = 0.0;
  double gradient_norm = 0.0;         // before clipping
  double seconds = 0.0;               // wall time of the step
  double tokens_per_second = 0.0;

  bool operator==(const StepRecord&) const = default;
};

/// "kind": "end".
struct EndRecord {
  int64_t step = 0;
  std::string reason;         // "done" or "interrupted"
  double seconds = 0.0;       // wall time of this process
  double train_seconds = 0.0; // of it, in training steps

  bool operator==(const EndRecord&) const = default;
};

/// "kind": "notice": something a reader of the numbers must know, such as "step 1 has no balancing loss".
struct NoticeRecord {
  int64_t step = 0;
  std::string text;

  bool operator==(const NoticeRecord&) const = default;
};

/// Appends records, a line at a time: a line that could not be written whole is not there. On opening an existing log, what lies
/// after `keep_until_step` is cut off, so that a resumed run has each step once: steps, evaluations, notices and ends of later steps,
/// and starts whose first step is later than the next one. So are lines that cannot be read, where nothing that is kept comes after
/// them. Of a step that is there more than once the last line stays. Strings that are not UTF-8 get replacement characters.
class RunLogWriter {
 public:
  /// The folder must exist.
  /// @throws DataError when the file cannot be written, or holds what read_run_log() would refuse, save at its end
  RunLogWriter(const std::filesystem::path& path, int64_t keep_until_step);
  /// What the log that was there lacked or had too much, in plain words: lines that could not be read, steps up to
  /// `keep_until_step` that are missing, steps that were there more than once. Not a torn last line.
  [[nodiscard]] const std::vector<std::string>& mended() const { return mended_; }
  /// @throws DataError when the line cannot be written (disk full)
  void add(const StartRecord& record);
  void add(const StepRecord& record);
  void add(const EvaluationRecord& record);
  void add(const NoticeRecord& record);
  void add(const EndRecord& record);
  /// Returns when all lines are on the disk. @throws DataError
  void sync() { file_.sync(); }
  /// @throws DataError where the log was moved or removed: nobody would find its lines
  void check_in_place() const;

 private:
  void add_line(const std::string& line);
  std::filesystem::path path_;
  std::vector<std::string> mended_;
  AppendFile file_;
};

struct RunLog {
  StartRecord start;                 // the last one
  std::vector<StepRecord> steps;
  std::vector<EvaluationRecord> evaluations;
  std::vector<NoticeRecord> notices;
  std::optional<EndRecord> end;      // of the process of the last start; none while it runs or when it was killed
};

/// Reads what RunLogWriter wrote. A torn last line is left out; unknown keys and kinds are ignored.
/// @throws DataError naming file and line: no start record, another schema than this version's, a line that is not JSON, a
///         missing key, a value of another type
[[nodiscard]] RunLog read_run_log(const std::filesystem::path& path);

/// The same; none where there is no file, or no start record yet in it: the process was killed before.
[[nodiscard]] std::optional<RunLog> find_run_log(const std::filesystem::path& path);

/// The last start record; none where there is no file, or no start in it. Lines that are not JSON are passed over.
[[nodiscard]] std::optional<StartRecord> find_start(const std::filesystem::path& path);

/// One record as its line of the log, without the newline.
[[nodiscard]] std::string to_json_line(const StartRecord& record);
[[nodiscard]] std::string to_json_line(const StepRecord& record);
[[nodiscard]] std::string to_json_line(const EvaluationRecord& record);
[[nodiscard]] std::string to_json_line(const NoticeRecord& record);
[[nodiscard]] std::string to_json_line(const EndRecord& record);

}  // namespace switchyard
