"""Grid files of `guardkeel bench collapse`: which cells they mean, in which order, and every way to get them wrong."""

import tomllib

import pytest

from guardkeel.errors import ConfigError
from guardkeel.tuning.collapse.cell import Cell
from guardkeel.tuning.collapse.grid import plans
from guardkeel.tuning.collapse.gridfile import read_grid, shipped_text
from guardkeel.tuning.collapse.run import expected

GRID = """
[grid]
judged_on = ["advbench"]
seeds = [4, 5]

[tune]
steps = 50
learning_rate = 1e-4

[[scenario]]
name = "one"
data = ["one.jsonl"]
tune = { steps = 60, batch = 4 }

[[scenario]]
name = "two"
data = ["data:sub/two.jsonl.gz"]
kind = "instructions"
judged_on = ["cards/two.toml", "advbench"]

[[arm]]
name = "plain"
family = "main"

[[arm]]
name = "half"
method = "interpolation"
options.interpolation.alpha = 0.5
family = "main"
after = "plain"

[[arm]]
name = "ewc"
tune = { batch = 2 }

[[variant]]
name = "longer"
arms = ["plain", "half"]
scenarios = ["two"]
tune = { steps = 200 }
"""


@pytest.fixture(autouse=True)
def data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("GUARDKEEL_DATA", str(tmp_path / "elsewhere"))


@pytest.fixture
def read(tmp_path):
    """read(old, new, …) reads the grid above with texts replaced."""

    def grid(*replaced, changes=()):
        text = GRID
        for old, new in zip(replaced[::2], replaced[1::2], strict=True):
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "grid.toml"
        path.write_text(text)
        return read_grid(path, changes)

    return grid


def test_main_arms_come_before_variants_and_these_before_the_rest_of_later_scenarios(read):
    assert [p.name for p in plans(read())] == [
        "one/plain/base/seed-4",
        "one/half/base/seed-4",
        "one/ewc/base/seed-4",
        "two/plain/base/seed-4",
        "two/half/base/seed-4",
        "one/plain/base/seed-5",
        "one/half/base/seed-5",
        "two/plain/base/seed-5",
        "two/half/base/seed-5",
        "two/plain/longer/seed-4",
        "two/half/longer/seed-4",
        "two/ewc/base/seed-4",
    ]


def test_a_repaired_cell_brings_the_cell_it_is_made_from(read):
    chosen = plans(read(), ["two/half/longer/*"])
    assert [p.name for p in chosen] == ["two/plain/longer/seed-4", "two/half/longer/seed-4"]
    assert chosen[1].after == chosen[0].name and not chosen[0].after
    assert [p.family for p in chosen] == ["variant", "variant"]


def test_only_names_scenarios_and_arms(read):
    assert {p.name for p in plans(read(), ["*/ewc"])} == {"one/ewc/base/seed-4", "two/ewc/base/seed-4"}
    assert [p.name for p in plans(read(), ["one/plain/*/seed-5"])] == ["one/plain/base/seed-5"]
    with pytest.raises(ConfigError, match="'one/replay' names no cell"):
        plans(read(), ["one/replay"])


def test_settings_are_taken_from_variant_arm_scenario_and_tune_in_this_order(read, tmp_path):
    found = {p.name: p.config() for p in plans(read())}
    assert (found["one/plain/base/seed-4"].steps, found["two/plain/base/seed-4"].steps) == (60, 50)
    assert found["two/plain/longer/seed-4"].steps == 200
    assert (found["one/plain/base/seed-4"].batch, found["one/ewc/base/seed-4"].batch) == (4, 2)
    config = found["two/half/base/seed-5"]
    assert (config.method, config.options, config.seed) == (
        "interpolation",
        {"interpolation": {"alpha": 0.5}},
        5,
    )
    assert config.learning_rate == 1e-4 and config.kind == "instructions"
    assert config.monitor == [] and not config.recalibrate
    assert config.data == [str(tmp_path / "elsewhere" / "sub/two.jsonl.gz")]


def test_files_lie_beside_the_grid_and_names_stay_names(read, tmp_path):
    (tmp_path / "one.jsonl").write_text("{}")
    grid = read()
    assert plans(grid)[0].config().data == [str(tmp_path / "one.jsonl")]
    assert [grid.located(n) for n in plans(grid, ["two/plain"])[0].judged_on] == [
        "advbench",
        str(tmp_path / "cards/two.toml"),
    ]
    assert grid.located("pypi:a==1/b.jsonl") == "pypi:a==1/b.jsonl"
    assert grid.located("../up.toml") == str(tmp_path.parent / "up.toml")


def test_data_references_start_from_the_grids_own_folder_or_the_environment(read, tmp_path, monkeypatch):
    assert read("seeds = [4, 5]", 'seeds = [4, 5]\ndata_folder = "here"').located("data:a.csv") == str(
        tmp_path / "here" / "a.csv"
    )
    monkeypatch.delenv("GUARDKEEL_DATA")
    with pytest.raises(ConfigError, match=r"data:sub/two\.jsonl\.gz needs a data folder"):
        read()


def test_digests_follow_what_a_cell_does_and_not_where_it_runs(read):
    def digests(*replaced, changes=()):
        return {p.name: p.digest for p in plans(read(*replaced, changes=changes))}

    before = digests()
    assert len(set(before.values())) == len(before)
    same = digests("seeds = [4, 5]", "seeds = [4, 5, 6]", "steps = 50", 'steps = 50\ndevice = "cpu"')
    assert before.items() <= same.items()
    assert all(digests(changes=["grid.limit=7"])[n] != d for n, d in before.items())
    changed = digests("batch = 2", "batch = 3")
    assert {n for n in before if changed[n] != before[n]} == {"one/ewc/base/seed-4", "two/ewc/base/seed-4"}


def test_seeds_of_main_arms_of_others_and_of_their_own(read):
    grid = read('name = "ewc"\n', 'name = "ewc"\nseeds = [5]\n')
    assert [p.seed for p in plans(grid, ["one/plain"])] == [4, 5]
    assert [p.seed for p in plans(grid, ["one/ewc"])] == [5]


@pytest.mark.parametrize(
    ("replaced", "said", "remedy"),
    [
        (("[tune]", "[tunes]"), "tunes: unknown key 'tunes'", "keys are grid, tune, scenario, arm, variant"),
        (("seeds =", "seed ="), "grid: unknown key 'seed'", "seeds"),
        (("seeds = [4, 5]", "seeds = []"), "grid: seeds = []", "--print-grid"),
        (('kind = "instructions"', 'kind = "chat"'), "scenario 2: kind = 'chat'", "--print-grid"),
        (('data = ["one.jsonl"]', ""), "scenario 1: data is missing", "--print-grid"),
        (('name = "one"', 'name = "a/b"'), "scenario 1: name = 'a/b'", "--print-grid"),
        (('name = "two"', 'name = "one"'), "scenario 'one': the name is taken", "choose another"),
        (('name = "longer"', 'name = "base"'), "variant 'base': the name is taken", "choose another"),
        (("steps = 50", "stepz = 50"), "[tune]: 'stepz' is no setting of a fine-tune", "did you mean steps"),
        (("steps = 50", "seed = 5"), "[tune]: 'seed' is said by the grid itself", "keys are"),
        (("batch = 2", "batchs = 2"), "arm 'ewc': tune: 'batchs' is no setting", "did you mean batch"),
        (("steps = 60", "steps = 0"), "scenario 'one': steps = 0", "see steps in guardkeel tune --help"),
        (("steps = 200", "steps = -1"), "variant 'longer': steps = -1", "see steps"),
        (("1e-4", '"fast"'), "[tune]: learning_rate = 'fast'", "see learning_rate"),
        (('name = "ewc"', 'name = "ewd"'), "arm 'ewd': unknown method 'ewd'", "did you mean ewc"),
        (("alpha = 0.5", "alpha = 5"), "arm 'half': method 'interpolation': alpha is 5", "correct 'alpha'"),
        (('after = "plain"', 'after = "plan"'), "arm 'half': after: there is no 'plan'", "there are plain"),
        (('method = "interpolation"\noptions.interpolation.alpha = 0.5', 'method = "kl"'),
         "its method 'kl' trains", "interpolation"),
        (('arms = ["plain", "half"]', 'arms = ["half"]'),
         "repairs two/plain/longer/seed-4, which is no cell", "same variants"),
        (('family = "main"\n', ""), "repairs one/plain/base/seed-5, which is no cell", "same seeds"),
        (('scenarios = ["two"]', 'scenarios = ["too"]'),
         "variant 'longer': scenarios: there is no 'too'", "there are one, two"),
        (('judged_on = ["advbench"]', ""), "scenario 'one': no suite judges it", "judged_on"),
        (('name = "ewc"\n', 'name = "ewc"\nseeds = [9]\n'), "9 is none of the grid's seeds [4, 5]", "[grid]"),
        (("steps = 50", 'steps = 50\nadapter = "dora"'),
         "only a LoRA can be repaired afterwards, but adapter is 'dora'", "lora"),
    ],
)  # fmt: skip
def test_errors_name_file_key_value_and_remedy(read, tmp_path, replaced, said, remedy):
    with pytest.raises(ConfigError) as caught:
        read(*replaced)
    assert said in caught.value.problem
    assert caught.value.problem.startswith(f"{tmp_path / 'grid.toml'}: ")
    assert remedy in caught.value.remedy


def test_a_grid_without_arms_and_files_that_are_none(tmp_path):
    (tmp_path / "grid.toml").write_text(GRID[: GRID.index("[[arm]]")])
    with pytest.raises(ConfigError, match=r"there is no \[\[arm\]\]"):
        read_grid(tmp_path / "grid.toml")
    (tmp_path / "grid.toml").write_text("[grid")
    with pytest.raises(ConfigError, match="not TOML"):
        read_grid(tmp_path / "grid.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_grid(tmp_path / "none.toml")


def test_the_grid_that_ships():
    grid = read_grid()
    main = {a.name: a for a in grid.arms if a.family == "main"}
    assert {"plain", "replay", "kl", "interpolation", "ssr-uniform", "fwssr", "fwssr-adaptive"} == set(main)
    assert tomllib.loads(shipped_text())["grid"]["seeds"] == [0, 1, 2]
    assert [p.seed for p in plans(grid, ["bank/fwssr/base/*"])] == [0, 1, 2]
    assert [p.seed for p in plans(grid, ["bank/asft"])] == [0]


def test_expected_time_is_that_of_the_finished_cells_most_alike(read):
    def cell(plan, seconds, **changed):
        return Cell(
            scenario=plan.scenario.name,
            arm=plan.arm.name,
            method=plan.method,
            variant=plan.variant.name if plan.variant else "",
            seed=plan.seed,
            family=plan.family,
            kind="guard",
            after=plan.arm.after,
            learning_rate=1,
            steps=1,
            digest="",
            seconds=seconds,
            **changed,
        )

    found = {p.name: p for p in plans(read())}
    plain, other = found["one/plain/base/seed-4"], found["two/ewc/base/seed-4"]
    half = found["one/half/base/seed-4"]
    assert expected(plain, []) is None
    done = [
        cell(plain, 10),
        cell(found["one/plain/base/seed-5"], 30),
        cell(found["one/ewc/base/seed-4"], 100),
    ]
    assert expected(plain, done) == 20
    assert expected(found["one/ewc/base/seed-4"], done) == 100
    assert expected(other, done) == 30  # nothing of its scenario: the median of all
    assert expected(half, done) is None  # a repair trains nothing: it is not like these
    assert expected(half, [*done, cell(found["two/half/base/seed-4"], 3)]) == 3
    assert expected(plain, [cell(plain, 1, error="step 3: loss nan")]) is None
