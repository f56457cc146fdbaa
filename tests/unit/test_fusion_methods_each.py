"""Fusion methods one by one: what they compute, by hand and against slow ways; how they are found and set up."""

import re
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fusion_method_inputs import EVERY, dice, draw, extras, inputs, same_bits, ties, trim
from guardkeel.errors import ConfigError, DataError
from guardkeel.fusion.methods import registry, streams, trimming
from guardkeel.fusion.methods.base import Method, Tensors
from guardkeel.fusion.methods.endpoints import Candidate
from guardkeel.fusion.methods.registry import make
from guardkeel.fusion.methods.streams import change
from guardkeel.fusion.methods.trimming import cut, trimmed


def fuse(name, tensors, seed=0, **options):
    return make(name, options).fuse(tensors, dice(seed))


def given(name, shape=(6, 5), seed=0):
    """What a method takes: two candidates where it can."""
    method = registry.method_named(name)
    more = extras(shape, seed) if len(shape) == 2 else {"mask": torch.sigmoid(draw(seed)(*shape))}
    return inputs(shape, 1 if method.most == 1 else max(2, method.least), seed, **more)


def whole(delta):
    return torch.cat([block.flatten() for block in delta()])


# Any method


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shape", [(6, 5), (7,), (2, 3, 4), (1, 1), ()])
def test_every_method_makes_a_finite_tensor_of_that_shape_and_writes_to_no_input(name, shape):
    tensors = given(name, shape)
    before = [t.clone() for t in (tensors.reference, *tensors.candidates, tensors.unaligned)]
    found = fuse(name, tensors)
    assert found.shape == torch.Size(shape)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    for now, then in zip((tensors.reference, *tensors.candidates, tensors.unaligned), before, strict=True):
        assert same_bits(now, then)
        assert not shape or found.data_ptr() != now.data_ptr()


@pytest.mark.parametrize("name", EVERY)
def test_a_tensor_that_nobody_changed_stays_as_it_is(name):
    one = draw(3)(6, 5)
    more = {k: v for k, v in extras((6, 5)).items() if k != "harmful-norms"}  # pruning is another matter
    found = fuse(
        name, Tensors("w", one, (one.clone(), one.clone())[: registry.method_named(name).most], one, more)
    )
    assert torch.equal(found, one)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shape", [(40, 5), (203,)])
def test_the_size_of_a_block_changes_no_bit(name, shape, monkeypatch):
    options = {"dare": {"merge": "ties"}, "somf": {"merge": "dare"}, "random-mask": {"granularity": "row"}}
    kind = registry.method_named(name)
    tensors = given(name, shape)
    found = fuse(name, tensors, **options.get(name, {}))
    monkeypatch.setattr(streams, "BLOCK", 16)
    again = fuse(name, tensors, **options.get(name, {}))
    if name in ("slerp", "model-stock"):  # float64 sums of other blocks
        torch.testing.assert_close(found, again, rtol=2e-7, atol=2e-7)
    else:
        assert same_bits(found, again)
    if kind.elementwise and not kind.draws:
        parts = [
            fuse(
                name,
                Tensors(
                    "w", tensors.reference[s], tuple(c[s] for c in tensors.candidates), tensors.unaligned[s]
                ),
                **options.get(name, {}),
            )
            for s in (slice(0, 7), slice(7, None))
        ]
        assert same_bits(torch.cat(parts), found)


@pytest.mark.parametrize("name", EVERY)
def test_inputs_may_lie_in_memory_in_any_way(name):
    tensors = given(name)
    turned = Tensors(
        tensors.name,
        *(
            t.T.contiguous().T if isinstance(t, torch.Tensor) else tuple(c.T.contiguous().T for c in t)
            for t in (tensors.reference, tensors.candidates, tensors.unaligned)
        ),
        tensors.extras,
    )
    assert not turned.reference.is_contiguous()
    torch.testing.assert_close(fuse(name, turned), fuse(name, tensors))


@pytest.mark.parametrize("name", [n for n in EVERY if registry.method_named(n).draws])
def test_draws_follow_from_the_generator_alone(name):
    options = {"resta": {"drop": 0.5}, "somf": {"merge": "dare"}}.get(name, {})
    tensors = given(name, (30, 20))
    torch.manual_seed(1)
    one = fuse(name, tensors, 5, **options)
    torch.manual_seed(2)
    assert same_bits(one, fuse(name, tensors, 5, **options))
    assert not torch.equal(one, fuse(name, tensors, 6, **options))
    with pytest.raises(ValueError, match="generator"):
        make(name, options).fuse(tensors, None)


class Large(TorchDispatchMode):
    """The most memory held at once in new tensors, in float32 tensors of `numel`; below a quarter is not seen."""

    def __init__(self, numel, known):
        super().__init__()
        self.numel, self.live, self.most = numel, {}, 0
        self.known = {t.untyped_storage().data_ptr() for t in known}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for t in tree_leaves(made):
            if isinstance(t, torch.Tensor) and t.device.type == "cpu":
                storage = t.untyped_storage()
                if storage.data_ptr() not in self.known and storage.nbytes() >= self.numel:
                    self.live[storage.data_ptr()] = (weakref.ref(storage), storage.nbytes())
        self.live = {p: (r, n) for p, (r, n) in self.live.items() if r() is not None}
        self.most = max(self.most, sum(n for _, n in self.live.values()) / (4 * self.numel))
        return made


@pytest.mark.parametrize("name", EVERY)
def test_no_method_holds_more_than_it_says(name, monkeypatch):
    monkeypatch.setattr(streams, "BLOCK", 2**14)
    shape = (384, 1536)
    options = {
        "somf": {"merge": "ties", "threshold": 0.5},
        "resta": {"drop": 0.2},
        "safe-lora": {"threshold": 1},
    }
    tensors = given(name, shape)
    known = [tensors.reference, *tensors.candidates, tensors.unaligned, *tensors.extras.values()]
    with Large(384 * 1536, known) as seen:
        found = fuse(name, tensors, **options.get(name, {}))
    assert found.shape == shape
    assert 1 <= seen.most <= 1 + registry.method_named(name).work


# Trimming


def nearly_all_kinds():
    one = draw(11)
    coarse = (one(40, 25) * 4).round() / 4  # many equal magnitudes
    tiny = one(40, 25) * 1e-41  # below the smallest normal number
    spiky = one(40, 25) ** 9
    zeros = torch.where(torch.rand(40, 25, generator=dice()) < 0.9, 0, one(40, 25))
    misleading = one(40, 25)
    misleading.view(-1)[::50] *= 1e6  # the first of each block, which alone is in the sample
    return {"normal": one(40, 25), "misleading": misleading, "coarse": coarse, "tiny": tiny,
            "spiky": spiky, "zeros": zeros, "all zero": torch.zeros(40, 25), "alike": torch.full((40, 25), -0.5),
            "signed zeros": torch.full((40, 25), -0.0), "large": one(40, 25) * 1e38}  # fmt: skip


@pytest.mark.parametrize("kind", nearly_all_kinds())
@pytest.mark.parametrize("density", [0, 0.0005, 0.2, 0.29, 0.5, 0.999, 1])
def test_trimming_keeps_just_the_largest_and_of_equal_ones_the_first(kind, density, monkeypatch):
    monkeypatch.setattr(streams, "BLOCK", 64)
    delta = nearly_all_kinds()[kind]

    def blocks():
        for block in streams.blocks(delta):
            yield block.clone()

    found = whole(trimmed(blocks, delta.numel(), density)).view(delta.shape)
    assert torch.equal(found, trim(delta, density))


def test_the_cut_is_the_value_that_sorting_finds():
    delta = draw(2)(100_003)
    magnitudes = delta.abs().sort(descending=True).values
    zero = torch.zeros_like(delta)
    for keep in (1, 2, 50_000, 100_003):
        end = cut(change(zero, delta), keep)
        assert end.least == float(magnitudes[keep - 1])
        assert (end.first, end.equal) == (1, 1)


class Elsewhere(torch.Tensor):
    """Says that it is on another device, so that torch alone may touch it."""

    device = property(lambda self: torch.device("cuda"))


def test_other_devices_find_the_same_without_numpy():
    bits = draw(3)(1000).abs().view(torch.int32)
    least, most = sorted(bits[:2].tolist())
    over, inside = trimming._split(bits, least, most)
    there, found = trimming._split(bits.as_subclass(Elsewhere), least, most)
    assert over == there == int((bits >= most).sum()) and torch.equal(inside, found.as_subclass(torch.Tensor))
    values = draw(4)(50).round().abs()
    at = trimming._equal(values.as_subclass(Elsewhere), 1.0).as_subclass(torch.Tensor)
    assert len(at) and torch.equal(trimming._equal(values, 1.0), at)


# Arithmetic


def test_interpolation_is_the_straight_line():
    tensors = inputs()
    for alpha in (0.1, 0.5, 0.9):
        wanted = tensors.reference + alpha * tensors.deltas[0]
        torch.testing.assert_close(fuse("interpolation", tensors, alpha=alpha), wanted)


def test_task_arithmetic_and_linear_weigh_the_candidates():
    tensors = inputs(count=3)
    a, b, c = tensors.candidates
    d = tensors.deltas
    wanted = tensors.reference + 0.5 * (1 * d[0] - 2 * d[1] + 0.5 * d[2])
    torch.testing.assert_close(fuse("task-arithmetic", tensors, scale=0.5, weights=[1, -2, 0.5]), wanted)
    torch.testing.assert_close(fuse("task-arithmetic", tensors), tensors.reference + 0.3 * sum(d))
    torch.testing.assert_close(fuse("linear", tensors), (a + b + c) / 3)
    torch.testing.assert_close(fuse("linear", tensors, weights=[1, 3, 0]), (a + 3 * b) / 4)
    assert same_bits(fuse("linear", tensors, weights=[0, 2, 0]), b)
    assert same_bits(fuse("task-arithmetic", tensors, scale=0.5, weights=[0, 2, 0]), b)


@pytest.mark.parametrize("name", ["linear", "task-arithmetic"])
def test_weights_are_one_a_candidate(name):
    with pytest.raises(ConfigError, match="2 weights for 3 candidates"):
        fuse(name, inputs(count=3), weights=[1, 1])


def test_ties_by_hand():
    zero = torch.zeros(5)
    candidates = torch.tensor([[1.0, 2, -1, 3, 0.1], [3.0, -5, 1, 0.2, 0.1], [2.0, 1, 0, 0, 0.1]])
    found = fuse("ties", Tensors("w", zero, tuple(candidates)), density=1.0, scale=1.0)
    # all agree; −5 outweighs 2 + 1; −1 and 1 weigh the same, so none is elected; 0 does not vote
    torch.testing.assert_close(found, torch.tensor([2.0, -5, 0, 1.6, 0.1]))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("density", [0.2, 0.7, 1.0])
def test_ties_is_what_going_through_the_elements_finds(count, density):
    tensors = inputs((8, 9), count, seed=count)
    found = fuse("ties", tensors, density=density, scale=0.4)
    torch.testing.assert_close(found, ties(tensors.reference, tensors.candidates, density, 0.4))


def test_dare_drops_about_p_and_scales_the_rest():
    tensors = inputs((200, 100))
    kept = fuse("dare", tensors, drop=0.3) - tensors.reference
    gone = kept == 0
    assert abs(float(gone.float().mean()) - 0.3) < 5 * (0.3 * 0.7 / 20_000) ** 0.5
    torch.testing.assert_close(kept[~gone], (tensors.deltas[0] / 0.7)[~gone], rtol=1e-4, atol=1e-6)


def test_dare_merges_several_by_sum_or_by_agreement():
    tensors = inputs((50, 40), 2)
    single = [
        fuse("dare", Tensors("w", tensors.reference, (c,)), scale=1.0) - tensors.reference
        for c in tensors.candidates
    ]
    linear = fuse("dare", tensors) - tensors.reference
    apart = fuse("dare", tensors, seed=1) - tensors.reference
    assert linear.shape == single[0].shape
    assert not torch.equal(linear, apart)
    # the two candidates are not dropped in the same places
    both = Tensors("w", tensors.reference, (tensors.candidates[0],) * 2)
    found = (fuse("dare", both, drop=0.5, scale=1.0) - tensors.reference) / tensors.deltas[0]
    assert {round(v) for v in found.flatten().tolist()} == {0, 2, 4}
    agreed = (fuse("dare", both, drop=0.5, scale=1.0, merge="ties") - tensors.reference) / tensors.deltas[0]
    assert {round(v) for v in agreed.flatten().tolist()} == {0, 2}
    undropped = fuse("dare", tensors, drop=0, merge="ties", scale=1.0)
    torch.testing.assert_close(undropped, fuse("ties", tensors, density=1, scale=1.0))


def test_slerp_keeps_to_the_arc():
    one = draw(0)
    a, b = one(10, 10), one(10, 10)
    b *= a.norm() / b.norm()
    for t in (0.25, 0.5, 0.8):
        found = fuse("slerp", Tensors("w", a, (b,)), t=t)
        torch.testing.assert_close(found.norm(), a.norm())  # both ends are on one sphere

        def angle(x, y):
            return torch.arccos((x * y).sum() / x.norm() / y.norm())

        torch.testing.assert_close(angle(a, found), t * angle(a, b), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("other", [lambda a: 1.5 * a, lambda a: -a, torch.zeros_like])
def test_slerp_of_colinear_tensors_is_interpolation(other):
    a = draw(0)(4, 4)
    tensors = Tensors("w", a, (other(a),))
    torch.testing.assert_close(fuse("slerp", tensors, t=0.3), a + 0.3 * tensors.deltas[0])


def test_model_stock_by_hand():
    zero = torch.zeros(2)
    sixty = Tensors("w", zero, (torch.tensor([1.0, 0]), torch.tensor([0.5, 3**0.5 / 2])))
    mean = torch.tensor([0.75, 3**0.5 / 4])
    torch.testing.assert_close(fuse("model-stock", sixty), 2 / 3 * mean)  # t = 2 · ½ / (1 + ½)
    apart = Tensors("w", zero, (torch.tensor([1.0, 0]), torch.tensor([-1.0, 0.1])))
    assert same_bits(fuse("model-stock", apart), zero)
    alone = inputs()
    assert same_bits(fuse("model-stock", alone), alone.candidates[0])


def test_resta_adds_the_safety_vector():
    tensors = inputs()
    safety = tensors.reference - tensors.unaligned
    torch.testing.assert_close(fuse("resta", tensors, strength=0.7), tensors.candidates[0] + 0.7 * safety)
    assert same_bits(fuse("resta", tensors, strength=0), tensors.candidates[0])
    halved = fuse("resta", tensors, strength=0.7, drop=0.5) - 0.7 * safety - tensors.reference
    share = (halved / tensors.deltas[0]).flatten()
    assert {round(v) for v in share.tolist()} == {0, 2}


@pytest.mark.parametrize("name", ["resta", "safe-lora", "safe-merge"])
def test_methods_that_need_the_unaligned_model_say_so(name):
    tensors = inputs()
    with pytest.raises(ConfigError, match=r"layer\.weight"):
        fuse(name, Tensors(tensors.name, tensors.reference, tensors.candidates))


# Masks


def test_somf_rescales_by_the_mean_of_the_mask():
    mask = extras((6, 5))["mask"]
    tensors = inputs(mask=mask)
    d = tensors.deltas[0]
    torch.testing.assert_close(fuse("somf", tensors), tensors.reference + d * mask / mask.mean())
    torch.testing.assert_close(fuse("somf", tensors, rescale=False), tensors.reference + d * mask)
    kept = (mask >= 0.4).float()
    torch.testing.assert_close(
        fuse("somf", tensors, threshold=0.4), tensors.reference + d * kept / kept.mean()
    )


@pytest.mark.parametrize("shape", [(6, 1), (1,)])
def test_somf_takes_masks_of_rows_and_of_the_tensor(shape):
    mask = torch.sigmoid(draw(5)(*shape))
    tensors = inputs(mask=mask)
    wanted = tensors.reference + tensors.deltas[0] * mask / mask.mean()
    torch.testing.assert_close(fuse("somf", tensors), wanted)
    half = fuse("somf", tensors, rescale=False)
    torch.testing.assert_close(half, tensors.reference + tensors.deltas[0] * mask)


def test_somf_merges_several_under_one_mask():
    mask = extras((6, 5))["mask"]
    tensors = inputs(count=3, mask=mask)
    r = tensors.reference
    masked = [d * mask / mask.mean() for d in tensors.deltas]
    torch.testing.assert_close(fuse("somf", tensors), r + 0.3 * sum(masked))
    torch.testing.assert_close(fuse("somf", tensors, merge="average"), r + sum(masked) / 3)
    torch.testing.assert_close(fuse("somf", tensors, merge="average", scale=0.5), r + sum(masked) / 6)
    wanted = ties(torch.zeros_like(r), masked, 0.2, 0.4) + r
    torch.testing.assert_close(fuse("somf", tensors, merge="ties"), wanted)
    share = (fuse("somf", tensors, merge="dare", scale=1.0) - r).isfinite()
    assert share.all()


def test_the_ends_of_a_mask_are_exact():
    tensors = inputs(mask=torch.ones(6, 5))
    assert same_bits(fuse("somf", tensors), tensors.candidates[0])
    assert same_bits(fuse("somf", inputs(mask=torch.zeros(1))), tensors.reference)
    assert same_bits(fuse("somf", inputs()), tensors.candidates[0])  # no mask was learned for it
    almost = torch.zeros(6, 5)
    almost[2, 3] = 1e-45
    assert fuse("somf", inputs(mask=almost)).isfinite().all()


@pytest.mark.parametrize(
    ("mask", "said"),
    [(torch.ones(5, 6), "(5, 6)"), (torch.ones(5), "(5,)"), (torch.full((6, 1), 1.5), "0 … 1"),
     (torch.full((1,), float("nan")), "0 … 1"), (torch.full((1,), -0.1), "0 … 1")],
)  # fmt: skip
def test_masks_that_do_not_fit_are_refused_by_name(mask, said):
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        fuse("somf", inputs(mask=mask))
    assert "layer.weight" in caught.value.problem


@pytest.mark.parametrize(("granularity", "distinct"), [("element", 20_000), ("row", 200), ("tensor", 1)])
def test_the_random_mask_drops_elements_rows_or_the_tensor(granularity, distinct):
    tensors = inputs((200, 100), 2)
    found = fuse("random-mask", tensors, keep=0.6, granularity=granularity, merge="average", seed=4)
    share = (found - tensors.reference) / (sum(tensors.deltas) / 2)
    kept = share > 0.5
    torch.testing.assert_close(share[kept], torch.full_like(share[kept], 1 / 0.6), rtol=1e-2, atol=1e-2)
    if granularity == "row":
        assert (kept == kept[:, :1]).all()
    if granularity == "tensor":
        assert kept.all() or not kept.any()
    else:
        assert abs(float(kept.float().mean()) - 0.6) < 5 * (0.24 / distinct) ** 0.5


def test_the_random_mask_of_a_tensor_is_kept_as_often_as_asked():
    tensors = inputs((2, 2))
    kept = [bool((fuse("random-mask", tensors, s, keep=0.3, granularity="tensor") != tensors.reference).any())
            for s in range(400)]  # fmt: skip
    assert abs(sum(kept) / 400 - 0.3) < 5 * (0.21 / 400) ** 0.5


# Registry


def test_every_method_is_there_and_explains_itself():
    assert list(registry.methods()) == EVERY
    for name, method in registry.methods().items():
        assert method.name == name
        assert method.summary
        assert method.__doc__
        for field, info in method.Settings.model_fields.items():
            assert info.description, (name, field)
        assert make(name).settings == method.Settings()


@pytest.mark.parametrize(
    ("name", "options", "problem", "remedy"),
    [
        ("tie", {}, "unknown fusion method 'tie'", "ties"),
        ("zzz", {}, "unknown fusion method 'zzz'", "methods are interpolation"),
        ("ties", {"densty": 0.1}, "'ties' has no option 'densty'", "'density'"),
        ("reference", {"zzz": 1}, "'reference' has no option 'zzz'", "none at all"),
        ("interpolation", {"alpha": 1.5}, "alpha is 1.5", "'alpha'"),
        ("dare", {"drop": 1}, "drop is 1", "'drop'"),
        ("linear", {"weights": [0, 0]}, "at least one weight", "'weights'"),
        ("linear", {"weights": [1, -1]}, "weights.1 is -1", "weights.1"),
        ("task-arithmetic", {"scale": float("nan")}, "scale is nan", "'scale'"),
    ],
)
def test_what_cannot_be_used_is_named_with_a_remedy(name, options, problem, remedy):
    with pytest.raises(ConfigError) as caught:
        make(name, options)
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy


class Point:
    def __init__(self, name, value):
        self.name, self.value, self.load = name, "package:thing", lambda: value


class Half(Candidate):
    """Half of the candidate."""

    name = "half"
    summary = "half of the candidate"

    def fuse(self, tensors, generator=None):
        return tensors.candidates[0] / 2


def test_another_package_adds_its_method(monkeypatch):
    def installed(*points):
        registry.methods.cache_clear()
        monkeypatch.setattr(
            registry, "entry_points", lambda group: [p for p in points if group == registry.GROUP]
        )

    try:
        installed(Point("half", Half))
        tensors = inputs()
        assert issubclass(registry.method_named("half"), Method)
        torch.testing.assert_close(fuse("half", tensors), tensors.candidates[0] / 2)
        installed(Point("ties", Half))
        with pytest.raises(ConfigError, match="in use"):
            make("linear")
        installed(Point("half", "no method"))
        with pytest.raises(ConfigError, match="no subclass of Method"):
            make("linear")
    finally:
        registry.methods.cache_clear()
