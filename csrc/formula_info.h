// What Python is told of the compiled formulas and metrics, and numbers of them that it passes back.
#pragma once
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

namespace py = pybind11;

struct StageInfo {
  int stats, rows, cols, params;
  bool extremes, logarithms;
  std::vector<int> drow, dcol;  // the statistics that the gradient of this stage goes on to
};
struct FormulaInfo {
  const char* key;
  const char* module;
  const char* digest;
  size_t row_params, sub_losses;
  std::vector<StageInfo> stages;
};

#include "table.gen.h"

namespace {

const FormulaInfo& formula_info(int formula) {
  if (formula < 0 || formula >= int(FORMULA_TABLE.size()))
    throw py::value_error("formula: expected 0 to " + std::to_string(FORMULA_TABLE.size() - 1) + ", got " +
                          std::to_string(formula));
  return FORMULA_TABLE[formula];
}

const StageInfo& stage_info(const FormulaInfo& info, int stage) {
  if (stage < 0 || stage >= int(info.stages.size()))
    throw py::value_error("stage: expected 0 to " + std::to_string(info.stages.size() - 1) + ", got " + std::to_string(stage));
  return info.stages[stage];
}

int stats_before(const FormulaInfo& info, int stage) {
  int number = 0;
  for (int k = 0; k < stage; ++k) number += info.stages[k].stats;
  return number;
}

void check_metric(int metric) {
  if (metric < 0 || metric >= int(METRIC_TABLE.size()))
    throw py::value_error("metric: expected 0 to " + std::to_string(METRIC_TABLE.size() - 1) + ", got " +
                          std::to_string(metric));
}

void define_formulas(py::module_& m) {
  py::dict formulas, metrics;
  for (size_t k = 0; k < FORMULA_TABLE.size(); ++k)
    formulas[FORMULA_TABLE[k].key] = py::make_tuple(k, FORMULA_TABLE[k].module, FORMULA_TABLE[k].digest);
  for (size_t k = 0; k < METRIC_TABLE.size(); ++k) metrics[METRIC_TABLE[k]] = k;
  m.attr("formulas") = formulas;
  m.attr("metrics") = metrics;
  m.attr("metrics_digest") = METRICS_DIGEST;
}

}  // namespace
