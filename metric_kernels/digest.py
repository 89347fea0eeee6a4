"""A fingerprint of a file of formulas, so that compiled code can be told from code that has changed since.

Shared by the build (csrc/generate.py, which loads this file by its path) and by backends/native.py.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path


@functools.cache
def digest(path: str) -> str:
    """SHA-256 of the syntax of a Python file: comments, docstrings and layout do not count."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()
