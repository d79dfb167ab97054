#include <array>
#include <cstdlib>

#include "switchyard/comm/mpi.hpp"

namespace switchyard {

bool started_by_mpi() {
  constexpr std::array kSetByLaunchers = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"};
  for (const char* name : kSetByLaunchers) {
    if (std::getenv(name) != nullptr) return true;
  }
  return false;
}

}  // namespace switchyard
