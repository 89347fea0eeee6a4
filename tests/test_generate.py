"""The build's printer of C++: what it prints, and that it refuses what is not in the language of formulas."""

import importlib.util
from pathlib import Path

import pytest
from cases import LOSSES

PATH = Path(__file__).parents[1] / "csrc" / "generate.py"
SPEC = importlib.util.spec_from_file_location("generate", PATH)
generate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate)

SOURCE = """\
class Odd:
    stats = (total("pos"),)

    def pair(v, margin):
        {}

    def dpair(v, margin):
        return (1.0,)
"""


def printed(folder, body):
    """The functor of a formula whose pair has this body, in line 5."""
    path = folder / "odd.py"
    path.write_text(SOURCE.format(body))
    ((_, nodes),) = generate.formulas(path)
    return generate.stage(path, nodes[0], "Odd_0", 0, 0)[0]


def test_a_formula_is_printed(tmp_path):
    code = printed(tmp_path, "far = fn.relu(margin - v); return (-far * 2,)")
    assert "const T margin_ = params[0];" in code
    assert "const auto far_ = fn::relu((margin_ - v_));" in code
    assert "out[0] = ((-far_) * T(2.0));" in code
    assert "Kind::total" in code and "Where::pos" in code


def test_every_loss_is_printed():
    code, table = generate.generate(), generate.table()
    assert all(f"{name}_row" in code and f'.{name}"' in table for name in LOSSES)


@pytest.mark.parametrize(
    "body",
    [
        "return (v**2,)",
        "return (v % 2,)",
        "return (v if v > 0 else 0.0,)",
        "return (v > 0 and v < 1,)",
        "return (0 < v < 1,)",
        "return (not v,)",
        "return (v is margin,)",
        "return ('v',)",
        "return (True,)",
        "return (v[0],)",
        "return (v.real,)",
        "return (other.relu(v),)",
        "a = b = v; return (a,)",
        "a, b = v; return (a,)",
        "return",
        "return (relu(v),)",
        "return (fn.special.relu(v),)",
        "return (fn.where(v > 0, v, other=0.0),)",
        "return (max(v, 0.0),)",
        "return ([v][0],)",
        "return tuple(v for _ in (1,))",
        "for _ in (1, 2): v = 2 * v",
        "if v > 0: return (v,)",
        "v += 1.0",
        "v: float = 1.0",
        "import math",
        "assert v > 0",
    ],
)
def test_what_is_not_in_the_language_is_refused_with_its_place(tmp_path, body):
    with pytest.raises(SyntaxError, match=r"odd\.py:5: not in the language of formulas: "):
        printed(tmp_path, body)
