"""Prints the formulas of the package as C++ functors. Reads source with ``ast`` only: the build needs no torch.

    python csrc/generate.py FOLDER

writes formulas.gen.h, the functors, and table.gen.h, what is told to Python of them.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "metric_kernels"
METRICS = PACKAGE / "metrics.py"
BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.BitAnd: "&", ast.BitOr: "|"}
COMPARE = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
STATISTIC = re.compile(r"(row|col)(\d+)$")


class Printer(ast.NodeVisitor):
    """Expressions and assignments of the language; anything else is an error with its place."""

    def __init__(self, path: Path):
        self.path = path

    def visit_BinOp(self, node):
        return f"({self.visit(node.left)} {self.known(BINARY, node.op, node)} {self.visit(node.right)})"

    def visit_UnaryOp(self, node):
        if not isinstance(node.op, ast.USub):
            self.generic_visit(node)
        return f"(-{self.visit(node.operand)})"

    def visit_Compare(self, node):
        if len(node.ops) != 1:
            self.generic_visit(node)
        return f"({self.visit(node.left)} {self.known(COMPARE, node.ops[0], node)} {self.visit(node.comparators[0])})"

    def visit_Name(self, node):
        return f"{node.id}_"

    def visit_Constant(self, node):
        if not isinstance(node.value, (int, float)) or isinstance(node.value, bool):
            self.generic_visit(node)
        return f"T({float(node.value)!r})"

    def visit_Call(self, node):
        module = node.func.value if isinstance(node.func, ast.Attribute) else None
        if not isinstance(module, ast.Name) or module.id != "fn" or node.keywords:
            self.generic_visit(node)
        return f"fn::{node.func.attr}({', '.join(map(self.visit, node.args))})"

    def visit_Assign(self, node):
        target = node.targets[0]
        names = target.elts if isinstance(target, ast.Tuple) else [target]
        values = node.value.elts if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple) else [node.value]
        if len(node.targets) > 1 or len(names) != len(values) or not all(isinstance(n, ast.Name) for n in names):
            self.generic_visit(node)
        return " ".join(f"[[maybe_unused]] const auto {n.id}_ = {self.visit(v)};" for n, v in zip(names, values, strict=True))

    def generic_visit(self, node):
        raise SyntaxError(f"{self.path}:{node.lineno}: not in the language of formulas: {ast.unparse(node)}")

    def known(self, table, operator, node):
        if type(operator) not in table:
            self.generic_visit(node)
        return table[type(operator)]

    def body(self, function: ast.FunctionDef, out: list[str] | None) -> list[str]:
        """Statements; the returned tuple is stored to ``out``, or to ``out[0]``, ``out[1]`` ... if that is None."""
        lines = []
        for statement in function.body:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                continue  # a docstring
            if isinstance(statement, ast.Assign):
                lines.append(self.visit(statement))
            elif isinstance(statement, ast.Return) and statement.value:
                value = statement.value
                values = value.elts if isinstance(value, ast.Tuple) else [value]
                targets = out or [f"out[{k}]" for k in range(len(values))]
                lines += [f"{t} = {self.visit(v)};" for t, v in zip(targets, values, strict=True)]
            else:
                self.generic_visit(statement)
        return lines


def functions(node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    return {f.name: f for f in node.body if isinstance(f, ast.FunctionDef)}


def constant(node: ast.ClassDef, name: str):
    for statement in node.body:
        if isinstance(statement, ast.Assign) and statement.targets[0].id == name:
            return statement.value
    return None


def indented(lines: list[str], by: int = 4) -> str:
    return "\n".join(" " * by + line for line in lines)


def stage(path: Path, node: ast.ClassDef, name: str, first: int, first_param: int) -> tuple[str, int, int]:
    """A functor, with the number of its statistics and of its parameters."""
    known, printer = functions(node), Printer(path)
    arguments = [a.arg for a in known["pair"].args.args]
    split = [STATISTIC.match(a) for a in arguments[1:]]
    inputs = {side: [int(m[2]) for m in split if m and m[1] == side] for side in ("row", "col")}
    params = [a for a, m in zip(arguments[1:], split) if not m]
    stats = [(s.func.id, s.args[0].value) for s in constant(node, "stats").elts]
    names = [f"[[maybe_unused]] const T {side}{k}_ = {side}({k});" for side in ("row", "col") for k in inputs[side]]
    names += [f"[[maybe_unused]] const T {a}_ = params[{k}];" for k, a in enumerate(params)]
    kinds, sides = ", ".join(f"Kind::{k}" for k, _ in stats), ", ".join(f"Where::{s}" for _, s in stats)
    lines = [
        f"struct {name} {{",
        f"  static constexpr int K = {len(stats)}, first = {first}, first_param = {first_param};",
        f"  static constexpr int ROWS = {len(inputs['row'])}, COLS = {len(inputs['col'])};",
        f"  static constexpr bool has_drow = {str('drow' in known).lower()}, has_dcol = {str('dcol' in known).lower()};",
        f"  static constexpr Kind kind[] = {{{kinds}}};",
        f"  static constexpr Where side[] = {{{sides}}};",
    ]
    for function in ("pair", "dpair", "drow", "dcol"):
        if function in known:
            lines += [
                "  template <class T, class RowOf, class ColOf>",
                f"  static MK_FN void {function}(T v_, RowOf row, ColOf col, const T* params, T* out) {{",
                indented(names),
                indented(printer.body(known[function], None)),
                "  }",
            ]
    return "\n".join([*lines, "};", ""]), len(stats), len(params)


def metrics() -> list[ast.ClassDef]:
    classes = (n for n in ast.parse(METRICS.read_text()).body if isinstance(n, ast.ClassDef))
    return [n for n in classes if "value" in functions(n)]


def row(path: Path, owner: str, node: ast.ClassDef, stats: int) -> str:
    """The loss of an anchor from all its statistics, or for a loss per pair a type that says that there is none."""
    known = functions(node).get("row")
    if known is None:
        return f"struct {owner}_row {{\n  static constexpr bool per_anchor = false;\n  static constexpr int params = 0;\n}};\n"
    arguments = [a.arg for a in known.args.args]
    names = [f"[[maybe_unused]] const T {a}_ = stats[{k}];" for k, a in enumerate(arguments[:stats])]
    names += [f"[[maybe_unused]] const T {a}_ = T(params[{k}]);" for k, a in enumerate(arguments[stats:])]
    return "\n".join(
        [
            f"struct {owner}_row {{",
            "  static constexpr bool per_anchor = true;",
            f"  static constexpr int params = {len(arguments) - stats};",
            "  template <class T, class P> static MK_FN T loss(const T* stats, const P* params) {",
            "    T out;",
            indented(names),
            indented(Printer(path).body(known, ["out"])),
            "    return out;",
            "  }",
            "};",
            "",
        ]
    )


def flag(node: ast.ClassDef, name: str) -> bool:
    """A class attribute of a metric; the base class says True."""
    value = constant(node, name)
    return value is None or value.value


def metric(node: ast.ClassDef) -> str:
    known, printer = functions(node), Printer(METRICS)
    flags = [f"  static constexpr bool {n} = {str(flag(node, n)).lower()};" for n in ("norms", "symmetric")]
    return "\n".join(
        [
            f"struct {node.name} {{",
            *flags,
            "  template <class T> static MK_FN T value(T s_, T p_, T q_, T eps_) {",
            "    T v;",
            indented(printer.body(known["value"], ["v"])),
            "    return v;",
            "  }",
            "  template <class T> static MK_FN void slopes(T s_, T p_, T q_, T eps_, T& ds, T& dp) {",
            indented(printer.body(known["dvalue"], ["ds", "dp"])),
            "  }",
            "};",
            "",
        ]
    )


def formulas(path: Path):
    """(class, its stages) for every formula in a file, as nodes."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            nested = [c for c in node.body if isinstance(c, ast.ClassDef) and "pair" in functions(c)]
            if "pair" in functions(node):
                yield node, [node]
            elif nested:
                yield node, nested


def _load_digest():
    spec = importlib.util.spec_from_file_location("digest", PACKAGE / "digest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.digest


digest = _load_digest()


def sources() -> list[Path]:
    return [*sorted((PACKAGE / "losses").glob("[a-z]*.py")), PACKAGE / "extremes.py"]


def generate() -> str:
    text = ["// Printed from metric_kernels/losses and metric_kernels/metrics.py by csrc/generate.py.", ""]
    text += [metric(node) for node in metrics()]
    cases = "\n".join(f"    case {k}: return f({node.name}{{}});" for k, node in enumerate(metrics()))
    text.append(f"template <class F> MK_FN void with_metric(int metric, F f) {{\n  switch (metric) {{\n{cases}\n  }}\n}}\n")
    symmetric = "\n".join(f"    case {k}: return {node.name}::symmetric;" for k, node in enumerate(metrics()))
    text.append(f"MK_FN bool is_symmetric(int metric) {{\n  switch (metric) {{\n{symmetric}\n  }}\n  return false;\n}}\n")
    listed = []
    for path in sources():
        for owner, nodes in formulas(path):
            names, first, first_param = [], 0, 0
            for k, node in enumerate(nodes):
                names.append(f"{owner.name}_{k}")
                code, stats, params = stage(path, node, names[-1], first, first_param)
                text.append(code)
                first, first_param = first + stats, first_param + params
            text.append(row(path, owner.name, owner, first))
            listed.append((owner.name, names))
    text += [f"using Stages{k} = std::tuple<{', '.join(names)}>;" for k, (_, names) in enumerate(listed)]
    text.append("\n#define FORMULAS(X) \\")
    text += [f"  X(Stages{k}, {name}_row) \\" for k, (name, _) in enumerate(listed)]
    text += ["", ""]
    return "\n".join(text)


def table() -> str:
    """What bindings.cpp tells Python of the compiled formulas and metrics."""
    rows = []
    for path in sources():
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for owner, nodes in formulas(path):
            stages = []
            for node in nodes:
                split = [STATISTIC.match(a.arg) for a in functions(node)["pair"].args.args[1:]]
                inputs = {side: [m[2] for m in split if m and m[1] == side] for side in ("row", "col")}
                rows_in, cols_in = map(len, inputs.values())
                slopes = [", ".join(inputs[side]) if f"d{side}" in functions(node) else "" for side in inputs]
                params = sum(m is None for m in split)
                kinds = [s.func.id for s in constant(node, "stats").elts]
                flags = ", ".join(str(not known.isdisjoint(kinds)).lower() for known in ({"largest", "smallest"}, {"lse"}))
                stages.append(f"{{{len(kinds)}, {rows_in}, {cols_in}, {params}, {flags}, {{{slopes[0]}}}, {{{slopes[1]}}}}}")
            known = functions(owner).get("row")
            total = sum(len(constant(n, "stats").elts) for n in nodes)
            row_params = len(known.args.args) - total if known else 0
            sub_losses = 1 if known else len(constant(nodes[-1], "stats").elts) // 2
            identity = f'"{module}.{owner.name}", "{module}", "{digest(path)}"'
            rows.append(f"  {{{identity}, {row_params}, {sub_losses}, {{{', '.join(stages)}}}}},")
    names = ", ".join(f'"{node.name}"' for node in metrics())
    norms = ", ".join(str(flag(node, "norms")).lower() for node in metrics())
    return "\n".join(
        [
            "// Printed by csrc/generate.py.",
            "static const std::vector<FormulaInfo> FORMULA_TABLE = {",
            *rows,
            "};",
            f"static const std::vector<const char*> METRIC_TABLE = {{{names}}};",
            f"static const bool METRIC_NORMS[] = {{{norms}}};",
            f'static const char* METRICS_DIGEST = "{digest(METRICS)}";',
            "",
        ]
    )


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "formulas.gen.h").write_text(generate())
    (folder / "table.gen.h").write_text(table())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
