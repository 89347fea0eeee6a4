// The Python module metric_kernels._native: checks every argument, chooses the instruction set, and calls the kernels.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#endif

#include "bindings_terms.h"
#include "bindings_vectors.h"
#include "checks.h"
#include "fn.h"
#include "formula_info.h"
#include "tile.h"

Formulas formulas_baseline();
Terms terms_baseline();
VectorKernels vectors_baseline();
#ifdef HAVE_AVX2
Formulas formulas_avx2();
Terms terms_avx2();
VectorKernels vectors_avx2();
#endif
#ifdef HAVE_AVX512
Formulas formulas_avx512();
Terms terms_avx512();
VectorKernels vectors_avx512();
#endif

namespace {

// ---- instruction sets ------------------------------------------------------------------------------------------------

struct Target {
  std::string name;
  Formulas formulas;
  Terms terms;
  VectorKernels vectors;
};

bool cpu_has(const std::string& isa) {
#if (defined(__GNUC__) || defined(__clang__)) && (defined(__x86_64__) || defined(__i386__))
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == "avx2") return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#elif defined(_MSC_VER) && defined(_M_X64)
  int r[4];
  __cpuidex(r, 1, 0);
  const bool fma = r[2] & (1 << 12), osxsave = r[2] & (1 << 27);
  if (!fma || !osxsave) return false;
  const unsigned long long state = _xgetbv(0);
  __cpuidex(r, 7, 0);
  const bool avx2 = (r[1] & (1 << 5)) && (state & 6) == 6;
  if (isa == "avx2") return avx2;
  return avx2 && (state & 0xe6) == 0xe6 && (r[1] & (1 << 16)) && (r[1] & (1 << 17)) && (r[1] & (1 << 30)) &&
         (r[1] & (1u << 31));
#else
  (void)isa;
  return false;
#endif
}

std::vector<Target> usable_targets() {
  std::vector<Target> found;
#ifdef HAVE_AVX512
  if (cpu_has("avx512")) found.push_back({"avx512", formulas_avx512(), terms_avx512(), vectors_avx512()});
#endif
#ifdef HAVE_AVX2
  if (cpu_has("avx2")) found.push_back({"avx2", formulas_avx2(), terms_avx2(), vectors_avx2()});
#endif
  found.push_back({"baseline", formulas_baseline(), terms_baseline(), vectors_baseline()});
  return found;
}

const std::vector<Target>& targets() {
  static const std::vector<Target> found = usable_targets();
  return found;
}

Target& active() {
  static Target target = targets().front();
  return target;
}

void use_isa(const std::string& name) {
  for (const Target& t : targets())
    if (t.name == name) {
      active() = t;
      return;
    }
  std::string known;
  for (const Target& t : targets()) known += (known.empty() ? "" : ", ") + t.name;
  throw py::value_error("isa: expected one of " + known + ", got " + name);
}

int checked_threads(int threads) {
  if (threads < 1 || threads > 1024)
    throw py::value_error("threads: expected 1 to 1024, got " + std::to_string(threads));
  return threads;
}

// Everything that describes a tile, as Python passes it.
struct TileArguments {
  int formula, metric;
  py::array s, labels, ref_labels;
  int64_t row, diagonal;
  Optional p, q;
  double eps;
  std::vector<double> params;
  int threads;
};

template <class T> struct CheckedTile {
  Tile<T> tile;
  std::vector<T> params;
  const Kernels<T>* kernels;

  explicit CheckedTile(TileArguments& a) {
    const FormulaInfo& info = formula_info(a.formula);
    check_metric(a.metric);
    if (a.s.ndim() != 2) throw py::value_error("s: expected 2 dimensions, got shape " + shape_of(a.s));
    const int64_t m = a.s.shape(0), n = a.s.shape(1);
    int64_t stride;
    tile.s = writable<T>("s", a.s, m, n, stride);
    tile.m = m, tile.n = n, tile.stride = stride;
    tile.labels = vector<int64_t>("labels", a.labels, m);
    tile.ref_labels = vector<int64_t>("ref_labels", a.ref_labels, n);
    if (a.row < 0 || a.row > std::numeric_limits<int64_t>::max() - m)
      throw py::value_error("row: expected the number of a row, got " + std::to_string(a.row));
    if (a.diagonal < -1 || a.diagonal > n)
      throw py::value_error("diagonal: expected -1 or a column, got " + std::to_string(a.diagonal));
    tile.row = a.row, tile.diagonal = a.diagonal;
    const bool norms = METRIC_NORMS[a.metric];
    tile.p = norms && m ? vector<T>("p", given("p", a.p), m) : nullptr;
    tile.q = norms && n ? vector<T>("q", given("q", a.q), n) : nullptr;
    tile.eps = T(a.eps), tile.metric = a.metric;
    size_t expected = 0;
    for (const StageInfo& s : info.stages) expected += s.params;
    if (a.params.size() != expected)
      throw py::value_error("params: expected " + std::to_string(expected) + " numbers, got " +
                            std::to_string(a.params.size()));
    params.assign(a.params.begin(), a.params.end());
    tile.params = params.data();
    tile.threads = checked_threads(a.threads);
    const Formulas& all = active().formulas;
    if constexpr (sizeof(T) == 4) kernels = all.single + a.formula;
    else kernels = all.twice + a.formula;
  }
};

struct SideArguments {
  Optional values, grads, index;
};

// `needed` of the statistics exist for n points; gradients and extremes only where asked for.
template <class T> Side<T> side(const SideArguments& a, int needed, int64_t n, bool grads, bool extremes) {
  Side<T> out{};
  if (needed) out.values = matrix<T>("statistics", given("statistics", a.values), needed, n, out.values_stride);
  if (grads) out.grads = matrix<T>("gradients", given("gradients", a.grads), needed, n, out.grads_stride);
  if (extremes) out.index = matrix<int64_t>("index", given("index", a.index), needed, n, out.index_stride);
  return out;
}

bool is_double(const py::array& s) { return py::isinstance<py::array_t<double>>(s); }

// ---- entry points ------------------------------------------------------------------------------------------------------

template <class T>
void stats(TileArguments& a, int first, int last, py::array& values, const Optional& cols, Optional& index,
           Optional& scale) {
  CheckedTile<T> checked(a);
  const FormulaInfo& info = formula_info(a.formula);
  if (first < 0 || first >= last || last > int(info.stages.size()))
    throw py::value_error("stages: expected a range within 0 to " + std::to_string(info.stages.size()) + ", got " +
                          std::to_string(first) + " to " + std::to_string(last));
  const Tile<T>& tile = checked.tile;
  const int total = stats_before(info, int(info.stages.size()));
  bool reads_cols = false, extremes = false, logarithms = false;
  for (int k = first; k < last; ++k) {
    const StageInfo& s = info.stages[k];
    reads_cols |= s.cols > 0, extremes |= s.extremes, logarithms |= s.logarithms;
  }
  Output<T> out{};
  out.values = writable<T>("statistics", values, total, tile.m, out.values_stride);
  if (extremes) {
    py::array array = given("index", index);
    out.index = writable<int64_t>("index", array, total, tile.m, out.index_stride);
  }
  if (logarithms) {
    py::array array = given("scale", scale);
    out.scale = writable<T>("scale", array, total, tile.m, out.scale_stride);
  }
  const Side<T> mine{out.values, out.values_stride, nullptr, 0, nullptr, 0};
  const Side<T> other = reads_cols ? side<T>({cols, {}, {}}, total, tile.n, false, false) : Side<T>{};
  py::gil_scoped_release release;
  for (int k = first, before = stats_before(info, first); k < last; before += info.stages[k++].stats) {
    Output<T> part = out;
    part.values += before * out.values_stride;
    if (part.index) part.index += before * out.index_stride;
    if (part.scale) part.scale += before * out.scale_stride;
    checked.kernels->stats(k, tile, mine, other, part);
  }
}

template <class T>
void weights(TileArguments& a, const SideArguments& rows, const SideArguments& cols, bool both, Optional& norm_grad) {
  CheckedTile<T> checked(a);
  const FormulaInfo& info = formula_info(a.formula);
  const Tile<T>& tile = checked.tile;
  int total = 0;
  bool two_sided = both, extremes = false;
  for (const StageInfo& s : info.stages) total += s.stats, two_sided |= s.cols > 0, extremes |= s.extremes;
  const Side<T> mine = side<T>(rows, total, tile.m, true, extremes);
  const Side<T> other = two_sided ? side<T>(cols, total, tile.n, true, extremes) : Side<T>{};
  T* norms = norm_grad ? vector_out<T>("norm_grad", *norm_grad, tile.m) : nullptr;
  py::gil_scoped_release release;
  checked.kernels->weights(tile, mine, other, both, norms);
}

template <class T>
void input_grads(TileArguments& a, int stage, const SideArguments& rows, const SideArguments& cols, bool swapped,
                 py::array& out) {
  CheckedTile<T> checked(a);
  const FormulaInfo& info = formula_info(a.formula);
  const StageInfo& current = stage_info(info, stage);
  const Tile<T>& tile = checked.tile;
  int total = 0;
  for (const StageInfo& s : info.stages) total += s.stats;
  const Side<T> mine = side<T>(rows, total, tile.m, true, false);
  const Side<T> other = swapped || current.cols ? side<T>(cols, total, tile.n, true, false) : Side<T>{};
  Output<T> result{};
  result.values = writable<T>("out", out, swapped ? current.cols : current.rows, tile.m, result.values_stride);
  py::gil_scoped_release release;
  checked.kernels->input_grads(stage, tile, mine, other, swapped, result);
}

// How the statistics become a number, checked against the formula.
struct Reduction {
  std::vector<double> params;
  std::vector<Window> windows;
  int required;

  Reduction(const FormulaInfo& info, std::vector<double> params, const std::vector<std::tuple<double, double, bool>>& list,
            int required)
      : params(std::move(params)), required(required) {
    for (const auto& [low, high, mean] : list) windows.push_back({low, high, mean});
    if (this->params.size() != info.row_params)
      throw py::value_error("params: expected " + std::to_string(info.row_params) + " numbers, got " +
                            std::to_string(this->params.size()));
    if (windows.size() != info.sub_losses)
      throw py::value_error("windows: expected " + std::to_string(info.sub_losses) + ", got " +
                            std::to_string(windows.size()));
    const int total = stats_before(info, int(info.stages.size()));
    if (required < -1 || required >= total)
      throw py::value_error("required: expected -1 to " + std::to_string(total - 1) + ", got " + std::to_string(required));
  }

  // The loss, 0 if `required` is -inf for every anchor; writes its gradient with respect to the statistics.
  template <class T>
  double operator()(const Kernels<T>* kernels, const Side<T>& rows, int total, int64_t n, const Output<T>& out) const {
    bool present = required < 0;
    for (int64_t i = 0; i < n && !present; ++i)
      present = rows.values[required * rows.values_stride + i] != -std::numeric_limits<T>::infinity();
    const double loss = kernels->reduce(rows, n, params.data(), windows.data(), out);
    if (present) return loss;
    for (int k = 0; k < total; ++k)
      for (int64_t i = 0; i < n; ++i) out.values[k * out.values_stride + i] = T(0);
    return 0;
  }
};

template <class T>
double epilogue(int formula, const Reduction& reduction, const py::array& values, py::array& grads) {
  const FormulaInfo& info = formula_info(formula);
  const int total = stats_before(info, int(info.stages.size()));
  if (values.ndim() != 2) throw py::value_error("statistics: expected 2 dimensions, got shape " + shape_of(values));
  const int64_t n = values.shape(1);
  Side<T> rows{};
  rows.values = matrix<T>("statistics", values, total, n, rows.values_stride);
  Output<T> out{};
  out.values = writable<T>("grads", grads, total, n, out.values_stride);
  const Kernels<T>* kernels;
  if constexpr (sizeof(T) == 4) kernels = active().formulas.single + formula;
  else kernels = active().formulas.twice + formula;
  py::gil_scoped_release release;
  return reduction(kernels, rows, total, n, out);
}

// Everything between the two products of a step, for a tile that is the whole matrix.
template <class T> double step(TileArguments& a, const Reduction& reduction, bool both, Optional& norm_grad) {
  CheckedTile<T> checked(a);
  const FormulaInfo& info = formula_info(a.formula);
  const Tile<T>& tile = checked.tile;
  const int stages = int(info.stages.size()), total = stats_before(info, stages);
  bool two_sided = false;
  for (const StageInfo& s : info.stages) two_sided |= s.cols > 0;
  if ((both || two_sided) && tile.m != tile.n)
    throw py::value_error("s: expected the matrix of a batch with itself, got shape " + shape_of(a.s));
  if (two_sided && !both) throw py::value_error("both: expected True for a formula that reads the other point, got False");
  T* norms = norm_grad ? vector_out<T>("norm_grad", *norm_grad, tile.m) : nullptr;
  py::gil_scoped_release release;
  const int64_t m = tile.m;
  std::vector<T> values(total * m), grads(total * m), scale(total * m, T(1)), shares;
  std::vector<int64_t> index(total * m, -1);
  const Side<T> rows{values.data(), m, grads.data(), m, index.data(), m};
  for (int k = 0, before = 0; k < stages; before += info.stages[k++].stats)
    checked.kernels->stats(k, tile, rows, rows,
                           {values.data() + before * m, m, index.data() + before * m, m, scale.data() + before * m, m});
  const double loss = reduction(checked.kernels, rows, total, m, Output<T>{grads.data(), m, nullptr, 0, nullptr, 0});
  for (T& v : values) v = v < std::numeric_limits<T>::lowest() ? std::numeric_limits<T>::lowest() : v;
  for (int k = stages - 1; k > 0; --k)
    for (const bool swapped : {false, true}) {
      const std::vector<int>& inputs = swapped ? info.stages[k].dcol : info.stages[k].drow;
      if (inputs.empty()) continue;
      shares.resize(inputs.size() * m);
      checked.kernels->input_grads(k, tile, rows, rows, swapped, {shares.data(), m, nullptr, 0, nullptr, 0});
      for (size_t r = 0; r < inputs.size(); ++r)
        for (int64_t i = 0; i < m; ++i) grads[inputs[r] * m + i] += shares[r * m + i];
    }
  for (size_t i = 0; i < grads.size(); ++i) grads[i] *= scale[i];
  checked.kernels->weights(tile, rows, rows, both, norms);
  return loss;
}

// A tile without labels: what the passes over products alone need.
template <class T>
Tile<T> bare_tile(int metric, py::array& s, const Optional& p, const Optional& q, double eps, int threads, bool written) {
  check_metric(metric);
  if (s.ndim() != 2) throw py::value_error("s: expected 2 dimensions, got shape " + shape_of(s));
  Tile<T> tile{};
  tile.m = s.shape(0), tile.n = s.shape(1);
  tile.s = written ? writable<T>("s", s, tile.m, tile.n, tile.stride)
                   : const_cast<T*>(matrix<T>("s", s, tile.m, tile.n, tile.stride));
  const bool norms = METRIC_NORMS[metric];
  tile.p = norms && tile.m ? vector<T>("p", given("p", p), tile.m) : nullptr;
  tile.q = norms && tile.n ? vector<T>("q", given("q", q), tile.n) : nullptr;
  tile.eps = T(eps), tile.metric = metric, tile.threads = checked_threads(threads);
  return tile;
}

template <class T> Passes<T> passes() {
  if constexpr (sizeof(T) == 4) return active().formulas.passes_single;
  else return active().formulas.passes_twice;
}

template <class T>
void pair_values(int metric, py::array& s, const Optional& p, const Optional& q, double eps, int threads, py::array& out) {
  const Tile<T> tile = bare_tile<T>(metric, s, p, q, eps, threads, false);
  int64_t stride;
  T* values = writable<T>("out", out, tile.m, tile.n, stride);
  py::gil_scoped_release release;
  passes<T>().values(tile, values, stride);
}

template <class T>
void pair_slopes(int metric, py::array& s, const Optional& p, const Optional& q, double eps, int threads, const py::array& g,
                 Optional& norm_grad) {
  const Tile<T> tile = bare_tile<T>(metric, s, p, q, eps, threads, true);
  int64_t stride;
  const T* by_value = matrix<T>("g", g, tile.m, tile.n, stride);
  T* norms = norm_grad ? vector_out<T>("norm_grad", *norm_grad, tile.m) : nullptr;
  py::gil_scoped_release release;
  passes<T>().slopes(tile, by_value, stride, norms);
}

// Everything between the two products for the hinge over all triplets, of a tile that is the whole matrix: its products are
// overwritten with the derivatives of the sum over all anchors. Returns that sum and the number of active triplets.
template <class T>
std::pair<double, int64_t> triplets_step(int metric, py::array& s, const Optional& p, const Optional& q, double eps,
                                         const py::array& labels, const py::array& ref_labels, int64_t diagonal, int threads,
                                         double sign, double margin, bool both, Optional& norm_grad) {
  const Tile<T> tile = bare_tile<T>(metric, s, p, q, eps, threads, true);
  const int64_t m = tile.m, n = tile.n;
  if (both && m != n) throw py::value_error("s: expected the matrix of a batch with itself, got shape " + shape_of(s));
  if (diagonal != -1 && (diagonal != 0 || m != n))
    throw py::value_error("diagonal: expected -1, or 0 for a batch with itself, got " + std::to_string(diagonal));
  T* norms = norm_grad ? vector_out<T>("norm_grad", *norm_grad, m) : nullptr;
  std::vector<T> v(m * n), g(m * n);
  Values<T> values{v.data(), m, n, n, nullptr, nullptr, diagonal, threads};
  values.labels = vector<int64_t>("labels", labels, m), values.ref_labels = vector<int64_t>("ref_labels", ref_labels, n);
  py::gil_scoped_release release;
  const Ordered<T>& ordered = active().terms.ordered<T>();
  passes<T>().values(tile, v.data(), n);
  const int64_t length = ordered.most_positives(values);
  std::vector<int64_t> columns(m * length), below(m * length), which(m), counts(m);
  std::vector<T> list(m * length);
  std::vector<double> totals(m);
  for (int64_t i = 0; i < m; ++i) which[i] = i;
  ordered.positives(values, T(sign), length, columns.data(), list.data());
  const Lists<T> lists{list.data(), m, length, length, which.data()};
  ordered.ranks(values, T(sign), lists, T(margin), totals.data(), counts.data(), below.data());
  ordered.rank_grads(values, T(sign), lists, T(margin), std::vector<T>(m, T(1)).data(), g.data(), n, nullptr);
  double total = 0;
  int64_t count = 0;
  for (int64_t i = 0; i < m; ++i) {
    total += totals[i], count += counts[i];
    for (int64_t k = i * length; k < (i + 1) * length; ++k)
      if (columns[k] < n) g[i * n + columns[k]] += T(sign) * T(below[k]);
  }
  passes<T>().slopes(tile, g.data(), n, norms);
  if (both && norms) {  // dv/dq = -dv/ds / 2 for every metric
    std::vector<double> columns_total(n);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) columns_total[j] += double(tile.s[i * tile.stride + j]);
    for (int64_t j = 0; j < n; ++j) norms[j] -= T(0.5 * columns_total[j]);
  }
  if (both) add_transposed(tile.s, n, tile.stride, threads);
  return {total, count};
}

}  // namespace

// What every entry point takes first, and the statistics of a side.
#define TILE                                                                                                     \
  int formula, int metric, py::array s, py::array labels, py::array ref_labels, int64_t row, int64_t diagonal,  \
      Optional p, Optional q, double eps, std::vector<double> params, int threads
#define TILE_ARGUMENTS \
  TileArguments { formula, metric, s, labels, ref_labels, row, diagonal, p, q, eps, std::move(params), threads }
#define SIDES Optional values, Optional grads, Optional index, Optional ref_values, Optional ref_grads, Optional ref_index
#define ROWS SideArguments{values, grads, index}
#define COLS SideArguments{ref_values, ref_grads, ref_index}
#define OF_TYPE(call) (is_double(tile.s) ? call<double> : call<float>)

PYBIND11_MODULE(_native, m) {
  m.doc() = "Row kernels compiled from the formulas of metric_kernels.";
  m.def("stats", [](TILE, int first, int last, py::array values, Optional cols, Optional index, Optional scale) {
    TileArguments tile = TILE_ARGUMENTS;
    OF_TYPE(stats)(tile, first, last, values, cols, index, scale);
  });
  m.def("weights", [](TILE, SIDES, bool both, Optional norm_grad) {
    TileArguments tile = TILE_ARGUMENTS;
    OF_TYPE(weights)(tile, ROWS, COLS, both, norm_grad);
  });
  m.def("input_grads", [](TILE, int stage, SIDES, bool swapped, py::array out) {
    TileArguments tile = TILE_ARGUMENTS;
    OF_TYPE(input_grads)(tile, stage, ROWS, COLS, swapped, out);
  });
  m.def("epilogue", [](int formula, std::vector<double> params, std::vector<std::tuple<double, double, bool>> windows,
                       int required, py::array values, py::array grads) {
    const Reduction reduction(formula_info(formula), std::move(params), windows, required);
    return (is_double(values) ? epilogue<double> : epilogue<float>)(formula, reduction, values, grads);
  });
  m.def("step", [](TILE, std::vector<double> row_params, std::vector<std::tuple<double, double, bool>> windows, int required,
                   bool both, Optional norm_grad) {
    TileArguments tile = TILE_ARGUMENTS;
    const Reduction reduction(formula_info(formula), std::move(row_params), windows, required);
    return OF_TYPE(step)(tile, reduction, both, norm_grad);
  });
  m.def("pair_values", [](int metric, py::array s, Optional p, Optional q, double eps, int threads, py::array out) {
    (is_double(s) ? pair_values<double> : pair_values<float>)(metric, s, p, q, eps, threads, out);
  });
  m.def("pair_slopes", [](int metric, py::array s, Optional p, Optional q, double eps, int threads, py::array g,
                          Optional norm_grad) {
    (is_double(s) ? pair_slopes<double> : pair_slopes<float>)(metric, s, p, q, eps, threads, g, norm_grad);
  });
  m.def("triplets_step", [](int metric, py::array s, Optional p, Optional q, double eps, int threads, py::array labels,
                            py::array ref_labels, int64_t diagonal, double sign, double margin, bool both, Optional norm_grad) {
    return (is_double(s) ? triplets_step<double> : triplets_step<float>)(metric, s, p, q, eps, labels, ref_labels, diagonal,
                                                                         threads, sign, margin, both, norm_grad);
  });
  define_terms(m, [] { return active().terms; });
  define_vectors(m, [] { return active().vectors; });
  m.def("exp", [](py::array_t<float> x) { return py::vectorize([](float v) { return fn::exp(v); })(x); });
  m.def("isa", [] { return active().name; }, "The instruction set in use.");
  m.def("isas", [] {
    std::vector<std::string> names;
    for (const Target& t : targets()) names.push_back(t.name);
    return names;
  }, "The instruction sets that this processor can run, best first.");
  m.def("use_isa", &use_isa, "Use another instruction set, for tests and comparisons.");
  define_formulas(m);
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
}
