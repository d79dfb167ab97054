#include <memory>

#include <nlohmann/json.hpp>

#include "switchyard/balance/method.hpp"
#include "switchyard/cli/verbs.hpp"
#include "switchyard/core/config.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/scope.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/measure/metric_table.hpp"
#include "switchyard/router/router.hpp"
#include "switchyard/train/run_config.hpp"

namespace switchyard {
namespace {

struct Listing {
  std::vector<std::string> columns;            // keys of the JSON objects
  std::vector<std::vector<std::string>> rows;  // one cell a column
};

Listing list_routers() {
  Listing listing{{"name", "balancing", "source", "description"}, {}};
  for (const RouterEntry& entry : router_table()) {
    const std::string balancing = entry.balancing == TakesBalancing::Yes ? "yes" : "no";
    listing.rows.push_back({std::string(entry.name), balancing, std::string(entry.source), std::string(entry.description)});
  }
  return listing;
}

Listing list_balancers() {
  Listing listing{{"name", "source", "description"}, {}};
  for (const BalancerEntry& entry : balancer_table()) {
    listing.rows.push_back({std::string(entry.name), std::string(entry.source), std::string(entry.description)});
  }
  return listing;
}

Listing list_scopes() {
  Listing listing{{"name", "description"}, {}};
  for (const ScopeInfo& info : scope_table()) {
    listing.rows.push_back({std::string(info.spelling), std::string(info.description)});
  }
  return listing;
}

Listing list_metrics() {
  Listing listing{{"name", "range", "unit", "scope", "description"}, {}};
  for (const MetricEntry& entry : metric_table()) {
    listing.rows.push_back({std::string(entry.name), std::string(entry.range), std::string(entry.unit),
                            std::string(entry.scope), std::string(entry.description)});
  }
  return listing;
}

Listing list_keys() {
  Listing listing{{"key", "default", "description"}, {}};
  for (const FieldDoc& doc : describe_config(RunConfig())) listing.rows.push_back({doc.key, doc.value, doc.help});
  return listing;
}

struct Topic {
  std::string name;
  Listing (*list)();
};

const std::vector<Topic>& topics() {
  static const std::vector<Topic> kTopics = {
      {"routers", list_routers}, {"balancers", list_balancers}, {"scopes", list_scopes}, {"metrics", list_metrics},
      {"keys", list_keys}};
  return kTopics;
}

int list_topic(const std::string& name, OutputFormat format, Session& session) {
  std::vector<std::string> known;
  for (const Topic& topic : topics()) {
    known.push_back(topic.name);
    if (topic.name != name) continue;
    Listing listing = topic.list();
    if (format == OutputFormat::Json) {
      nlohmann::ordered_json items = nlohmann::ordered_json::array();
      for (const auto& row : listing.rows) {
        nlohmann::ordered_json item;
        for (size_t column = 0; column < row.size(); ++column) item[listing.columns[column]] = row[column];
        items.push_back(std::move(item));
      }
      session.out << items.dump(2) << "\n";
      return kExitDone;
    }
    const std::vector<Align> align(listing.columns.size(), Align::Left);
    listing.rows.insert(listing.rows.begin(), listing.columns);
    const std::string table = table_text(listing.rows, align);
    const size_t header_end = table.find('\n');
    session.out << styled(session.out_screen, Style::Bold, table.substr(0, header_end)) << table.substr(header_end);
    return kExitDone;
  }
  throw UsageError(unknown_name("list", name, known));
}

}  // namespace

void add_list_verb(CLI::App& app, Action& chosen) {
  struct Arguments {
    std::string topic;
    OutputFormat format = OutputFormat::Text;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* verb = app.add_subcommand("list", "What can be chosen, a line on each: routers, balancers, scopes, metrics, configuration keys");
  verb->add_option("topic", arguments->topic, "routers, balancers, scopes, metrics or keys")->required();
  add_json_flag(*verb, arguments->format, "an array of objects");
  verb->footer("Example:\n  switchyard list scopes");
  verb->callback([arguments, &chosen] {
    chosen = [arguments](Session& session) { return list_topic(arguments->topic, arguments->format, session); };
  });
}

}  // namespace switchyard
