"""A fingerprint of a file of formulas, so that compiled code can be told from code that has changed since.

Shared by the build (csrc/generate.py, which loads this file by its path) and by backends/native.py.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

_PARTS = ("pair", "dpair", "drow", "dcol", "row", "value", "dvalue")


@functools.cache
def digest(path: str) -> str:
    """SHA-256 of the formulas in a Python file: the functions of stages and metrics, and class attributes such as stats."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    bodies = (node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    parts = [s for body in bodies for s in body if isinstance(s, ast.Assign) or getattr(s, "name", None) in _PARTS]
    return hashlib.sha256("\n".join(map(ast.unparse, parts)).encode()).hexdigest()
