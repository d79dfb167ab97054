#include "switchyard/comm/c10d.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>

#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <utility>

#include "switchyard/comm/agreement.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

using GroupPtr = c10::intrusive_ptr<c10d::ProcessGroup>;

at::ScalarType scalar_type_of(ElementType type) {
  switch (type) {
    case ElementType::Bytes:
      return at::kByte;
    case ElementType::Int64:
      return at::kLong;
    case ElementType::Double:
      return at::kDouble;
    case ElementType::Float:
      return at::kFloat;
  }
  return at::kByte;
}

// The caller's memory as a tensor; c10d takes no const data, and does not write to what it sends.
at::Tensor view_of(std::span<const std::byte> bytes, ElementType type) {
  const int64_t length = std::ssize(bytes) / bytes_of(type);
  if (length == 0) return at::empty({0}, scalar_type_of(type));
  return at::from_blob(const_cast<std::byte*>(bytes.data()), {length}, scalar_type_of(type));
}

// One collective on the backend. Finished once; later calls must not finish before it.
struct InFlight {
  CallHeader header;
  std::string who;
  std::chrono::milliseconds limit;
  at::Tensor send;          // on the group's device
  at::Tensor receive;       // the same
  at::Tensor host_receive;  // the caller's memory
  c10::intrusive_ptr<c10d::Work> work;
  std::shared_ptr<InFlight> previous;
  bool finished = false;

  bool ready() {
    if (finished) return true;
    return (previous == nullptr || previous->ready()) && (work == nullptr || work->isCompleted());
  }

  void finish() {
    if (finished) return;
    if (const std::shared_ptr<InFlight> earlier = std::exchange(previous, nullptr)) earlier->finish();
    finished = true;
    try {
      if (work != nullptr) {
        const bool is_done = work->wait(limit);
        SWITCHYARD_CHECK(is_done, CommError, "the backend gave it up");
      }
      if (!receive.is_same(host_receive)) host_receive.copy_(receive);
    } catch (const std::exception& exception) {
      throw CommError(join_text(who, ", ", to_string(header), ": ", text_of(exception)));
    }
  }
};

class C10dWork final : public Work {
 public:
  explicit C10dWork(std::shared_ptr<InFlight> call) : call_(std::move(call)) {}
  ~C10dWork() override {
    try {
      call_->finish();
    } catch (const CommError&) {  // NOLINT(bugprone-empty-catch)
      // Given up by its owner: nobody is left to be told.
    }
  }
  bool ready() override { return call_->ready(); }
  void wait() override { call_->finish(); }

 private:
  std::shared_ptr<InFlight> call_;
};

class C10dCommunicator final : public Communicator {
 public:
  C10dCommunicator(GroupPtr group, c10::Device device) : group_(std::move(group)), device_(device) {}
  [[nodiscard]] int64_t rank() const override { return group_->getRank(); }
  [[nodiscard]] int64_t size() const override { return group_->getSize(); }

 private:
  [[nodiscard]] std::unique_ptr<Work> start(Call call) override {
    auto current = std::make_shared<InFlight>();
    current->header = std::move(call.header);
    current->who = describe();
    current->limit = time_limit();
    const CallHeader& header = current->header;
    current->host_receive = view_of(call.receive, header.type);
    current->receive = current->host_receive.to(device_);
    current->send = header.operation == Operation::Broadcast ? current->receive : view_of(call.send, header.type).to(device_);
    if (last_ != nullptr && !last_->finished) current->previous = last_;
    last_ = current;
    try {
      post(*current);
    } catch (const std::exception& exception) {
      current->finished = true;
      throw CommError(join_text(describe(), ", ", to_string(header), ": ", text_of(exception)));
    }
    return std::make_unique<C10dWork>(std::move(current));
  }

  void post(InFlight& call) {
    const CallHeader& header = call.header;
    switch (header.operation) {
      case Operation::AllReduceSum:
        return sum(call);
      case Operation::AllGather: {
        c10d::AllgatherOptions options;
        options.timeout = time_limit();
        if (header.bytes > 0) call.work = group_->all_gather_single(call.receive, call.send, options);
        return;
      }
      case Operation::AllToAll: {
        c10d::AllToAllOptions options;
        options.timeout = time_limit();
        std::vector<int64_t> from_R = header.receive_bytes_R, to_R = header.send_bytes_R;
        call.work = group_->all_to_all_single(call.receive, call.send, from_R, to_R, options);
        return;
      }
      case Operation::Broadcast: {
        c10d::BroadcastOptions options;
        options.rootRank = header.root;
        options.timeout = time_limit();
        std::vector<at::Tensor> tensors = {call.receive};
        if (header.bytes > 0) call.work = group_->broadcast(tensors, options);
        return;
      }
      case Operation::Barrier: {
        c10d::BarrierOptions options;
        options.timeout = time_limit();
        options.device = device_;
        call.work = group_->barrier(options);
        return;
      }
    }
  }

  void sum(InFlight& call) {
    c10d::AllreduceOptions options;
    options.timeout = time_limit();
    std::vector<at::Tensor> tensors = {call.receive};
    // Nothing to add: backends differ in whether they take it.
    if (call.header.bytes > 0) call.work = group_->allreduce(tensors, options);
  }

  [[nodiscard]] std::unique_ptr<Communicator> make_part(const std::vector<int64_t>&, int64_t) override {
    throw UsageError(join_text(describe(), ": a c10d group cannot be split from C++; make the part with ",
                               "torch.distributed.new_group and wrap that"));
  }

  GroupPtr group_;
  c10::Device device_;
  std::shared_ptr<InFlight> last_;
};

}  // namespace

std::unique_ptr<Communicator> make_c10d_communicator(GroupPtr group, c10::Device device) {
  SWITCHYARD_CHECK(group != nullptr, UsageError, "no process group was given");
  return std::make_unique<C10dCommunicator>(std::move(group), device);
}

std::unique_ptr<Communicator> make_c10d_communicator(const std::string& group_name, c10::Device device) {
  try {
    return make_c10d_communicator(c10d::resolve_process_group(group_name), device);
  } catch (const c10::Error& error) {
    throw CommError(join_text("no c10d process group is registered as '", group_name,
                              "'; call torch.distributed.init_process_group first: ", error.what_without_backtrace()));
  }
}

}  // namespace switchyard
