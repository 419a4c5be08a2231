"""Every method again in float64 NumPy, an element at a time where it can be: slow, and sharing no code with evomerge."""

import math

import numpy as np

from evomerge import masks


def merge(method, base, sources, knobs, names, seed=0, tensor="t"):
    shape = np.shape(base)
    base, sources = np.asarray(base, np.float64).ravel(), [np.asarray(s, np.float64).ravel() for s in sources]
    if method == "linear":
        total = sum(w * s for w, s in zip(knobs["weight"], sources, strict=True))
        return total / (sum(knobs["weight"]) if knobs.get("normalize", True) else 1)
    if method == "passthrough":
        return knobs.get("scale", 1.0) * sources[0]
    if method == "slerp":
        return slerp(base, sources[0], knobs["t"], 1 - 1e-12 if knobs.get("variant") == "paper" else 0.9995)
    if method in OTHERS:
        return OTHERS[method](base, sources, knobs, shape)
    deltas = [source - base for source in sources]
    kept, rescale = deltas, [1.0] * len(deltas)
    if method == "ties":
        kept = [trim(delta, density) for delta, density in zip(deltas, knobs["density"], strict=True)]
        rescale = lengthen(deltas, kept, knobs.get("rescale", False))
    if method.startswith("breadcrumbs"):
        pairs = zip(deltas, each(knobs["density"], deltas), each(knobs["gamma"], deltas), strict=True)
        kept = [band(*numbers) for numbers in pairs]
        rescale = lengthen(deltas, kept, knobs.get("rescale", False))
    if method.startswith("dare"):
        kept, rescale = drop(deltas, knobs, names, seed, tensor)
    if method.startswith("della"):
        kept, rescale = magprune(deltas, knobs, names, seed, tensor, shape)
    add = elect if "ties" in method or method == "della" else plain
    return base + knobs.get("lambda", 1.0) * add([r * d for r, d in zip(rescale, kept, strict=True)], knobs, method)


def plain(deltas, knobs, method):
    total = sum(w * d for w, d in zip(knobs["weight"], deltas, strict=True))
    return total / (sum(knobs["weight"]) if knobs.get("normalize", False) else 1)


def elect(deltas, knobs, method):
    paper, normalize = knobs.get("variant") == "paper", knobs.get("normalize", method in ("ties", "della"))
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


def each(value, deltas):
    return value if isinstance(value, tuple) else (value,) * len(deltas)


def lengthen(deltas, kept, asked):
    lengths = [(np.abs(delta).sum(), np.abs(left).sum()) for delta, left in zip(deltas, kept, strict=True)]
    return [before / after if asked and min(before, after) > 1e-7 else 1.0 for before, after in lengths]


def band(delta, density, gamma):
    """By sorting: without the largest, then without the smallest."""
    size = len(delta)
    if density >= 1:
        return delta
    kept, top = int(density * size), int(gamma * size)
    order = sorted(range(size), key=lambda i: (-np.float32(abs(delta[i])), i))
    first = min(top, size - kept)
    result = np.zeros_like(delta)
    result[order[first : first + kept]] = delta[order[first : first + kept]]
    return result


def magprune(deltas, knobs, names, seed, tensor, shape):
    kept, paper = [], knobs.get("variant") == "paper"
    numbers = zip(deltas, each(knobs["density"], deltas), each(knobs["epsilon"], deltas), names, strict=True)
    for delta, density, epsilon, name in numbers:
        chance = chances(delta, density, min(epsilon, density, 1 - density), shape[-1] if len(shape) > 1 else len(delta))
        stays = masks.uniform(seed, name, tensor, 0, len(delta)).numpy() >= (1 - chance).astype(np.float32)
        stays = stays if 0 < density < 1 else np.full(len(delta), density == 1)
        kept.append(np.where(stays, delta / np.maximum(chance, 1e-300) if paper and 0 < density < 1 else delta, 0))
    return kept, lengthen(deltas, kept, knobs.get("rescale", True) and not paper)


def chances(delta, density, half, width):
    """Each element's chance to stay, by its rank among its row."""
    chance = np.empty(len(delta))
    for start in range(0, len(delta), width):
        row = sorted(range(start, start + width), key=lambda i: (np.float32(abs(delta[i])), i))
        for rank, i in enumerate(row):
            chance[i] = density - half + 2 * half * rank / (width - 1) if width > 1 else density
    return chance


def rows_of(vector, shape):
    return vector.reshape(-1, shape[-1]) if len(shape) > 1 else vector.reshape(1, -1)


def model_stock(base, sources, knobs, shape):
    """Each row by itself where asked, the whole as one row otherwise; cosines one by one."""
    shape = shape if knobs.get("filter_wise") else (base.size,)
    rows = zip(rows_of(base, shape), *(rows_of(source, shape) for source in sources), strict=True)
    return np.concatenate([stock(row, others, knobs) for row, *others in rows])


def stock(base, sources, knobs):
    deltas, k = [source - base for source in sources], len(sources)
    floor = 1e-6 if knobs.get("variant", "mergekit") == "mergekit" else 1e-300
    pairs = [(a, b) for i, a in enumerate(deltas) for b in deltas[i + 1 :]]
    cosine = np.mean([a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), floor) for a, b in pairs])
    t = k * cosine / (1 + (k - 1) * cosine)
    return base + (min(max(t, 0), 1) if knobs.get("clip") else t) * np.mean(deltas, axis=0)


def nuslerp(base, sources, knobs, shape):
    t = knobs["weight"][1] / sum(knobs["weight"])
    origin = base if knobs.get("between") == "deltas" else np.zeros_like(base)
    a, b = (source - origin for source in sources)
    if knobs.get("along") == "columns" and len(shape) > 1:
        flat = shape[0], base.size // shape[0]
        parts = [slerp(x, y, t, 1 - 1e-16) for x, y in zip(a.reshape(flat).T, b.reshape(flat).T, strict=True)]
        return origin + np.stack(parts, 1).ravel()
    if knobs.get("along", "tensor") == "tensor":
        shape = (base.size,)
    parts = [slerp(x, y, t, 1 - 1e-16) for x, y in zip(rows_of(a, shape), rows_of(b, shape), strict=True)]
    return origin + np.concatenate(parts)


def multislerp(base, sources, knobs, shape):
    """As published, with its step in the tangent space."""
    origin = base if knobs.get("between") == "deltas" else np.zeros_like(base)
    weight = np.array(knobs["weight"]) / (sum(knobs["weight"]) if knobs.get("normalize", True) else 1)
    vectors, epsilon = np.stack([source - origin for source in sources]), knobs.get("epsilon", 1e-8)
    lengths = np.linalg.norm(vectors, axis=1)
    units = vectors / (lengths + epsilon)[:, None]
    mean = weight @ units / np.linalg.norm(weight @ units)
    tangent = sum(w * (unit - (unit @ mean) * mean) for w, unit in zip(weight, units, strict=True))
    step = np.linalg.norm(tangent) + 1e-12
    return origin + weight @ lengths * (math.cos(step) * mean + math.sin(step) / step * tangent)


def karcher(base, sources, knobs, shape):
    origin = base if knobs.get("between") == "deltas" else np.zeros_like(base)
    weight = np.array(knobs.get("weight", (1,) * len(sources)), float)
    weight, vectors = weight / weight.sum(), [source - origin for source in sources]
    units = [vector / np.linalg.norm(vector) for vector in vectors]
    mean = sum(w * unit for w, unit in zip(weight, units, strict=True))
    mean /= np.linalg.norm(mean)
    for _ in range(knobs.get("max_iter", 10)):
        angles = [math.acos(max(-1, min(1, mean @ unit))) for unit in units]
        far = [(w, a, u) for w, a, u in zip(weight, angles, units, strict=True) if a >= knobs.get("tol", 1e-5)]
        tangent = sum((w * a / math.sin(a) * (u - math.cos(a) * mean) for w, a, u in far), np.zeros_like(mean))
        step = np.linalg.norm(tangent)
        if step < knobs.get("tol", 1e-5):
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        mean /= np.linalg.norm(mean)
    return origin + sum(w * np.linalg.norm(v) for w, v in zip(weight, vectors, strict=True)) * mean


def sce(base, sources, knobs, shape):
    deltas = np.stack([source - base for source in sources])
    spread = deltas.std(0).astype(np.float32)
    if (share := knobs.get("select_topk", 1.0)) < 1:
        order = sorted(range(len(base)), key=lambda i: (-spread[i], i))
        deltas[:, order[int(share * np.count_nonzero(spread)) :]] = 0
    energy = (deltas**2).mean(1)
    alike = energy.sum() < (0 if knobs.get("variant") == "paper" else 1e-6) or energy.sum() == 0
    weight = np.full(len(sources), 1 / len(sources)) if alike else energy / energy.sum()
    sign = np.where(deltas.sum(0) >= 0, 1, -1)
    agrees = (deltas * sign > 0) * weight[:, None]
    divisor = agrees.sum(0)
    return base + (agrees * deltas).sum(0) / np.where(divisor > 0, divisor, 1)


def nearswap(base, sources, knobs, shape):
    share = np.clip(knobs["t"] / np.maximum(np.abs(base - sources[0]), 1e-6), 0, 1)
    return share * sources[0] + (1 - share) * base


def arcee_fusion(base, sources, knobs, shape):
    parts = []
    for ours, theirs in zip(rows_of(base, shape), rows_of(sources[0], shape), strict=True):
        p, q = (np.exp(row) / np.exp(row).sum() + 1e-8 for row in (theirs, ours))
        parts.append(np.abs(theirs - ours) * (p * np.log(p / q)).sum())
    importance = np.concatenate(parts)
    first, median, third = np.sort(importance)[[int(q * (len(base) - 1)) for q in (0.25, 0.5, 0.75)]]
    return np.where(importance >= median + 1.5 * (third - first), sources[0], base)


def ram(base, sources, knobs, shape):
    """Entry by entry; without `r` nothing is made up for."""
    epsilon, deltas = knobs.get("epsilon", 1e-5), [source - base for source in sources]
    changed = np.stack([np.abs(delta) > epsilon for delta in deltas])
    growth = [1.0] * len(sources)
    if "r" in knobs:
        own, shared = (changed & (changed.sum(0) == 1)).sum(1), (changed & (changed.sum(0) > 1)).sum(1)
        growth = [1 + knobs["r"] * min(knobs["alpha"], s / max(o, epsilon)) for o, s in zip(own, shared, strict=True)]
    result = base.copy()
    for i, column in enumerate(changed.T):
        (who,) = np.nonzero(column)
        if len(who):
            result[i] += growth[who[0]] * deltas[who[0]][i] if len(who) == 1 else np.mean([deltas[k][i] for k in who])
    return result


def tsvm(base, sources, knobs, shape):
    deltas, weight = [source - base for source in sources], each(knobs.get("weight", 1.0), sources)
    scale = knobs.get("lambda", 1.0)
    if len(shape) != 2:
        return base + scale * np.mean([w * delta for w, delta in zip(weight, deltas, strict=True)], axis=0)
    kept = max(1, min(shape) // len(sources))
    parts = [np.linalg.svd(delta.reshape(shape), full_matrices=False) for delta in deltas]
    left = whiten(np.concatenate([u[:, :kept] for u, _, _ in parts], 1))
    right = whiten(np.concatenate([v[:kept].T for _, _, v in parts], 1))
    strength = np.concatenate([w * s[:kept] for w, (_, s, _) in zip(weight, parts, strict=True)])
    return base + scale * (left @ np.diag(strength) @ right.T).ravel()


def whiten(columns):
    """X (XᵀX)^-½"""
    u, _, v = np.linalg.svd(columns, full_matrices=False)
    return u @ v


def iso_c(base, sources, knobs, shape):
    weight = each(knobs.get("weight", 1.0), sources)
    total = sum(w * (source - base) for w, source in zip(weight, sources, strict=True))
    scale = knobs.get("lambda", 1.0)
    if len(shape) != 2:
        return base + scale * total / len(sources)
    matrix = total.reshape(shape)
    return base + scale * np.linalg.svd(matrix, compute_uv=False).mean() * whiten(matrix).ravel()


def fedavg(base, sources, knobs, shape):
    deltas = [source - base for source in sources]
    clipped = [delta * min(1, knobs["clip_norm"] / np.linalg.norm(delta)) for delta in deltas]
    total = sum(n * delta for n, delta in zip(knobs["weight"], clipped, strict=True))
    return base + knobs.get("lambda", 1.0) * total / sum(knobs["weight"])


def average(base, sources, knobs, shape):
    """Fisher averaging and RegMean where nothing was measured."""
    weight = each(knobs.get("weight", 1.0), sources)
    return sum(w * s for w, s in zip(weight, sources, strict=True)) / sum(weight)


OTHERS = {
    "fisher": average,
    "regmean": average,
    "tsvm": tsvm,
    "iso_c": iso_c,
    "fedavg": fedavg,
    "model_stock": model_stock,
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "karcher": karcher,
    "sce": sce,
    "nearswap": nearswap,
    "arcee_fusion": arcee_fusion,
    "ram": ram,
    "ramplus_tl": lambda base, sources, knobs, shape: ram(base, sources, {"r": 0.1, "alpha": 0.2, **knobs}, shape),
}


def slerp(a, b, t, straight):
    cosine = a @ b / (np.linalg.norm(a) or 1) / (np.linalg.norm(b) or 1)
    if abs(cosine) > straight:
        return (1 - t) * a + t * b
    omega = math.acos(cosine)
    return (math.sin((1 - t) * omega) * a + math.sin(t * omega) * b) / math.sin(omega)
