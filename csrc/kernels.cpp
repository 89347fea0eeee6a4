// Compiled once for each instruction set; ISA names the one of this object file.
#include "rows.h"

#define ENTRY_float(Stages, Row) Entry<Stages, Row, float>::kernels,
#define ENTRY_double(Stages, Row) Entry<Stages, Row, double>::kernels,
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

static const Kernels<float> single_table[] = {FORMULAS(ENTRY_float)};
static const Kernels<double> double_table[] = {FORMULAS(ENTRY_double)};

Formulas JOIN(formulas_, ISA)() { return {single_table, double_table}; }
