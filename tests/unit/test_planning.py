"""Plans are arithmetic: published sizes, sums done by hand, the estimates of the verbs, and what does not fit."""

import json
import math

import pytest
from typer.testing import CliRunner

from guardkeel.cli import app
from guardkeel.errors import ConfigError, GuardkeelError, ModelError
from guardkeel.models.tiny import make_tiny
from guardkeel.planning.architecture import Architecture, architecture, presets
from guardkeel.planning.fusing import fuse
from guardkeel.planning.hardware import hardware
from guardkeel.planning.scoring import DAY, Texts, audit, pace, serve
from guardkeel.planning.shapes import noise
from guardkeel.planning.tuning import tune
from guardkeel.tuning.config import TuneConfig
from guardkeel.tuning.estimate import estimate

PUBLISHED = {
    "keel-135m": 134_515_008,
    "1B": 1_235_814_400,
    "3B": 3_212_749_824,
    "7B": 7_248_023_552,
    "8B": 8_030_261_248,
    "9B": 9_241_705_984,
    "27B": 27_227_128_320,
    "70B": 70_553_706_496,
}
"""Parameters as the model cards' safetensors say."""


def on(**changes):
    return hardware("h200", [f"{key}={json.dumps(value)}" for key, value in changes.items()])


def config(**given):
    return TuneConfig(data=["x"], guard="8B", monitor=[], held_out=0.0, **given)


def test_shapes_have_the_published_number_of_parameters():
    assert {name: shape.parameters for name, shape in presets().items()} == PUBLISHED


def test_a_config_is_counted_as_transformers_counts_it(tmp_path):
    folder = make_tiny("llama", tmp_path / "tiny")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    shape = architecture(str(folder))
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.linears and shape.lora(4) == sum(
        4 * sum(m.weight.shape) for n, m in model.named_modules() if ".layers." in n and "proj" in n
    )


def test_operations_and_bytes_by_hand():
    shape = Architecture(
        num_hidden_layers=2,
        hidden_size=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
        vocab_size=10,
    )
    block = 8 * 8 + 2 * 4 * 8 + 8 * 8 + 3 * 8 * 16
    assert shape.head_dim == 4 and shape.blocks == 2 * block and shape.block_parameters == block
    assert shape.forward(5, 7, logits=3) == 5 * (2 * 2 * block + 4 * 2 * 8 * 7) + 2 * 3 * 10 * 8
    assert shape.key_values(2) == 2 * 2 * 4 * 2
    assert shape.lora(3) == 3 * 2 * (16 + 2 * 12 + 16 + 3 * 24)


def test_an_audit_takes_what_its_operations_take():
    shape, texts = presets()["8B"], Texts(tokens=60, policy=550)
    plan = audit(shape, on(), name="8B", dtype="bfloat16", rows=10**6, guards=1, texts=texts)
    items = shape.forward(60, 580, logits=1)
    assert plan.seconds["score"] == pytest.approx(10**6 * items / (0.4 * 989e12), rel=1e-6)
    assert plan.memory["weights"] == 2 * PUBLISHED["8B"] and plan.fits
    assert plan.cost == pytest.approx(plan.time / 3600 * 4.0)
    eight = audit(shape, hardware("h200x8"), name="8B", dtype="bfloat16", rows=10**6, guards=1, texts=texts)
    assert eight.seconds["score"] == pytest.approx(plan.seconds["score"] / 8)


def test_a_model_too_large_for_a_device_is_spread():
    found = pace(presets()["70B"], hardware("h100x8"), "bfloat16", Texts())
    assert found.spread == 2 and found.memory["weights"] == PUBLISHED["70B"]
    small = audit(presets()["70B"], hardware("l4x4"), name="70B", dtype="bfloat16", rows=10)
    assert not small.fits and small.needed > 24e9


def test_a_batch_of_few_operations_waits_for_its_weights():
    shape = presets()["8B"]
    found = pace(shape, on(), "bfloat16", Texts(tokens=1, policy=1, budget=1))
    assert found.batch_seconds == 2 * PUBLISHED["8B"] / 4.8e12


def test_a_service_of_a_billion_a_day():
    plan = serve(presets()["8B"], on(price=2.0), name="8B", dtype="bfloat16", per_second=1e9 / DAY, busy=0.5)
    copies = math.ceil(1e9 / DAY / plan.numbers["a copy gives, a second"])
    assert plan.numbers["copies"] == copies == plan.numbers["devices"]
    assert plan.numbers["cost a day"] == copies * 2.0 * 24 and plan.cost is None


def test_training_takes_sixteen_bytes_and_three_passes():
    shape = presets()["8B"]
    few = {"steps": 10, "batch": 8, "method": "plain"}
    lora = tune(shape, on(), config(**few), name="8B", dtype="bfloat16", rows=100)
    full = tune(shape, on(), config(adapter="full", **few), name="8B", dtype="bfloat16", rows=100)
    again = tune(shape, on(), config(checkpointing=True, **few), name="8B", dtype="bfloat16", rows=100)
    assert lora.memory["trained"] == 16 * shape.lora(8) and lora.memory["weights"] == 2 * PUBLISHED["8B"]
    assert full.dtype == "float32" and full.memory["trained"] == 16 * PUBLISHED["8B"]
    assert lora.seconds["steps"] == pytest.approx(
        2 * shape.forward(10 * (550 + 8 * 60), 580) / (0.4 * 989e12)
    )
    assert again.seconds["steps"] == pytest.approx(3 * shape.forward(10 * 8 * 610, 305) / (0.4 * 989e12))
    assert again.memory["activations"] < lora.memory["activations"] / 3
    assert (
        tune(shape, on(), config(**few | {"method": "kl"}), name="8B", dtype="bfloat16", rows=100).time
        > lora.time
    )


def test_what_is_read_before_the_first_step_is_planned():
    shape = presets()["8B"]
    taken = {
        name: tune(
            shape,
            on(),
            config(steps=10, batch=8, method=name, guard_items=80),
            name="8B",
            dtype="bfloat16",
            rows=100,
        )
        for name in ("plain", "kl", "fwssr", "fwssr+kl")
    }
    once = shape.forward(10 * (550 + 8 * 60), 580) / (0.4 * 989e12)
    prepared = {name: plan.seconds.get("prepare", 0) / once for name, plan in taken.items()}
    assert prepared == pytest.approx({"plain": 0, "kl": 1, "fwssr": 2, "fwssr+kl": 3})


def test_what_does_not_fit_is_cut_up_among_devices():
    alone = tune(presets()["70B"], on(), config(checkpointing=True), name="70B", dtype="bfloat16", rows=100)
    eight = tune(
        presets()["70B"],
        hardware("h200x8"),
        config(checkpointing=True),
        name="70B",
        dtype="bfloat16",
        rows=100,
    )
    assert not alone.fits and alone.numbers["cut up among devices"] == 1
    assert eight.fits and eight.numbers["cut up among devices"] == 8
    assert eight.memory["weights"] == alone.memory["weights"] / 8
    slow = on(devices=8, link=1e9)
    sent = tune(
        presets()["70B"], slow, config(checkpointing=True, steps=10), name="70B", dtype="bfloat16", rows=100
    )
    assert sent.seconds["steps"] == pytest.approx(10 * 4 * 2 * PUBLISHED["70B"] * 7 / 8 / 1e9)


def test_a_tune_is_planned_as_its_dry_run_estimates(tmp_path):
    """Rows that are there are counted, rows that are not are given: of as many tokens, the memory is the same."""
    folder = make_tiny("llama", tmp_path / "tiny")
    given = TuneConfig(
        guard=str(folder), data=["keel-domain"], source="bank", most=40, guard_items=10, family="keel",
        monitor=[], batch=4, dtype="float32", device="cpu", max_tokens=4000,
    )  # fmt: skip
    known = estimate(given)
    policy = 100
    texts = Texts((known.tokens - policy) / (given.batch + given.guard_batch), policy)
    plan = tune(
        architecture(str(folder)), on(cpu=True), given, name="t", dtype="float32", rows=40, texts=texts
    )
    assert plan.numbers["trained"] == known.trained and plan.numbers["steps"] == known.steps
    assert plan.needed == pytest.approx(known.memory, rel=1e-3)


def test_a_fuse_is_planned_by_fusions_own_plan():
    shape = presets()["keel-135m"]
    one, two = (
        fuse(shape, on(disk=1e9), name="k", dtype="bfloat16", method="ties", candidates=2, processes=n)
        for n in (1, 2)
    )
    assert one.numbers["bytes read"] == 3 * 2 * PUBLISHED["keel-135m"]
    assert 2 * PUBLISHED["keel-135m"] <= one.numbers["bytes written"] < 2 * PUBLISHED["keel-135m"] + 10**5
    assert two.memory["tensors"] > 1.5 * one.memory["tensors"] and all(s > 0 for s in one.seconds.values())
    assert noise(shape, "bfloat16", 2, unaligned=True).unaligned is not None
    with pytest.raises(ConfigError, match="takes 1 to 1 candidates"):
        fuse(shape, on(), name="k", dtype="bfloat16", method="slerp", candidates=2)


@pytest.mark.parametrize(
    "name, said",
    [
        ("9000B", "is not known"),
        ("{folder}", "no such file"),
        ("{moe}", "mixture of experts"),
        ("{odd}", "num_hidden"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, name, said):
    for kind, content in {"folder": None, "moe": {"num_local_experts": 8}, "odd": {"hidden_size": 8}}.items():
        (tmp_path / kind).mkdir()
        if content is not None:
            (tmp_path / kind / "config.json").write_text(json.dumps(content))
    with pytest.raises((ConfigError, ModelError), match=said):
        architecture(name.format(**{k: tmp_path / k for k in ("folder", "moe", "odd")}))


def test_hardware_of_ones_own(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\nmemory = 1e9\nflops = { bfloat16 = 1e12 }\nshare = 0.5\nprice = 1.0\n')
    mine = hardware(str(file), ["devices=4", "price=2.5"])
    assert (mine.devices, mine.price, mine.rate("bfloat16")) == (4, 2.5, 5e11)
    assert (
        hardware("h200x8").devices == 8
        and hardware("h200").price_date
        and hardware("h200", ["price=1"]).price_date is None
    )
    for name, changes in (("nothing", []), ("h200", ["colour=red"]), ("h200", ["share=2"])):
        with pytest.raises(GuardkeelError):
            hardware(name, changes)
    with pytest.raises(ConfigError, match="no rate is known for float32"):
        mine.rate("float32")


def test_the_verb_ends_with_1_where_it_does_not_fit():
    runner = CliRunner()
    fits = runner.invoke(app, ["plan", "tune", "--model", "8B", "--hardware", "h200", "--json"])
    said = json.loads(fits.stdout)
    assert fits.exit_code == 0 and said["fits"] and said["hardware"]["price_date"] and said["cost"] > 0
    not_there = runner.invoke(app, ["plan", "audit", "--model", "70B", "--hardware", "l4"])
    assert not_there.exit_code == 1
    assert "does not fit" in not_there.stdout and "remedy: take bfloat16" in not_there.stdout
    a_day = runner.invoke(app, ["plan", "serve", "--per-day", "1e9", "--hardware", "h200"])
    assert a_day.exit_code == 0 and "1,000,000,000" in a_day.stdout and "2026" in a_day.stdout
    assert runner.invoke(app, ["plan", "--list"]).exit_code == 0
    here = runner.invoke(app, ["plan", "audit", "--model", "keel-135m", "--rows", "100", "--here", "--json"])
    assert here.exit_code == 0 and json.loads(here.stdout)["hardware"]["flops"]["float32"] > 1e8
