#include "switchyard/data/batcher.hpp"

#include <gmock/gmock.h>

#include <cstring>
#include <map>
#include <set>

#include "switchyard/core/config.hpp"
#include "switchyard/core/error.hpp"
#include "tests/data/support.hpp"

namespace switchyard {
namespace {

using test::error_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kVocabulary = 60000;

std::vector<int64_t> numbers(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.contiguous();
  return {flat.const_data_ptr<int64_t>(), flat.const_data_ptr<int64_t>() + flat.numel()};
}

// Documents of `length` tokens (the end included) whose tokens all differ: domain d counts up from 10000 d + 10.
std::vector<std::vector<int32_t>> counting_documents(int32_t first, int count, int length) {
  std::vector<std::vector<int32_t>> documents;
  for (int d = 0; d < count; ++d) {
    documents.emplace_back();
    for (int i = 0; i + 1 < length; ++i) documents.back().push_back(first++);
  }
  return documents;
}

class BatcherTest : public ::testing::Test {
 protected:
  BatcherTest() {
    std::map<std::string, test::DomainTokens> domains;
    const std::vector<std::string> names{"ada", "bob", "cyd", "dan"};
    for (size_t d = 0; d < names.size(); ++d) {
      const auto first = static_cast<int32_t>(10000 * d + 10);
      domains[names[d]] = {counting_documents(first, 20, 7), counting_documents(first + 5000, 10, 5)};
    }
    test::make_dataset(scratch_.path() / "data", domains, kVocabulary);
    dataset_.emplace(scratch_.path() / "data");
  }

  [[nodiscard]] static BatcherConfig small_config() {
    BatcherConfig config;
    config.sequence_length = 8;
    config.sequences_per_micro_batch = 2;
    config.micro_batches = 4;
    return config;
  }

  // Steps of one window each, all of domain 1.
  [[nodiscard]] Batcher window_by_window() const {
    BatcherConfig config = small_config();
    config.domains = {"bob"};
    config.sequences_per_micro_batch = config.micro_batches = 1;
    return {*dataset_, config, 3};
  }

  test::ScratchFolder scratch_;
  std::optional<Dataset> dataset_;
};

// Which domain each micro-batch is of; -1 where it is mixed.
std::vector<int64_t> micro_batch_domains(const std::vector<Batch>& step) {
  std::vector<int64_t> domains;
  for (const Batch& batch : step) {
    const std::vector<int64_t> labels = numbers(batch.domain_T);
    const bool one = std::set<int64_t>(labels.begin(), labels.end()).size() == 1;
    domains.push_back(one ? labels[0] : -1);
  }
  return domains;
}

TEST_F(BatcherTest, TargetsAreTheNextTokens) {
  Batcher batcher(*dataset_, small_config(), 3);
  for (const Batch& batch : batcher.next_step()) {
    ASSERT_EQ(batch.ids_BS.sizes(), (std::vector<int64_t>{2, 8}));
    const std::vector<int64_t> ids = numbers(batch.ids_BS);
    const std::vector<int64_t> targets = numbers(batch.targets_BS);
    for (size_t i = 0; i < ids.size(); ++i) {
      if (i % 8 != 7) {
        EXPECT_EQ(targets[i], ids[i + 1]);
      }
    }
    EXPECT_THAT(batch.segment_tokens, ElementsAre(8, 8));
    EXPECT_EQ(batch.num_targets(), 16);
  }
}

TEST_F(BatcherTest, LabelsSayWhereTokensComeFrom) {
  Batcher batcher(*dataset_, small_config(), 3);
  for (int step = 0; step < 5; ++step) {
    for (const Batch& batch : batcher.next_step()) {
      const std::vector<int64_t> ids = numbers(batch.ids_BS);
      const std::vector<int64_t> domains = numbers(batch.domain_T);
      const std::vector<int64_t> documents = numbers(batch.document_T);
      for (size_t i = 0; i < ids.size(); ++i) {
        if (ids[i] == 2) continue;  // an end looks the same everywhere
        EXPECT_EQ(domains[i], ids[i] / 10000);
        // Per domain 20 training and 10 held-out documents; six tokens each before the end.
        EXPECT_EQ(documents[i], domains[i] * 30 + (ids[i] % 10000 - 10) / 6);
      }
    }
  }
}

TEST_F(BatcherTest, OneDomainEachOnceWhenMicroBatchesAreAsManyAsDomains) {
  Batcher batcher(*dataset_, small_config(), 3);
  std::set<std::vector<int64_t>> orders;
  for (int step = 0; step < 30; ++step) {
    std::vector<int64_t> domains = micro_batch_domains(batcher.next_step());
    orders.insert(domains);
    std::sort(domains.begin(), domains.end());
    EXPECT_THAT(domains, ElementsAre(0, 1, 2, 3));
  }
  EXPECT_GT(orders.size(), 5U);
}

TEST_F(BatcherTest, WeightsAreKeptToWithinOneEveryStepAndExactlyInTheMean) {
  BatcherConfig config = small_config();
  config.micro_batches = 5;
  config.weights = {{"ada", 4.0}, {"bob", 2.0}, {"cyd", 1.0}, {"dan", 1.0}};
  Batcher batcher(*dataset_, config, 11);
  constexpr int kSteps = 2000;
  std::vector<double> mean(4, 0.0);
  for (int step = 0; step < kSteps; ++step) {
    std::vector<int64_t> count(4, 0);
    for (const int64_t domain : micro_batch_domains(batcher.next_step())) ++count.at(static_cast<size_t>(domain));
    const std::vector<double> expected{2.5, 1.25, 0.625, 0.625};
    for (size_t d = 0; d < 4; ++d) {
      EXPECT_LT(std::abs(static_cast<double>(count[d]) - expected[d]), 1.0);
      mean[d] += static_cast<double>(count[d]) / kSteps;
    }
  }
  EXPECT_THAT(mean, ElementsAre(::testing::DoubleNear(2.5, 0.05), ::testing::DoubleNear(1.25, 0.05),
                                ::testing::DoubleNear(0.625, 0.05), ::testing::DoubleNear(0.625, 0.05)));
}

// A power of two changes no share; their sum would be infinite.
TEST_F(BatcherTest, WeightsCountByTheirSharesHoweverLarge) {
  const auto domains_of = [&](double unit) {
    BatcherConfig config = small_config();
    config.micro_batches = 5;
    config.weights = {{"ada", 1.5 * unit}, {"bob", unit}, {"cyd", unit}, {"dan", 0.5 * unit}};
    Batcher batcher(*dataset_, config, 11);
    std::vector<int64_t> domains;
    for (int step = 0; step < 20; ++step) {
      const std::vector<int64_t> some = micro_batch_domains(batcher.next_step());
      domains.insert(domains.end(), some.begin(), some.end());
    }
    return domains;
  };
  EXPECT_EQ(domains_of(std::ldexp(1.0, 1023)), domains_of(1.0));
  EXPECT_EQ(domains_of(std::ldexp(1.0, -1020)), domains_of(1.0));
}

TEST_F(BatcherTest, FewerMicroBatchesThanDomainsReachAllDomains) {
  BatcherConfig config = small_config();
  config.micro_batches = 2;
  Batcher batcher(*dataset_, config, 5);
  std::map<std::set<int64_t>, int> pairs;
  for (int step = 0; step < 300; ++step) {
    const std::vector<int64_t> domains = micro_batch_domains(batcher.next_step());
    ASSERT_NE(domains[0], domains[1]);
    ++pairs[{domains.begin(), domains.end()}];
  }
  EXPECT_EQ(pairs.size(), 6U) << "every pair of domains must be possible";
}

TEST_F(BatcherTest, MixedHoldsTheSameSequences) {
  BatcherConfig config = small_config();
  Batcher pure(*dataset_, config, 3);
  config.composition = Composition::Mixed;
  Batcher mixed(*dataset_, config, 3);
  int mixed_batches = 0;
  std::set<std::vector<int64_t>> deals;  // where the rows of a step went
  for (int step = 0; step < 20; ++step) {
    std::multiset<std::vector<int64_t>> pure_rows, mixed_rows;
    const std::vector<Batch> pure_step = pure.next_step();
    const std::vector<Batch> mixed_step = mixed.next_step();
    for (int64_t row = 0; row < 8; ++row) {
      pure_rows.insert(numbers(join_batches(pure_step).ids_BS[row]));
      mixed_rows.insert(numbers(join_batches(mixed_step).ids_BS[row]));
    }
    EXPECT_EQ(pure_rows, mixed_rows);
    const at::Tensor pure_ids = join_batches(pure_step).ids_BS;
    const at::Tensor mixed_ids = join_batches(mixed_step).ids_BS;
    std::vector<int64_t> deal;
    for (int64_t row = 0; row < 8; ++row) {
      for (int64_t place = 0; place < 8; ++place) {
        if (pure_ids[row].equal(mixed_ids[place])) deal.push_back(place);
      }
    }
    deals.insert(deal);
    for (const int64_t domain : micro_batch_domains(mixed_step)) mixed_batches += domain < 0 ? 1 : 0;
  }
  EXPECT_GT(deals.size(), 15U) << "each step deals anew";
  EXPECT_GT(mixed_batches, 40) << "of 80; a random pair is of two domains with probability 6/7";
}

TEST_F(BatcherTest, AnEpochVisitsEachWindowOnce) {
  Batcher batcher = window_by_window();
  const int64_t windows = batcher.windows_N().at(0);
  ASSERT_EQ(windows, 16);  // (140 - 8) / 8
  std::vector<std::vector<int64_t>> orders;
  for (int epoch = 0; epoch < 6; ++epoch) {
    std::set<int64_t> seen;
    orders.emplace_back();
    for (int64_t w = 0; w < windows; ++w) {
      const std::vector<Batch> step = batcher.next_step();
      for (const int64_t id : numbers(step[0].ids_BS)) {
        if (id == 2) continue;
        EXPECT_TRUE(seen.insert(id).second) << "token " << id << " twice in epoch " << epoch;
        orders.back().push_back(id);
      }
    }
  }
  for (size_t epoch = 1; epoch < orders.size(); ++epoch) EXPECT_NE(orders[epoch], orders[0]);
}

// Where a row of domain 1 begins among its training tokens, modulo 8: its documents are 6 counting tokens and an end.
int64_t grid_offset(const Batch& row) {
  const std::vector<int64_t> ids = numbers(row.ids_BS);
  const int64_t column = ids[0] == 2 ? 1 : 0;
  const int64_t number = ids[static_cast<size_t>(column)] - 10010;
  return (number / 6 * 7 + number % 6 - column) % 8;
}

TEST_F(BatcherTest, EpochsCutTheTextAtDifferentPlaces) {
  Batcher batcher = window_by_window();
  std::set<int64_t> offsets;
  for (int epoch = 0; epoch < 4; ++epoch) {
    std::set<int64_t> of_epoch;
    for (int64_t window = 0; window < batcher.windows_N().at(0); ++window) of_epoch.insert(grid_offset(batcher.next_step()[0]));
    EXPECT_EQ(of_epoch.size(), 1U) << "epoch " << epoch;
    offsets.merge(of_epoch);
  }
  EXPECT_GT(offsets.size(), 1U);
}

TEST_F(BatcherTest, ResumesToTheSameBits) {
  BatcherConfig config = small_config();
  config.composition = Composition::Mixed;
  config.weights = {{"ada", 3.0}, {"bob", 1.0}, {"cyd", 1.0}, {"dan", 0.5}};
  Batcher whole(*dataset_, config, 9);
  for (int step = 0; step < 25; ++step) {
    Batcher resumed(*dataset_, config, 9);
    resumed.restore(whole.state());
    const Batch expected = join_batches(whole.next_step());
    const Batch got = join_batches(resumed.next_step());
    EXPECT_TRUE(got.ids_BS.equal(expected.ids_BS));
    EXPECT_TRUE(got.document_T.equal(expected.document_T));
    EXPECT_EQ(resumed.state(), whole.state());
  }
  Batcher other_seed(*dataset_, config, 10);
  Batcher same_seed(*dataset_, config, 9);
  const at::Tensor first = join_batches(same_seed.next_step()).ids_BS;
  EXPECT_FALSE(join_batches(other_seed.next_step()).ids_BS.equal(first));
}

TEST_F(BatcherTest, SegmentsAreRowsOrDocuments) {
  BatcherConfig config = small_config();
  const std::vector<Batch> rows = Batcher(*dataset_, config, 3).next_step();
  for (size_t m = 0; m < rows.size(); ++m) {
    EXPECT_THAT(rows[m].segment_tokens, ElementsAre(8, 8));
    EXPECT_THAT(rows[m].segment_micro_batch, ElementsAre(m, m));
  }
  config.segments = SegmentKind::Document;
  for (const Batch& batch : Batcher(*dataset_, config, 3).next_step()) {
    const std::vector<int64_t> segments = numbers(batch.segment_T);
    const std::vector<int64_t> documents = numbers(batch.document_T);
    std::vector<int64_t> counted(batch.segment_tokens.size(), 0);
    for (size_t i = 0; i < segments.size(); ++i) {
      ++counted.at(static_cast<size_t>(segments[i]));
      const bool same_place = i > 0 && i % 8 != 0 && documents[i] == documents[i - 1];
      EXPECT_EQ(segments[i], i == 0 ? 0 : segments[i - 1] + (same_place ? 0 : 1));
    }
    EXPECT_EQ(counted, batch.segment_tokens);
    EXPECT_EQ(batch.segment_micro_batch.size(), batch.segment_tokens.size());
    EXPECT_GE(batch.num_segments(), 4) << "rows of 8 tokens hold parts of two or three documents of 7";
  }
}

TEST_F(BatcherTest, ChosenDomainsAreNumberedInTheOrderGiven) {
  BatcherConfig config = small_config();
  config.domains = {"dan", "bob"};
  config.micro_batches = 2;
  Batcher batcher(*dataset_, config, 3);
  EXPECT_THAT(batcher.domains(), ElementsAre("dan", "bob"));
  const std::vector<Batch> step = batcher.next_step();
  const Batch joined = join_batches(step);
  const std::vector<int64_t> ids = numbers(joined.ids_BS);
  const std::vector<int64_t> labels = numbers(joined.domain_T);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] != 2) {
      EXPECT_EQ(labels[i], ids[i] / 10000 == 3 ? 0 : 1);
    }
  }
}

TEST_F(BatcherTest, ConfigReadsBackAndRejects) {
  BatcherConfig config = small_config();
  config.composition = Composition::Mixed;
  config.segments = SegmentKind::Document;
  config.weights = {{"ada", 0.25}};
  BatcherConfig read;
  read_config(parse_config_text(to_toml(config), "test"), read);
  EXPECT_EQ(read, config);
  EXPECT_THAT(error_of<ConfigError>([&] { read_config(parse_config_text("composition = 'mixd'", "test"), read); }),
              HasSubstr("'mixed'"));
  EXPECT_THAT(error_of<ConfigError>([&] { read_config(parse_config_text("micro_batches = 0", "test"), read); }),
              HasSubstr("micro_batches is 0"));
  EXPECT_THAT(error_of<ConfigError>([&] { Batcher(*dataset_, config, 1); }), HasSubstr("domain 'bob' has none"));
  config.weights = {{"adda", 1.0}};
  EXPECT_THAT(error_of<ConfigError>([&] { Batcher(*dataset_, config, 1); }), HasSubstr("did you mean 'ada'"));
  config = small_config();
  config.domains = {"eve"};
  EXPECT_THAT(error_of<ConfigError>([&] { Batcher(*dataset_, config, 1); }), HasSubstr("data.domains: "));
  config.domains = {"ada", "ada"};
  EXPECT_THAT(error_of<UsageError>([&] { Batcher(*dataset_, config, 1); }), HasSubstr("twice"));
  config.domains = {};
  config.sequence_length = 71;
  EXPECT_THAT(error_of<DataError>([&] { Batcher(*dataset_, config, 1); }),
              HasSubstr("has 140 training tokens; sequences of 71 need"));
  config.sequence_length = 70;
  EXPECT_NO_THROW(Batcher(*dataset_, config, 1).next_step());
  EXPECT_THROW(Batcher(*dataset_, config, 1).restore({1, {0, 0}}), StateError);
  EXPECT_THROW(Batcher(*dataset_, config, 1).restore({1, {0, 0, 0, -1}}), StateError);
}

TEST_F(BatcherTest, HeldoutIsFixedPureAndSpread) {
  // 50 held-out tokens a domain: 12 windows of 4; 6 of them are every other one.
  const std::vector<Batch> batches = heldout_batches(*dataset_, {}, 4, 6, 4);
  ASSERT_EQ(batches.size(), 8U);
  EXPECT_THAT(micro_batch_domains(batches), ElementsAre(0, 0, 1, 1, 2, 2, 3, 3));
  EXPECT_THAT(batches[0].segment_micro_batch, ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(batches[1].segment_micro_batch, ElementsAre(1, 1));
  EXPECT_EQ(batches[1].ids_BS.size(0), 2);
  // Documents of 4 tokens and the end; row i begins at token 8 i of the stream.
  EXPECT_THAT(numbers(batches[0].ids_BS),
              ElementsAre(5010, 5011, 5012, 5013, 5017, 2, 5018, 5019, 5023, 5024, 5025, 2, 2, 5030, 5031, 5032));
  EXPECT_THAT(numbers(batches[0].document_T), ElementsAre(20, 20, 20, 20, 21, 21, 22, 22, 23, 23, 23, 23, 24, 25, 25, 25));
  EXPECT_EQ(numbers(batches[0].targets_BS)[3], 2);
  EXPECT_THAT(error_of<DataError>([&] { (void)heldout_batches(*dataset_, {"cyd"}, 4, 13, 4); }), HasSubstr("domain 'cyd'"));
  EXPECT_NO_THROW((void)heldout_batches(*dataset_, {"cyd"}, 4, 12, 4));
  EXPECT_THROW((void)heldout_batches(*dataset_, {}, 4, 0, 4), UsageError);
}

TEST_F(BatcherTest, HeldoutAndTrainingDocumentsHaveDifferentNumbers) {
  std::set<int64_t> train, held;
  Batcher batcher(*dataset_, small_config(), 1);
  for (int step = 0; step < 50; ++step) {
    for (const int64_t document : numbers(join_batches(batcher.next_step()).document_T)) train.insert(document);
  }
  for (const Batch& batch : heldout_batches(*dataset_, {}, 4, 12, 12)) {
    for (const int64_t document : numbers(batch.document_T)) held.insert(document);
  }
  EXPECT_GE(train.size(), 76U);
  EXPECT_EQ(held.size(), 40U);
  for (const int64_t document : held) EXPECT_FALSE(train.contains(document));
}

}  // namespace
}  // namespace switchyard
