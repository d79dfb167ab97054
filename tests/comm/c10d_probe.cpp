// Loaded by c10d_gloo.py through ctypes: runs what a c10d group can promise of the contract on a group that Python made.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "contract.hpp"
#include "switchyard/comm/c10d.hpp"
#include "switchyard/core/error.hpp"

namespace {

using namespace switchyard;

std::string text_of_error(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

void require_in(const std::string& text, const std::string& part) {
  test::require(text.find(part) != std::string::npos, "'" + part + "' is missing in: " + text);
}

std::string run_contract(const std::string& group_name) {
  const auto comm = make_c10d_communicator(group_name, c10::kCPU);
  comm->set_time_limit(std::chrono::seconds(30));
  std::string names;
  for (const test::ContractCase& each : test::contract_cases()) {
    if (each.needs != test::Needs::Basics) continue;
    each.run(*comm);
    names += std::string(each.name) + " ";
  }
  require_in(text_of_error([&] { const auto part = comm->split(0, 0); }), "cannot be split from C++");
  require_in(text_of_error([] { const auto none = make_c10d_communicator("no such group", c10::kCPU); }),
             "no c10d process group is registered as 'no such group'");
  return names;
}

// Rank 0 does not come. Breaks the group.
std::string run_time_limit(const std::string& group_name) {
  const auto comm = make_c10d_communicator(group_name, c10::kCPU);
  comm->set_time_limit(std::chrono::milliseconds(300));
  comm->set_step(7);
  if (comm->rank() == 0) return "stayed away";
  std::vector<int64_t> values(3);
  const std::string text = text_of_error([&] { comm->all_reduce_sum(values); });
  require_in(text, comm->describe() + ", all_reduce_sum of 3 int64 (call 0, step 7)");
  return text;
}

int report(const std::string& text, char* output, size_t size, int code) {
  const size_t length = std::min(text.size(), size - 1);
  std::memcpy(output, text.data(), length);
  output[length] = '\0';
  return code;
}

int guarded(std::string (*body)(const std::string&), const char* group_name, char* output, size_t size) {
  try {
    return report(body(group_name), output, size, 0);
  } catch (const std::exception& error) {
    return report(error.what(), output, size, 1);
  }
}

}  // namespace

extern "C" int switchyard_probe_contract(const char* group_name, char* output, size_t size) {
  return guarded(run_contract, group_name, output, size);
}

extern "C" int switchyard_probe_time_limit(const char* group_name, char* output, size_t size) {
  return guarded(run_time_limit, group_name, output, size);
}
