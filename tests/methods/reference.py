"""Every method again in float64 NumPy, an element at a time where it can be: slow, and sharing no code with evomerge."""

import math

import numpy as np

from evomerge import masks


def merge(method, base, sources, knobs, names, seed=0, tensor="t"):
    base, sources = np.asarray(base, np.float64).ravel(), [np.asarray(s, np.float64).ravel() for s in sources]
    if method == "linear":
        total = sum(w * s for w, s in zip(knobs["weight"], sources, strict=True))
        return total / (sum(knobs["weight"]) if knobs.get("normalize", True) else 1)
    if method == "passthrough":
        return knobs.get("scale", 1.0) * sources[0]
    if method == "slerp":
        return slerp(base, sources[0], knobs["t"])
    deltas = [source - base for source in sources]
    kept, rescale = deltas, [1.0] * len(deltas)
    if method == "ties":
        kept = [trim(delta, density) for delta, density in zip(deltas, knobs["density"], strict=True)]
    if method.startswith("dare"):
        kept, rescale = drop(deltas, knobs, names, seed, tensor)
    add = elect if "ties" in method else plain
    return base + knobs.get("lambda", 1.0) * add([r * d for r, d in zip(rescale, kept, strict=True)], knobs, method)


def plain(deltas, knobs, method):
    total = sum(w * d for w, d in zip(knobs["weight"], deltas, strict=True))
    return total / (sum(knobs["weight"]) if knobs.get("normalize", False) else 1)


def elect(deltas, knobs, method):
    paper, normalize = knobs.get("variant") == "paper", knobs.get("normalize", method == "ties")
    columns = list(zip(*deltas, strict=True))
    majority = 1 if sum(np.sign(sum(column)) for column in columns) >= 0 else -1
    return np.array([elect_one(column, knobs["weight"], paper, normalize, majority) for column in columns])


def elect_one(column, weight, paper, normalize, majority):
    votes = column if paper else [w * d for w, d in zip(weight, column, strict=True)]
    total = sum(votes)
    sign = (np.sign(total) or majority) if paper else (1 if total >= 0 else -1)
    agree = [k for k, vote in enumerate(votes) if vote * sign > 0]
    share = (len(agree) if paper else sum(weight[k] for k in agree)) if normalize else 1
    return sum(weight[k] * column[k] for k in agree) / (share or 1)


def trim(delta, density):
    """By sorting: the largest magnitudes as float32, the lower position first."""
    kept = len(delta) if density >= 1 else max(1, int(density * len(delta))) if density > 0 else 0
    order = sorted(range(len(delta)), key=lambda i: (-np.float32(abs(delta[i])), i))
    result = np.zeros_like(delta)
    result[order[:kept]] = delta[order[:kept]]
    return result


def drop(deltas, knobs, names, seed, tensor):
    kept, rescale = [], []
    for delta, rate, name in zip(deltas, knobs["drop_rate"], names, strict=True):
        stays = masks.uniform(seed, name, tensor, 0, len(delta)).numpy() >= np.float32(rate)
        kept.append(np.where(stays, delta, 0))
        left = np.abs(kept[-1]).sum()
        ratio = 1 / (1 - rate) if knobs.get("variant") == "paper" else np.abs(delta).sum() / left if left > 1e-7 else 1.0
        rescale.append(ratio if knobs.get("rescale", True) else 1.0)
    return kept, rescale


def slerp(a, b, t):
    cosine = a @ b / (np.linalg.norm(a) or 1) / (np.linalg.norm(b) or 1)
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    omega = math.acos(cosine)
    return (math.sin((1 - t) * omega) * a + math.sin(t * omega) * b) / math.sin(omega)
