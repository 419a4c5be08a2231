"""The C++ side against plain torch: not near it, but the same bits, so that no study's bytes depend on a compiler."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge import kernels, masks
from evomerge.errors import MissingExtra
from evomerge.kernels import compiled, native
from evomerge.masks import Ballot, Bands, Drops, Ranked
from evomerge.methods import combine as specification
from evomerge.methods.inputs import Inputs
from evomerge.methods.table import METHODS, merge_tensor
from evomerge.methods.threshold import Magnitudes
from tests.methods.cases import KNOBS, OTHERWISE, inputs

pytestmark = pytest.mark.skipif(compiled.functions() is None, reason="no C++ compiler")
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
RANKS = st.sampled_from([torch.int16, torch.int32])
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
both = pytest.mark.parametrize("table", [KNOBS, OTHERWISE], ids=["usual", "otherwise"])


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """The sign of a zero too; of a NaN only that it is one."""
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    word = WORDS[one.element_size()]
    return bool(((one.view(word) == other.view(word)) | (one.isnan() & other.isnan())).all())


def on_both_sides(function, *arguments, **options):
    results = []
    for side in ("native", "torch"):
        with kernels.backend(side):
            results.append(function(*arguments, **options))
    return results


def values(size, seed, dtype, *, odd=False):
    """Numbers of all sizes; zeros of both signs, equal ones, and where `odd` what is no finite number."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(size, generator=generator) * 10 ** torch.randint(-4, 2, (size,), generator=generator)
    numbers[::3] = numbers[::3].bfloat16().float()
    numbers[::7], numbers[1::11] = 0.0, -0.0
    if odd:
        numbers[::13], numbers[1::17], numbers[2::19] = math.nan, math.inf, -math.inf
    return numbers.to(dtype)


@st.composite
def merges(draw):
    """Arguments of `combine`: any number of sources, dtypes, masks, ballots and groups of rows."""
    size, count, seed = draw(st.sampled_from([0, 1, 3, 63, 100, 520, 2000])), draw(st.integers(1, 16)), draw(st.integers(0, 99))
    odd, dtypes = draw(st.booleans()), st.sampled_from(DTYPES[: draw(st.integers(1, 4))])
    base = values(size, seed, draw(dtypes), odd=odd) if draw(st.booleans()) else None
    sources = [values(size, 100 * seed + k + 1, draw(dtypes), odd=odd) for k in range(count)]
    numbers = st.floats(-2, 2, width=32)
    groups, subtract = draw(st.sampled_from([1, 1, 2, 5])), draw(st.booleans())
    weight = [[draw(numbers) for _ in range(draw(st.sampled_from([1, groups])))] for _ in range(count)]
    options = {
        "keep": draw(keeps(base, sources, subtract)),
        "ballot": draw(st.none() | st.builds(Ballot, st.booleans(), st.booleans(), st.sampled_from([1, -1]))),
        "scale": [draw(numbers | st.just(1.0)) for _ in range(draw(st.sampled_from([1, groups])))],
        "subtract": subtract,
        "dtype": draw(st.none() | st.sampled_from(DTYPES)),
    }
    return (base, sources, weight), options


@st.composite
def keeps(draw, base, sources, subtract):
    kind, size = draw(st.sampled_from(["all", "trim", "drop", "band", "rank"])), sources[0].numel()
    if kind == "all" or not size:
        return None
    share, keys = st.floats(0, 1), tuple(masks.key(0, str(k), "t") for k in range(len(sources)))
    if kind == "drop":
        rates = tuple(draw(share) for _ in sources)
        return Drops(rates, keys, tuple(1 + rate for rate in rates))
    if kind == "rank":
        width = draw(st.sampled_from([1, size]))
        wide = any(tensor.dtype == torch.float64 for tensor in (*sources, sources[0] if base is None else base))
        chances = torch.rand(len(sources), width, 2, generator=torch.Generator().manual_seed(size))
        ranks = tuple(torch.arange(size, dtype=draw(RANKS)).flip(0) % width for _ in sources[:1]) * len(sources)
        return Ranked(ranks, chances.to(torch.float64 if wide else torch.float32), keys, tuple(1.5 for _ in sources))
    deltas = specification.Deltas(base, sources, None, subtract).whole(slice(0, size)).nan_to_num(0, math.inf, -math.inf).float()
    vectors = [Magnitudes(lambda piece, d=delta: d[piece], size) for delta in deltas]
    if kind == "band":
        outer, inner = zip(*(vector.band(draw(share), draw(share)) for vector in vectors), strict=True)
        return Bands(outer, inner, tuple(1.25 for _ in sources))
    return [vector.trim(draw(share)) for vector in vectors]


@given(merges())
@settings(max_examples=100, deadline=None)
def test_any_merge_has_the_bits_of_plain_torch(merge):
    arguments, options = merge

    compiled_one, plain = on_both_sides(specification.combine, *arguments, **options)

    assert same_bits(compiled_one, plain)


@given(merges())
@settings(max_examples=100, deadline=None)
def test_norms_and_majorities_are_the_same_numbers(merge):
    (base, sources, _), options = merge
    asked = {"keep": options["keep"], "subtract": options["subtract"]}

    for function in (specification.norms, specification.balance):
        one, other = on_both_sides(function, base, sources, **asked)
        assert repr(one) == repr(other)  # nan is nan


@pytest.mark.parametrize("method", METHODS)
@both
@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 63, 100_001])
def test_every_method_has_the_bits_of_plain_torch(method, table, resident, dtype, size):
    def merge():
        return merge_tensor(method, inputs(method, (size,), dtype, resident=resident), table[method])

    compiled_one, plain = on_both_sides(merge)

    assert same_bits(compiled_one, plain)


@pytest.mark.parametrize("name", ["combine", "norms", "balance"])
def test_a_twin_has_the_signature_of_its_reference(name):
    assert inspect.signature(getattr(native, name)) == inspect.signature(getattr(specification, name))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_number_of_16_bits_is_read_as_torch_reads_it(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)

    read, plain = on_both_sides(specification.combine, None, [every], [(1.0,)], subtract=False, dtype=torch.float32)

    assert same_bits(read, plain)


@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_every_rounding_is_torch_s(wide, dtype):
    short = torch.bfloat16 if dtype is torch.float32 else dtype
    between = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(short).to(wide)
    halfway = torch.cat([(between[1:] + between[:-1]) / 2 * (1 + shift * 2.0**-20) for shift in (-1, 0, 1)])

    rounded, plain = on_both_sides(specification.combine, None, [halfway], [(1.0,)], subtract=False, dtype=dtype)

    assert same_bits(rounded, plain)


def test_masks_are_the_bits_of_philox_wherever_a_stretch_begins():
    key, size = masks.key(7, "math", "t"), 3001
    numbers = masks.draw(key, 0, size)

    for rate in (0.5, *numbers[[0, 1, 2, 511, 513, 3000]].tolist()):  # a number that equals the rate is kept
        drops = Drops((rate,), (key,), (1.0,))
        with kernels.backend("native"):
            kept = specification.combine(None, [torch.ones(size)], [(1.0, 1.0, 1.0)], keep=drops, subtract=False)
        assert torch.equal(kept == 1, numbers >= torch.tensor(rate))


def test_threads_change_no_bit(monkeypatch):
    given = inputs("dare_ties", (5003,), torch.float32)
    alone = merge_tensor("dare_ties", given, KNOBS["dare_ties"])
    threads = torch.get_num_threads()
    monkeypatch.setattr(native, "SHARE", 1002)  # no multiple of 4

    torch.set_num_threads(3)
    try:
        together = merge_tensor("dare_ties", inputs("dare_ties", (5003,), torch.float32), KNOBS["dare_ties"])
    finally:
        torch.set_num_threads(threads)

    assert same_bits(together, alone)


def test_sources_may_lie_in_columns_or_with_gaps():
    given = inputs("ties", (40, 30), torch.float32)
    odd = Inputs(given.base.T, (given.sources[0].T, given.sources[1].T.bfloat16(), given.sources[2].T.half()), given.place)
    gaps = Inputs(given.base.view(-1)[::2], tuple(source.view(-1)[::2] for source in given.sources), given.place)

    for case in (odd, gaps):
        compiled_one, plain = on_both_sides(merge_tensor, "ties", case, KNOBS["ties"])
        assert same_bits(compiled_one, plain)


@pytest.mark.parametrize(
    ("sources", "dtype"),
    [([torch.ones(2)] * 17, None), ([torch.ones(2).to(torch.float8_e4m3fn)], None), ([torch.ones(2)], torch.float8_e4m3fn)],
    ids=["17 sources", "from float8", "to float8"],
)
def test_what_the_compiled_side_does_not_know_stays_with_torch(sources, dtype):
    with kernels.backend("native"):
        assert kernels.twin("combine", None, sources, None, dtype) is None
        merged = specification.combine(None, sources, [(1.0,)] * len(sources), subtract=False, dtype=dtype)

    assert merged.float().eq(len(sources)).all()


@given(st.sampled_from(DTYPES), st.integers(1, 3000), st.data())
def test_one_value_that_is_no_number_is_found_wherever_it_stands(dtype, size, data):
    tensor = values(size, 0, dtype)
    tensor[-1] = torch.finfo(dtype).max
    place, odd = data.draw(st.integers(0, size - 1)), data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))

    sound = native.finite(tensor)
    tensor[place] = odd

    assert sound
    assert not native.finite(tensor)
    assert native.finite(tensor[:place])
    assert native.finite(tensor[place + 1 :])


def test_on_a_cpu_it_is_taken_unless_torch_is_asked_for():
    assert kernels.side(torch.zeros(1)) == "native"
    with kernels.backend("torch"):
        assert kernels.side(torch.zeros(1)) == "torch"


def test_asked_for_where_it_is_not_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(kernels, "functions", lambda: None)

    assert kernels.side(torch.zeros(1)) == "torch"
    with pytest.raises(MissingExtra, match="install a C\\+\\+ compiler"), kernels.backend("native"):
        pass
