"""The table for readers, made from the CSV: ratios first, then milliseconds, megabytes, and what is missing and why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.cases import CLASS_SIZES, LOSSES, OURS, PAIR_LOSSES, PROVIDERS, Case, by_class_size
from benchmarks.records import Records

_NOTHING = "-"
_SIZES_HEADER = ["loss", "B", "D", "by"]
_FAMILIES = {
    "Pairs": PAIR_LOSSES,
    "Triplets, quadruplets and histograms": tuple(loss for loss in LOSSES if loss not in PAIR_LOSSES),
}
_OTHERS = ("eager", "compile", "pml", "st")
_HEADER = (
    ["loss", "ours / floor", "numba / ours", *(f"{p} / ours" for p in _OTHERS)]
    + [f"{p} ms" for p in ("ours", "numba", *_OTHERS, "floor")]
    + [f"{p} MB" for p in ("ours", "eager", "pml")]
)


def render(records: Records) -> str:
    shapes, swept = {}, {case for run in by_class_size() for case in run.cases}
    for case in records.cases():
        if case.by("native") not in swept:
            shapes.setdefault((case.batch, case.dim, case.dtype, case.per_class), set()).add(case.loss)
    parts = ["# Results on the CPU\n", _provenance(records), _LEGEND]
    for shape, present in sorted(shapes.items(), key=lambda item: (item[0][2] != "float32", item[0][3], *item[0])):
        batch, dim, dtype, per_class = shape
        parts.append(f"## B = {batch}, D = {dim}, {dtype}, {per_class} per class\n")
        for title, losses in _FAMILIES.items():
            cases = [Case(loss, *shape) for loss in losses if loss in present]
            if cases:
                parts += [f"### {title}\n", *_section(records, cases)]
    rows = list(_class_sizes(records))
    if rows:
        parts += ["## Time over the floor by samples per class\n", _markdown([[*_SIZES_HEADER, *map(str, CLASS_SIZES)], *rows])]
    return "\n".join(parts)


def _section(records: Records, cases: list[Case]) -> Iterator[str]:
    yield _markdown([_HEADER] + [_row(records, case) for case in cases])
    notes = {}
    for case in cases:
        for note in _notes(records, case):
            notes.setdefault(note, []).append(case.loss.removesuffix("Loss"))
    if notes:
        yield "".join(f"- {note} ({', '.join(who)})\n" for note, who in sorted(notes.items()))


def _class_sizes(records: Records) -> Iterator[list[str]]:
    """A row for each line of the picture (pictures.py)."""
    lines = {case.of_class_size(Case.per_class).by(p) for run in by_class_size() for case in run.cases for p in run.providers}
    for case in sorted(lines, key=lambda c: (LOSSES.index(c.loss), c.batch, c.dim, tuple(PROVIDERS).index(c.provider))):
        ratios = [records.number(case.of_class_size(k), "ratio_to_floor") for k in CLASS_SIZES]
        if case.provider != "floor" and any(ratios):
            who = "ours" if case.provider == "native" else case.provider
            yield [case.loss.removesuffix("Loss"), str(case.batch), str(case.dim), who, *map(_short, ratios)]


def write(records: Records, path: Path) -> None:
    path.write_text(render(records))


_LEGEND = """\
A step is forward and backward. "ours" is the native backend, or the best usable one where a note says so. A ratio above
1 in the columns after "ours / floor" means that ours is faster. The floor is three matrix products of B x B values;
NPairs multiplies only one row per class and is below it. BatchAllTriplet is TripletMargin with the parameters of
sentence-transformers ("st"). In bfloat16 the floor, eager, compile and PML multiply in
bfloat16, ours in float32. MB is peak memory beyond what was in use before the step.
"""


def _provenance(records: Records) -> str:
    rows = [row for row in records.rows.values() if row["date"]]
    origins = sorted({(r["cpu"], r["threads"], r["torch"], r["version"]) for r in rows})
    dates = sorted({r["date"] for r in rows})
    lines = [f"{cpu}; {threads} threads; torch {torch}; metric-kernels {own}" for cpu, threads, torch, own in origins]
    return "\n".join([*lines, " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "no results"]) + "\n"


def _ours(records: Records, case: Case) -> Case:
    return next((c for c in map(case.by, OURS) if records.number(c, "median_ms")), case.by(OURS[0]))


def _row(records: Records, case: Case) -> list[str]:
    ours = _ours(records, case)
    mine = records.number(ours, "median_ms")

    def slower(provider):
        its = records.number(case.by(provider), "median_ms")
        return f"{_short(its / mine)}x" if its and mine else _NOTHING

    def cell(chosen, column):
        return _short(records.number(chosen, column))

    return (
        [case.loss.removesuffix("Loss"), cell(ours, "ratio_to_floor"), *(slower(p) for p in ("numba", *_OTHERS))]
        + [cell(ours, "median_ms"), *(cell(case.by(p), "median_ms") for p in ("numba", *_OTHERS, "floor"))]
        + [cell(chosen, "peak_mb") for chosen in (ours, case.by("eager"), case.by("pml"))]
    )


def _notes(records: Records, case: Case) -> Iterator[str]:
    ours = _ours(records, case)
    if ours.provider != OURS[0] and records.number(ours, "median_ms"):
        yield f"ours: is {ours.provider} here"
    for provider in PROVIDERS:
        row = records.get(case.by(provider))
        if row and row["note"]:
            yield f"{provider}: {row['note']}"


def _short(number: float | None) -> str:
    if number is None:
        return _NOTHING
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _markdown(rows: list[list[str]]) -> str:
    """A table without the columns in which nothing was measured."""
    columns = [column for column in zip(*rows) if set(column[1:]) != {_NOTHING}]
    rows, widths = list(zip(*columns)), [max(map(len, column)) for column in columns]
    rows = [rows[0], ["-" * widths[0]] + ["-" * (w - 1) + ":" for w in widths[1:]], *rows[1:]]
    pad = [str.ljust] + [str.rjust] * (len(widths) - 1)
    return "".join("| " + " | ".join(f(c, w) for f, c, w in zip(pad, row, widths)) + " |\n" for row in rows)
