"""Memory is said before the run and kept to; finished shards are taken up again; what cannot fit is refused."""

import io
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from guardkeel.errors import ModelError, RunError
from guardkeel.heads import shards
from guardkeel.heads.plan import plan_sweep
from guardkeel.heads.prompts import token_prompts
from guardkeel.heads.run import Run
from guardkeel.heads.sweep import sweep_heads
from heads_reference import prompts, tiny_model

ROWS = prompts(6, seed=2)
SAME = ("kl", "log_odds", "hidden", "clean_hidden", "base_kl", "clean_log_odds")


def test_a_plan_counts():
    model = tiny_model("llama")
    shared = plan_sweep(model, token_prompts(ROWS))
    plain = plan_sweep(model, token_prompts(ROWS), share=False)
    assert shared.tokens == plain.tokens == sum(map(len, ROWS))
    assert sum(shared.shard_tokens) < shared.tokens == sum(plain.shard_tokens)
    assert len(shared.variants) == 12
    assert shared.naive / shared.work > plain.naive / plain.work > 1.5
    assert "6 prompts" in shared.text
    assert "GB" in shared.text
    assert plan_sweep(model, token_prompts(ROWS), mode="kv-group").variants[-1] == (2, 1)
    assert plan_sweep(model, token_prompts(ROWS), heads=[(1, 2)]).variants == ((1, 2),)
    with pytest.raises(ModelError, match="no head 7-0"):
        plan_sweep(model, token_prompts(ROWS), heads=[(7, 0)])


def test_what_cannot_fit_is_refused_with_both_numbers():
    with pytest.raises(RunError, match=r"needs .* GB .* GB may be used"):
        plan_sweep(tiny_model("llama"), token_prompts(ROWS), memory=1000)


def test_prompts_in_any_order_give_their_own_results():
    model = tiny_model("gemma3")
    asked = token_prompts(ROWS, list("abcdef"))
    found = sweep_heads(model, asked)
    order = [4, 0, 5, 2, 1, 3]
    other = sweep_heads(model, [asked[i] for i in order])
    assert other.ids == tuple("eafcbd")
    assert np.abs(other.kl - found.kl[order]).max() < 1e-6
    assert np.abs(sweep_heads(model, [asked[3]]).kl[0] - found.kl[3]).max() < 1e-5


def tight(model):
    """A budget under which there are several shards."""
    budget = plan_sweep(model, token_prompts(ROWS), hidden=True).bytes
    while True:
        budget = int(budget / 1.02)
        if len(plan_sweep(model, token_prompts(ROWS), hidden=True, memory=budget).shards) > 2:
            return budget


def test_a_run_that_was_killed_goes_on(tmp_path, monkeypatch):
    model = tiny_model("llama")
    options = {"hidden": True, "memory": tight(model), "folder": tmp_path}
    whole = sweep_heads(model, token_prompts(ROWS), **{**options, "folder": None})
    runs = []
    steps = Run.steps

    def counted(self):
        if len(runs) == 2:
            raise KeyboardInterrupt
        runs.append(self)
        return steps(self)

    monkeypatch.setattr(Run, "steps", counted)
    with pytest.raises(KeyboardInterrupt):
        sweep_heads(model, token_prompts(ROWS), **options)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(Run, "steps", lambda self: runs.append(self) or steps(self))
    done = []
    found = sweep_heads(model, token_prompts(ROWS), **options, progress=lambda *said: done.append(said))
    assert len(runs) == len(whole.plan.shards)  # the two finished ones were not run again
    for name in SAME:
        assert np.array_equal(getattr(found, name), getattr(whole, name), equal_nan=True), name
    assert done[-1][1] == done[-1][2]
    assert [d[1] for d in done] == sorted(d[1] for d in done)


def test_damaged_shards_and_those_of_others_are_not_taken(tmp_path, monkeypatch):
    model = tiny_model("llama")
    first = sweep_heads(model, token_prompts(ROWS), folder=tmp_path)
    (file,) = tmp_path.iterdir()
    runs = []
    steps = Run.steps
    monkeypatch.setattr(Run, "steps", lambda self: runs.append(self) or steps(self))
    sweep_heads(model, token_prompts(ROWS), folder=tmp_path)
    assert not runs
    whole = file.read_bytes()
    swapped = bytearray(whole)
    swapped[len(whole) // 2] ^= 255
    altered = io.BytesIO()  # a sound file with other numbers in it
    with np.load(io.BytesIO(whole)) as held:
        np.savez(altered, **{name: held[name] * 2 if name == "kl" else held[name] for name in held.files})
    for damaged in (whole[: len(whole) // 2], bytes(swapped), altered.getvalue(), b""):
        file.write_bytes(damaged)
        runs.clear()
        again = sweep_heads(model, token_prompts(ROWS), folder=tmp_path)
        assert len(runs) == 1
        assert np.array_equal(again.kl, first.kl)
    others = (
        lambda: sweep_heads(tiny_model("llama", seed=1), token_prompts(ROWS), folder=tmp_path),
        lambda: sweep_heads(model, token_prompts(ROWS), folder=tmp_path, mode="v"),
        lambda: sweep_heads(model, token_prompts(ROWS), folder=tmp_path, epsilon=0.5),
        lambda: sweep_heads(model, token_prompts(ROWS), folder=tmp_path, within=[(0, 0)]),
        lambda: sweep_heads(model, token_prompts(ROWS[:3]), folder=tmp_path),
        lambda: sweep_heads(model, token_prompts(ROWS), folder=tmp_path, hidden=True),
    )
    for number, other in enumerate(others, 1):
        runs.clear()
        other()
        assert len(runs) == 1, number
        assert len(list(tmp_path.iterdir())) == number + 1


def test_an_adapter_switched_off_is_another_model():
    import copy

    import peft

    torch.manual_seed(0)
    base = copy.deepcopy(tiny_model("llama"))
    model = peft.get_peft_model(
        base, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    ).eval()
    on = shards.fingerprint(model.get_base_model())
    with model.disable_adapter():
        assert shards.fingerprint(model.get_base_model()) != on
    assert shards.fingerprint(model.get_base_model()) == on


def test_progress_reaches_its_total():
    done = []
    sweep_heads(tiny_model("llama"), token_prompts(ROWS), progress=lambda *said: done.append(said))
    assert done[0][0] == "heads"
    assert done[-1][1] == done[-1][2] > 0
    done.clear()
    sweep_heads(
        tiny_model("llama"), token_prompts(ROWS), epsilon=1.0, progress=lambda *said: done.append(said)
    )
    assert done[-1][1] == done[-1][2]


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, each storage once, and remembers the most."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.holders = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                self._add(tensor)
        return out

    def _add(self, tensor):
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        self.holders[key] += 1
        self.now += size * (self.holders[key] == 1)
        self.most = max(self.most, self.now)
        weakref.finalize(tensor, self._drop, key, size)

    def _drop(self, key, size):
        self.holders[key] -= 1
        self.now -= size * (self.holders[key] == 0)


@pytest.mark.parametrize("share", [1.0, 0.6, 0.35])
@pytest.mark.parametrize("mode", ["q", "mean-k"])
def test_memory_stays_within_the_plan(share, mode):
    """A model whose streams and logits are large beside its weights."""
    model = tiny_model("llama", heads=8, groups=8, layers=2, seed=9, head_dim=16, hidden_size=128,
                       intermediate_size=256, vocab_size=2000)  # fmt: skip
    asked = token_prompts([[3 + i] * 30 for i in range(20)])
    budget = int(share * plan_sweep(model, asked, mode=mode).bytes)
    planned = plan_sweep(model, asked, mode=mode, memory=budget)
    assert (planned.wave < 16) == (share < 1)
    assert bool(planned.notes) == (share < 1)
    with Live() as live:
        sweep_heads(model, asked, mode=mode, memory=budget)
    assert planned.bytes / 4 < live.most <= planned.bytes <= budget
