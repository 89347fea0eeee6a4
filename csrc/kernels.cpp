// Compiled once for each instruction set; ISA names the one of this object file.
#include "binned.h"
#include "ordered.h"
#include "rows.h"
#include "terms.h"
#include "vectors.h"

#define ENTRY_float(Stages, Row) Entry<Stages, Row, float>::kernels,
#define ENTRY_double(Stages, Row) Entry<Stages, Row, double>::kernels,
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

static const Kernels<float> single_table[] = {FORMULAS(ENTRY_float)};
static const Kernels<double> double_table[] = {FORMULAS(ENTRY_double)};

Formulas JOIN(formulas_, ISA)() {
  return {single_table, double_table, {pair_values<float>, pair_slopes<float>}, {pair_values<double>, pair_slopes<double>}};
}

Terms JOIN(terms_, ISA)() { return {&ordered<float>, &ordered<double>, &binned<float>, &binned<double>}; }

VectorKernels JOIN(vectors_, ISA)() { return {&vectors<float>, &vectors<double>}; }
