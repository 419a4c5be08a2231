"""Forward passes that compute nothing twice: a question's choices share its prompt, questions share their prefix.

A row is one prompt followed by a tree of continuations: each token sees the prompt, its own ancestors and nothing else,
and has the position that it would have alone. Rows that begin alike come after one pass over what they share.
The same sums as one plain pass per request, to rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Architectures of one build: RMS norms, rotary attention over all earlier tokens, gated MLP, logits = head(hidden state).
KNOWN = ("llama", "mistral", "qwen2", "qwen3")
GRAIN = 16  # prefixes are compared in steps of so many tokens
WORTH = 256  # tokens that sharing a prefix must save, to be worth a pass of its own


class KeyValue(NamedTuple):
    """What a layer remembers of tokens it has read."""

    key: Tensor  # [B, heads, T, D]
    value: Tensor


@dataclass
class View:
    """What the tokens of one forward pass see: themselves in their own order, and what was read before."""

    mask: Tensor | None = None  # [B, queries, keys] bool; None: each token sees those before it
    before: Sequence[Sequence[KeyValue]] | None = None  # for each row, per layer, [heads, T, D]
    keep: bool = False
    kept: list[KeyValue] = field(default_factory=list)  # per layer, of this pass
    memory: Memory | None = None
    _room: KeyValue | None = None
    _folded: Tensor | None = None

    def extend(self, layer: int, key: Tensor, value: Tensor) -> KeyValue:
        """All keys and values that the queries of a layer may see."""
        if self.keep:
            self.kept.append(KeyValue(key, value))
        if self.memory is not None:
            return self.memory.write(layer, key, value)
        if self.before is None:
            return KeyValue(key, value)
        shared = max(row[layer].key.shape[1] for row in self.before)
        if self._room is None:  # one for all layers: memory that is new each time costs more than what is written into it
            self._room = KeyValue(*(_zeros(part, shared + part.shape[2]) for part in (key, value)))
        _fill(self._room, [row[layer] for row in self.before])
        self._room.key[:, :, shared:] = key
        self._room.value[:, :, shared:] = value
        return self._room

    def folded(self, groups: int, dtype: torch.dtype) -> Tensor:
        """The mask for queries whose heads of one group stand one after the other, as what is added to their scores."""
        if self._folded is None:
            assert self.mask is not None
            added = torch.zeros(self.mask.shape, dtype=dtype, device=self.mask.device).masked_fill_(~self.mask, -torch.inf)
            self._folded = added.repeat(1, groups, 1)[:, None]
        return self._folded


@dataclass
class Memory:
    """Keys and values of growing rows; each row writes behind its own length."""

    layers: list[KeyValue]  # [B, heads, room, D]
    lengths: Tensor  # [B]

    @classmethod
    def of(cls, rows: Sequence[Sequence[KeyValue]], room: int) -> Memory:
        """`rows`: for each row, per layer, [heads, T, D]; `room` more tokens will come."""
        lengths = torch.tensor([row[0].key.shape[1] for row in rows], device=rows[0][0].key.device)
        size = int(lengths.max()) + room
        layers = []
        for layer in range(len(rows[0])):
            parts = [row[layer] for row in rows]
            layers.append(KeyValue(*(_zeros(part[None], size, len(rows)) for part in parts[0])))
            _fill(layers[-1], parts)
        return cls(layers, lengths)

    def write(self, layer: int, key: Tensor, value: Tensor) -> KeyValue:
        new = key.shape[2]
        places = self.lengths[:, None] + torch.arange(new, device=key.device)  # [B, new]
        batch = torch.arange(len(key), device=key.device)[:, None]
        top = int(self.lengths.max()) + new
        keys, values = self.layers[layer]
        keys[batch, :, places] = key.transpose(1, 2)
        values[batch, :, places] = value.transpose(1, 2)
        return KeyValue(keys[:, :, :top], values[:, :, :top])

    def mask(self, new: int) -> Tensor:
        """Each new token sees its row up to itself: [B, new, top]."""
        top = int(self.lengths.max()) + new
        last = self.lengths[:, None] + torch.arange(new, device=self.lengths.device)
        return torch.arange(top, device=self.lengths.device) <= last[:, :, None]

    def select(self, rows: Tensor) -> Memory:
        return Memory([KeyValue(key[rows], value[rows]) for key, value in self.layers], self.lengths[rows])

    @property
    def room(self) -> int:
        return self.layers[0].key.shape[2] - int(self.lengths.max())

    def widen(self, room: int) -> None:
        self.layers = [KeyValue(*(functional.pad(part, (0, 0, 0, room)) for part in layer)) for layer in self.layers]


def _zeros(like: Tensor, size: int, rows: int | None = None) -> Tensor:
    """Room for `size` tokens in each row; zeros, for what is masked must still be a number."""
    return like.new_zeros(rows or like.shape[0], like.shape[1], size, like.shape[3])


def _fill(room: KeyValue, parts: Sequence[KeyValue]) -> None:
    """Rows of unequal lengths to the beginnings of their rows."""
    for row, (key, value) in enumerate(parts):
        room.key[row, :, : key.shape[1]] = key
        room.value[row, :, : value.shape[1]] = value


def usable(module: Any) -> bool:
    """Can this module be run in these passes? Others are left to transformers."""
    config = module.config
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    # the tables of dynamic types depend on the longest row of a batch
    return (
        config.model_type in KNOWN and set(layers) == {"full_attention"} and not windowed and rope not in ("dynamic", "longrope")
    )


@dataclass(frozen=True)
class Forward:
    """A live transformers module, its layers run one operation after the other: half the time of small passes goes to the frame
    around them. Tokens see what the pass's View shows them, and no key or value is copied for the query heads that share it."""

    module: Any

    @torch.inference_mode()
    def hidden(self, tokens: Tensor, positions: Tensor, view: View) -> Tensor:
        """[B, S, hidden] of tokens [B, S]."""
        model = self.module.base_model
        x = functional.embedding(tokens, model.embed_tokens.weight)
        cos, sin = model.rotary_emb(x, positions)
        half = cos.shape[-1] // 2
        turn = cos[:, :, None], torch.cat((-sin[..., :half], sin[..., half:]), -1)[:, :, None]  # [B, S, 1, D]
        for layer in model.layers:
            x = x + _attention(layer.self_attn, _norm(layer.input_layernorm, x), turn, view)
            x = x + _mlp(layer.mlp, _norm(layer.post_attention_layernorm, x))
        return _norm(model.norm, x)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.module.get_output_embeddings()(hidden).float()
        return logits

    def read(self, prefixes: Sequence[Sequence[int]]) -> list[list[KeyValue]]:
        """For each prefix what the layers remember of it: [heads, T, D]."""
        width = max(map(len, prefixes))
        tokens = torch.tensor([[*prefix, *[0] * (width - len(prefix))] for prefix in prefixes], device=self.module.device)
        view = View(keep=True)
        self.hidden(tokens, torch.arange(width, device=tokens.device)[None].expand(len(prefixes), -1), view)
        return [
            [KeyValue(key[row, :, : len(prefix)].clone(), value[row, :, : len(prefix)].clone()) for key, value in view.kept]
            for row, prefix in enumerate(prefixes)
        ]


def _attention(block: Any, x: Tensor, turn: tuple[Tensor, Tensor], view: View) -> Tensor:
    width = block.head_dim
    query, key, value = (_linear(part, x).view(*x.shape[:2], -1, width) for part in (block.q_proj, block.k_proj, block.v_proj))
    if hasattr(block, "q_norm"):
        query, key = _norm(block.q_norm, query), _norm(block.k_norm, key)
    seen = view.extend(block.layer_idx, _rotate(key, turn).transpose(1, 2), value.transpose(1, 2))
    return _linear(block.o_proj, _attend(_rotate(query, turn).transpose(1, 2), seen, view, block.scaling).flatten(2))


def _attend(query: Tensor, seen: KeyValue, view: View, scale: float) -> Tensor:
    """[B, S, H, D] of queries [B, H, S, D]."""
    batch, heads, new, width = query.shape
    if view.mask is None:
        out = functional.scaled_dot_product_attention(query, *seen, is_causal=new > 1, scale=scale, enable_gqa=True)
        return out.transpose(1, 2)
    groups = heads // seen.key.shape[1]  # query heads of one key head stand behind one another, as more queries
    folded = query.reshape(batch, -1, groups * new, width)
    out = functional.scaled_dot_product_attention(folded, *seen, attn_mask=view.folded(groups, query.dtype), scale=scale)
    return out.reshape(batch, heads, new, width).transpose(1, 2)


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """RoPE (Su et al. 2021, https://arxiv.org/abs/2104.09864, eq. 34), in the halves that transformers keeps."""
    cos, sin = turn
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def _mlp(block: Any, x: Tensor) -> Tensor:
    return _linear(block.down_proj, block.act_fn(_linear(block.gate_proj, x)).mul_(_linear(block.up_proj, x)))


def _norm(block: Any, x: Tensor) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], block.weight, block.variance_epsilon)


def _linear(block: Any, x: Tensor) -> Tensor:
    return functional.linear(x, block.weight, block.bias)


@dataclass
class Tree:
    """A prompt and the continuations to be scored behind it; its first `shared` tokens are read elsewhere."""

    prompt: Sequence[int]
    continuations: list[Sequence[int]] = field(default_factory=list)
    shared: int = 0

    def grow(self) -> Row:
        """The tokens to read, each with its parent; the last token of a continuation predicts nothing and is not read."""
        tokens = list(self.prompt[self.shared :])
        positions = list(range(self.shared, len(self.prompt)))
        parents = list(range(-1, len(tokens) - 1))
        children: dict[tuple[int, int], int] = {}
        reads: list[list[int]] = []
        for continuation in self.continuations:
            node, nodes = len(self.prompt) - self.shared - 1, []
            for depth, token in enumerate(continuation):
                nodes.append(node)
                if depth < len(continuation) - 1 and (node, token) not in children:
                    children[node, token] = len(tokens)
                    tokens.append(token)
                    positions.append(len(self.prompt) + depth)
                    parents.append(node)
                node = children.get((node, token), -1)
            reads.append(nodes)
        return Row(tokens, positions, parents, reads)


class Row(NamedTuple):
    """A tree as it is fed to the model."""

    tokens: list[int]
    positions: list[int]
    parents: list[int]
    reads: list[list[int]]  # for each continuation, the nodes that predict its tokens

    @property
    def is_chain(self) -> bool:
        return self.parents == list(range(-1, len(self.tokens) - 1))

    def sees(self) -> Tensor:
        """[S, S]: each token sees its ancestors and itself."""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


@dataclass
class Batch:
    """Rows read in one pass, as tensors: made once, used for every candidate."""

    trees: Sequence[Tree]
    device: torch.device

    def __post_init__(self) -> None:
        rows = [tree.grow() for tree in self.trees]
        width = max(len(row.tokens) for row in rows)
        self.tokens = self._pad([row.tokens for row in rows], width)
        self.positions = self._pad([row.positions for row in rows], width)
        self.shared = max(tree.shared for tree in self.trees)
        self.mask = None if self.shared == 0 and all(row.is_chain for row in rows) else self._mask(rows, width)
        picks = [(b * width + node, token) for b, row in enumerate(rows) for node, token in _picks(row, self.trees[b])]
        nodes = sorted({node for node, _ in picks})
        place = {node: i for i, node in enumerate(nodes)}
        self.nodes = torch.tensor(nodes, device=self.device)  # the positions whose logits are wanted
        self.where = torch.tensor([place[node] for node, _ in picks], device=self.device)
        self.wanted = torch.tensor([token for _, token in picks], device=self.device)
        self.lengths = [len(continuation) for tree in self.trees for continuation in tree.continuations]

    def _pad(self, rows: list[list[int]], width: int) -> Tensor:
        return torch.tensor([row + [0] * (width - len(row)) for row in rows], device=self.device)

    def _mask(self, rows: list[Row], width: int) -> Tensor:
        mask = torch.zeros(len(rows), width, self.shared + width, dtype=torch.bool)
        mask[:, :, self.shared :] = torch.eye(width, dtype=torch.bool)  # padding too: a token that sees nothing would be NaN
        for b, row in enumerate(rows):
            mask[b, :, : self.trees[b].shared] = True
            mask[b, : len(row.tokens), self.shared : self.shared + len(row.tokens)] = row.sees()
        return mask.to(self.device)

    def logits(self, forward: Forward, view: View) -> Tensor:
        """[nodes, vocabulary], of the positions that predict a continuation."""
        view.mask = self.mask
        return forward.logits(forward.hidden(self.tokens, self.positions, view).flatten(0, 1)[self.nodes])

    def score(self, forward: Forward, view: View) -> list[tuple[float, bool]]:
        """For each continuation its log-probability, and whether it is what a greedy model says."""
        logs = torch.log_softmax(self.logits(forward, view), -1)
        greedy = (logs.argmax(-1)[self.where] == self.wanted).tolist()
        values = logs[self.where, self.wanted].tolist()
        ends = list(itertools.accumulate(self.lengths, initial=0))
        return [(sum(values[a:b]), all(greedy[a:b])) for a, b in itertools.pairwise(ends)]


def _picks(row: Row, tree: Tree) -> list[tuple[int, int]]:
    pairs = zip(row.reads, tree.continuations, strict=True)
    return [(node, token) for nodes, continuation in pairs for node, token in zip(nodes, continuation, strict=True)]
