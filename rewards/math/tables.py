r"""Answers in several rows: matrices, column vectors, systems of equations, aligned calculations."""

from __future__ import annotations

from rewards.math.kinds import Kind, Token, Tokens, split
from rewards.math.notation import words
from rewards.math.regions import INEQUALITIES, Read, Same
from rewards.math.shapes import Group, Matrix, Shape
from rewards.math.values import Leaf, every

_MATRICES = frozenset(rf"\begin {name}" for name in words("pmatrix bmatrix matrix vmatrix Bmatrix smallmatrix array"))
_LINES = frozenset(
    rf"\begin {name}"
    for name in words(
        "aligned align alignat alignedat gather gathered split multline equation eqnarray cases dcases rcases math"
        " displaymath flalign center"
    )
)
_ROW = "\\\\"
_FEW = 64
"""Rows and columns that are read."""


def table(written: Tokens, read: Read, depth: int) -> Shape | None:
    """What stands in an environment that embraces everything."""
    if [t.text[:7] for t in written[:2]] == [r"\{", r"\begin "] and written[-1].text.startswith(r"\end "):
        written = (Token(Kind.COMMAND, r"\begin cases"), *written[2:-1], Token(Kind.COMMAND, r"\end cases"))
    if written[0].text in _LINES and written[-1].text.startswith(r"\end "):
        return _lines(written[1:-1], read, depth)
    return _matrix(written, read, depth)


def _lines(inner: Tokens, read: Read, depth: int) -> Shape | None:
    """One answer a line; a line that begins with a sign continues the one before."""
    lines: list[Tokens] = []
    for line in split(inner, (_ROW,)):
        plain = tuple(token for part in split(line, ("&",)) for token in part)
        if lines and plain and plain[0].text in ("=", "+", "-", *INEQUALITIES):
            lines[-1] = (*lines[-1], *plain)
        elif plain:
            lines.append(plain)
    if not 0 < len(lines) <= _FEW:
        return None
    comma = Token(Kind.OPERATOR, ",")
    listed = [token for line in lines for token in (*line, comma)][:-1]
    return read(tuple(listed), depth + 1)


def _matrix(written: Tokens, read: Read, depth: int) -> Shape | None:
    start = next((n for n, token in enumerate(written) if token.text in _MATRICES), None)
    if start is None or not written[-1].text.startswith(r"\end "):
        return None
    factor, inner = written[:start], written[start + 1 : -1]
    if any(token.text in (",", ";", *INEQUALITIES, "=") for token in factor):
        return None
    if any(token.text.startswith((r"\begin ", r"\end ")) for token in inner):
        return None
    rows = [row for row in split(inner, (_ROW,)) if row]
    if len(rows) > _FEW:
        return None
    cells = tuple(tuple(read(_times(factor, cell), depth + 1) for cell in split(row, ("&",))) for row in rows)
    bars = written[start].text == r"\begin vmatrix"
    return Matrix(cells, bars) if cells and all(len(row) == len(cells[0]) <= _FEW for row in cells) else None


def _times(factor: Tokens, cell: Tokens) -> Tokens:
    """An entry of a matrix that has a factor in front."""
    if not factor:
        return cell
    opened, closed = Token(Kind.OPERATOR, "("), Token(Kind.OPERATOR, ")")
    factor = (factor[0], Token(Kind.NUMBER, "1")) if [t.text for t in factor] in (["-"], ["+"]) else factor
    return (opened, *factor, closed, Token(Kind.OPERATOR, "*"), opened, *cell, closed)


def same_matrices(gold: Shape, answer: Shape, same: Same, leaf: Leaf) -> bool | None:
    """Whether two matrices agree cell by cell, one of which may be a vector or rows in brackets."""
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        if gold.is_determinant != answer.is_determinant:
            return False
        if (len(gold.rows), len(gold.rows[0])) != (len(answer.rows), len(answer.rows[0])):
            return False
        return every(same(g, a, leaf) for g, a in zip(_cells(gold), _cells(answer), strict=True))
    matrix, other = (gold, answer) if isinstance(gold, Matrix) else (answer, gold)
    assert isinstance(matrix, Matrix)
    if not isinstance(other, Group) or matrix.is_determinant:
        return False
    flat = _as_vector(matrix, other) or _as_rows(matrix, other)
    if flat is None:
        return False
    pairs = zip(_cells(matrix), flat, strict=True)
    return every(same(*((cell, item) if matrix is gold else (item, cell)), leaf) for cell, item in pairs)


def _as_vector(matrix: Matrix, group: Group) -> tuple[Shape, ...] | None:
    """The entries of a vector in brackets, if the matrix has one row or column of as many."""
    if group.brackets not in ("()", "<>", "[]") or 1 not in (len(matrix.rows), len(matrix.rows[0])):
        return None
    return group.items if len(group.items) == len(_cells(matrix)) else None


def _as_rows(matrix: Matrix, group: Group) -> tuple[Shape, ...] | None:
    """The entries of rows in brackets, if they are as many and as long as the matrix's."""
    rows = [row for row in group.items if isinstance(row, Group) and row.brackets == "[]"]
    if len(rows) != len(group.items) or len(rows) != len(matrix.rows):
        return None
    if {len(row.items) for row in rows} != {len(matrix.rows[0])}:
        return None
    return tuple(item for row in rows for item in row.items)


def _cells(matrix: Matrix) -> list[Shape]:
    return [cell for row in matrix.rows for cell in row]
