#include <memory>

#include <nlohmann/json.hpp>

#include "switchyard/cli/verbs.hpp"
#include "switchyard/train/build_info.hpp"

namespace switchyard {

void add_version_verb(CLI::App& app, Action& chosen) {
  auto format = std::make_shared<OutputFormat>(OutputFormat::Text);
  CLI::App* verb = app.add_subcommand("version", "Version, commit and what it was built with");
  add_json_flag(*verb, *format, "one object");
  verb->footer("Example:\n  switchyard version --json");
  verb->callback([format, &chosen] {
    chosen = [format](Session& session) {
      const BuildInfo info = build_info();
      if (*format == OutputFormat::Json) {
        const nlohmann::ordered_json object = {{"version", info.version},
                                               {"commit", info.commit},
                                               {"torch_version", info.torch_version},
                                               {"processor", info.processor}};
        session.out << object.dump(2) << "\n";
      } else {
        session.out << "switchyard " << info.version << " (" << info.commit << "), PyTorch " << info.torch_version << "\n"
                    << info.processor << "\n";
      }
      return kExitDone;
    };
  });
}

}  // namespace switchyard
