#include "switchyard/model/weights_file.hpp"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <filesystem>

#include "kernels/check.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "tests/scratch_folder.hpp"

namespace switchyard {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

class WeightsFile : public ::testing::Test {
 protected:
  [[nodiscard]] std::filesystem::path path() const { return folder_ / "file.safetensors"; }

  // A file with this header text and those data bytes.
  void write_raw(const std::string& header, const std::string& data) {
    std::string bytes(sizeof(uint64_t), '\0');
    const uint64_t size = header.size();
    std::memcpy(bytes.data(), &size, sizeof size);
    write_file_atomically(path(), bytes + header + data);
  }
  void write_raw(const std::string& header, size_t data_bytes) { write_raw(header, std::string(data_bytes, '\0')); }

  void expect_refused(const std::string& header, size_t data_bytes, const std::string& message) {
    write_raw(header, data_bytes);
    EXPECT_THAT([&] { (void)load_tensors(path()); }, ThrowsMessage<DataError>(HasSubstr(message)));
  }

  test::ScratchFolder scratch_;
  std::filesystem::path folder_ = scratch_.path();
};

// Read into memory of the process it would stay there as long as the process does.
TEST_F(WeightsFile, StaysMappedWhileATensorOfItIsKept) {
  save_tensors(path(), {{"a", at::ones({6}, at::kFloat)}});
  const auto is_mapped = [&] { return read_file("/proc/self/maps").find(path().string()) != std::string::npos; };
  {
    const at::Tensor kept = load_tensors(path()).tensors.at("a");
    EXPECT_TRUE(is_mapped());
  }
  EXPECT_FALSE(is_mapped());
}

TEST_F(WeightsFile, LoadedTensorsAreTheirOwnersAlone) {
  const at::Tensor given = at::arange(6, at::kFloat);
  save_tensors(path(), {{"a", given}});
  const at::Tensor changed = load_tensors(path()).tensors.at("a");
  changed.fill_(7.0);
  const at::Tensor again = load_tensors(path()).tensors.at("a");
  save_tensors(path(), {{"a", at::ones({2}, at::kFloat)}});  // in place of the file that they lie in
  std::filesystem::remove(path());
  EXPECT_TRUE(at::equal(again, given));
  EXPECT_EQ(changed.sum().item<double>(), 42.0);
}

// Our header ends on a multiple of 8; another program's may not.
TEST_F(WeightsFile, ReadsTensorsThatAreNotAligned) {
  const std::string header = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  for (size_t spaces = 0; spaces < 4; ++spaces) {
    const std::array<float, 2> numbers = {1.5F, -2.0F};
    write_raw(header + std::string(spaces, ' '), std::string(reinterpret_cast<const char*>(numbers.data()), sizeof numbers));
    EXPECT_TRUE(at::equal(load_tensors(path()).tensors.at("a"), at::tensor({1.5, -2.0}, at::kFloat))) << spaces;
  }
}

TEST_F(WeightsFile, KeepsEveryTypeAndShape) {
  TensorMap tensors;
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort,
                                    at::kChar, at::kByte, at::kBool}) {
    tensors[join_text("of ", type)] = at::arange(6, type == at::kBool ? at::kLong : type).reshape({2, 3}).to(type);
  }
  tensors["scalar"] = at::tensor(2.5, at::kDouble).reshape({});
  tensors["empty"] = at::empty({0, 4}, at::kFloat);
  tensors["strided"] = at::arange(6, at::kLong).reshape({2, 3}).t();
  save_tensors(path(), tensors, {{"step", "12"}, {"text", "\"quoted\" \xc3\xa9"}});
  const TensorFile loaded = load_tensors(path());
  EXPECT_EQ(loaded.metadata, (TensorMetadata{{"step", "12"}, {"text", "\"quoted\" \xc3\xa9"}}));
  ASSERT_EQ(loaded.tensors.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor& found = loaded.tensors.at(name);
    EXPECT_EQ(found.scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(at::equal(found, tensor)) << name;
  }
}

TEST_F(WeightsFile, HasTheLayoutOfTheFormat) {
  save_tensors(path(), {{"a", at::tensor({1, 2}, at::kByte)}, {"b", at::tensor({0.5}, at::kDouble)}});
  const std::string bytes = read_file(path());
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof header);
  EXPECT_EQ(header % 8, 0U);
  ASSERT_EQ(bytes.size(), 8 + header + 10);
  double first = 0.0;  // the wider type lies first, aligned
  std::memcpy(&first, bytes.data() + 8 + header, sizeof first);
  EXPECT_EQ(first, 0.5);
  EXPECT_EQ(bytes.substr(8 + header + 8), "\x01\x02");
}

TEST_F(WeightsFile, WritesTheSameBytesForTheSameTensors) {
  const TensorMap tensors = {{"b", at::ones({3}, at::kFloat)}, {"a", at::ones({2}, at::kLong)}};
  save_tensors(path(), tensors);
  const std::string first = read_file(path());
  save_tensors(path(), tensors);
  EXPECT_EQ(read_file(path()), first);
}

TEST_F(WeightsFile, WritesTheSameBytesFromTensorsMadeOneAtATime) {
  const TensorMap tensors = {{"half", at::arange(6, at::kBFloat16)}, {"wide", at::arange(6, at::kDouble).reshape({2, 3})}};
  save_tensors(path(), tensors);
  const std::string expected = read_file(path());
  int64_t num_made = 0;
  std::map<std::string, TensorToSave> made;
  for (const auto& [name, tensor] : tensors) {
    made[name] = {tensor.scalar_type(), tensor.sizes().vec(), [&num_made, &tensor = tensor] {
                    EXPECT_EQ(num_made++, tensor.scalar_type() == at::kDouble ? 0 : 1);  // in the order of the file
                    return tensor.clone();
                  }};
  }
  save_tensors(path(), made);
  EXPECT_EQ(read_file(path()), expected);
  num_made = 0;
  made["half"].sizes = {7};
  EXPECT_THAT([&] { save_tensors(path(), made); }, ThrowsMessage<UsageError>(HasSubstr("7] was announced")));
  EXPECT_EQ(read_file(path()), expected);
}

TEST_F(WeightsFile, RefusesFilesThatAreNotWhole) {
  save_tensors(path(), {{"a", at::ones({100}, at::kFloat)}});
  const std::string whole = read_file(path());
  for (const size_t size : {size_t{0}, size_t{5}, size_t{20}, whole.size() - 1}) {
    write_file_atomically(path(), whole.substr(0, size));
    EXPECT_THROW((void)load_tensors(path()), DataError) << size;
  }
  write_file_atomically(path(), whole + "x");
  EXPECT_THAT([&] { (void)load_tensors(path()); }, ThrowsMessage<DataError>(HasSubstr("appended")));
  EXPECT_THAT([&] { (void)load_tensors(folder_ / "none"); }, ThrowsMessage<DataError>(HasSubstr("none")));
}

TEST_F(WeightsFile, RefusesHeadersThatContradictThemselves) {
  expect_refused("[1]", 0, "JSON object");
  expect_refused("{", 0, "JSON object");
  expect_refused(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "takes 8");
  expect_refused(R"({"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}})", 4, "F99");
  expect_refused(R"({"a":{"dtype":"F32","shape":[1]}})", 4, "header entry that cannot be read: key 'data_offsets' not found; the file is damaged: get it again, or use");
  expect_refused(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "negative");
  expect_refused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, "gaps");
  expect_refused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                 R"("b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                 4, "overlap");
  expect_refused(R"({"a":{"dtype":"F64","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", 0, "too large");
  expect_refused(R"({"__metadata__":{"a":1}})", 0, "map of strings");
}

TEST_F(WeightsFile, RefusesWhatItCannotHold) {
  EXPECT_THROW(save_tensors(path(), {{"__metadata__", at::ones({1}, at::kFloat)}}), UsageError);
  EXPECT_THROW(save_tensors(path(), {{"a", at::Tensor()}}), UsageError);
  EXPECT_THROW(save_tensors(path(), {{"a", at::ones({1}, at::kComplexFloat)}}), UsageError);
  EXPECT_FALSE(std::filesystem::exists(path()));
  EXPECT_THROW(save_tensors(folder_ / "no_folder" / "file", {{"a", at::ones({1}, at::kFloat)}}), DataError);
}

}  // namespace
}  // namespace switchyard
