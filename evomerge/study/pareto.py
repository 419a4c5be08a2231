"""Who is beaten by nobody in every respect, and how much room they cover."""

from __future__ import annotations

from collections.abc import Sequence

Point = Sequence[float]  # more is better in every place


def dominates(a: Point, b: Point) -> bool:
    """At least as good everywhere and better somewhere."""
    return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))


def front(points: Sequence[Point]) -> list[int]:
    """Places of the points that no other dominates; of equal ones the first."""
    kept = []
    for i, point in enumerate(points):
        beaten = any(dominates(other, point) or (tuple(other) == tuple(point) and j < i) for j, other in enumerate(points))
        if not beaten:
            kept.append(i)
    return kept


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The volume between the reference and the points, exactly: slices along the last objective (Zitzler & Thiele, 1999)."""
    inside = [tuple(p) for p in points if all(x > r for x, r in zip(p, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return float(max(p[0] for p in inside) - reference[0])
    volume, below = 0.0, reference[-1]
    for height in sorted({p[-1] for p in inside}):
        above = [p[:-1] for p in inside if p[-1] >= height]
        volume += (height - below) * hypervolume([above[i] for i in front(above)], reference[:-1])
        below = height
    return float(volume)
