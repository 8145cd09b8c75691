"""Configuration: what is accepted, what is refused and in which words."""

import tomllib
from pathlib import Path

import pytest

from pipeline import configfile
from pipeline.config import Config
from shards.errors import InputError

ROOT = Path(__file__).parents[1]


def parsed(*overrides: str) -> Config:
    tables = {"data": {"train": "somewhere"}, "optim": {"epochs": 120}}
    return configfile.parse(tables, overrides, name="test", where="test.toml")


def test_defaults_are_the_papers() -> None:
    config = parsed()
    alasca = config.method.alasca
    assert (alasca.aux_weight, alasca.momentum, alasca.temperature) == (2.0, 0.7, 0.333)
    assert config.alasca_warmup_epochs == 30  # of 120
    assert parsed("--method.alasca.warmup_epochs", "3").alasca_warmup_epochs == 3
    assert parsed("--method.base", "gce").method.base_options == {"q": 0.7}
    assert parsed("--method.base", "sce").method.base_options == {"alpha": 1.0, "beta": 0.4}
    assert parsed().method.base_options == {}
    assert config.heads == "light"
    assert config.pretrained is None
    assert parsed("--model.pretrained", "DEFAULT").pretrained == "DEFAULT"
    assert parsed("--method.aux", "none").heads == "none"


def test_elr_plus_averages_weights_as_published_unless_told_how() -> None:
    assert (parsed().optim.ema, parsed("--method.pair", "coteaching").optim.ema) == (0.0, 0.0)
    config = parsed("--method.pair", "elr+")
    assert config.optim.ema == 0.997
    assert configfile.parse(tomllib.loads(config.to_toml()), name="other", where="") == config
    assert parsed("--method.pair", "elr+", "--optim.ema", "0.9").optim.ema == 0.9


def test_what_one_types_often_is_short() -> None:
    run = parsed("--max-minutes", "1.5", "--resume=auto").run
    assert (run.max_minutes, run.resume) == (1.5, "auto")
    for word in ("resume", "--max-minute"):
        with pytest.raises(InputError, match=f"unknown argument '{word}'"):
            parsed(word, "1")
    with pytest.raises(InputError, match=r"run.max_minutes = 0: Input should be greater than 0"):
        parsed("--max-minutes", "0")


def test_overrides_are_toml_values_or_plain_words() -> None:
    config = parsed(
        "--optim.lr", "1e-2", "--optim.schedule=multistep", "--optim.milestones", "[60, 90]", "--data.train", "a b",
        "--data.flip", "false", "--eval.clean-test.data", "x", "--run.name", "2024-01-01",
    )  # fmt: skip
    assert config.optim.lr == 0.01
    assert config.optim.milestones == (60, 90)
    assert config.data.train == "a b"
    assert config.data.flip is False
    assert config.eval.sets["clean-test"].data == "x"
    assert config.run.name == "2024-01-01"
    assert parsed("--run.name", "1e5").run.name == "1e5"


def test_what_is_written_reads_back_the_same() -> None:
    config = parsed("--eval.a.data", "x", "--eval.b.data", "y", "--eval.every", "3", "--model.pretrained", "w.pt")
    assert configfile.parse(tomllib.loads(config.to_toml()), name="other", where="") == config


def test_options_that_a_method_does_not_go_by_are_known() -> None:
    other = ("--method.coteaching.forget_rate", "0.9", "--method.gce.q", "0.5", "--method.elr.beta", "0.9")
    method = parsed("--method.pair", "coteaching+", "--method.alasca.momentum", "0.9", *other).method
    assert method.idle == {"coteaching.forget_rate": 0.9, "gce.q": 0.5, "elr.beta": 0.9}
    assert method.effective == parsed("--method.pair", "coteaching+", "--method.alasca.momentum", "0.9").method
    used = parsed("--method.pair", "elr+", "--method.elr.beta", "0.9", "--method.elr_plus.ramp_epochs", "3").method
    assert used.idle == {} and used.effective == used
    used = parsed("--method.base", "adaptive", "--method.aux", "none", "--method.alasca.momentum", "0.9").method
    assert used.idle == {} and used.effective == used
    used = parsed(
        "--method.penalty", "jacobian", "--method.jacobian.n_proj", "3", "--method.har.class_errors", "x"
    ).method
    assert used.idle == {"har.class_errors": ("x",)}
    current = ("--method.alasca.confidence", "current", "--method.alasca.temperature", "0.5")
    assert parsed(*current).method.idle == {"alasca.temperature": 0.5}
    weight = ("--method.base", "adaptive", "--method.aux", "none", "--method.alasca.aux_weight", "9")
    assert parsed(*weight).method.idle == {"alasca.aux_weight": 9.0}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--optim.lrr", "3"], "unknown key 'optim.lrr'; did you mean 'lr'?"),
        (["--evl.every", "3"], "unknown key 'evl'; did you mean 'eval'?"),
        (["--eval.evry", "3"], "unknown key 'eval.evry'; did you mean 'every'?"),
        (["--eval.test.dat", "y"], "unknown key 'eval.test.dat'; did you mean 'data'?"),
        (["--method.alasca.temp", "1"], "unknown key 'method.alasca.temp'; did you mean 'temperature'?"),
        (["--data.micro_batch", "1"], "data.micro_batch = 1: Input should be greater than or equal to 2"),
        (["--optim.lr", "fast"], "optim.lr = 'fast': Input should be a valid number"),
        (["--optim.lr", "nan"], "optim.lr"),
        (["--data.subset", "2.0"], "data.subset = 2.0: a share must be above 0 and at most 1"),
        (["--data.subset", "50"], "data.subset = 50: a share must be"),
        (["--data.subset", "[1]"], "data.subset = [1]: must be a share, a part"),
        (["--data.balance", "-5"], "data.balance = -5: must be true, false, or a number of samples from 1"),
        (["--data.balance", "maybe"], "data.balance = 'maybe': must be true"),
        (["--optim.schedule", "multistep"], "milestones go with schedule = 'multistep'"),
        (["--optim.schedule", "multistep", "--optim.milestones", "[9, 3]"], "must rise"),
        (["--optim.schedule", "multistep", "--optim.milestones", "[90, 120]"], "not before the end of the 120 epochs"),
        (["--optim.nesterov", "true", "--optim.momentum", "0"], "nesterov needs momentum"),
        (["--optim.warmup_epochs", "120"], "warmup_epochs 120 must be shorter than the 120 epochs"),
        (["--model.heads", "light", "--method.aux", "none"], "would never learn"),
        (["--model.heads", "none"], "needs heads"),
        (["--method.pair", "elr+", "--optim.ema", "0"], "drop optim.ema = 0 for 0.997"),
        (["--method.pair", "elr+", "--method.base", "gce"], "that of [method.elr]: drop base = 'gce'"),
        (["--method.pair", "elr+", "--method.penalty", "har"], "penalty = 'har' is for one network"),
        (["--method.pair", "elr+", "--method.elr_plus.mixup_alpha", "0"], "method.elr_plus.mixup_alpha = 0"),
        (["--method.pair", "elr+", "--method.elr_plus.ramp_epochs", "-1"], "method.elr_plus.ramp_epochs = -1"),
        (
            ["--method.pair", "coteaching+", "--optim.epochs", "20"],
            "coteaching_plus.initial_epochs = 20 leaves none of",
        ),
        (
            ["--method.pair", "decoupling", "--method.decoupling.warmup_epochs", "120"],
            "warmup_epochs = 120 leaves none",
        ),
        (["--run.name", "../x"], "run.name = '../x'"),
        (["--data.lanes"], "--data.lanes has no value"),
        (["lanes", "3"], "unknown argument 'lanes'"),
        (["--lanes", "3"], "unknown argument '--lanes'"),
        (["--data.train.x", "3"], "'train' is a value, not a table"),
    ],
)
def test_mistakes_are_one_line_that_says_how_to_mend_them(overrides: list[str], words: str) -> None:
    with pytest.raises(InputError) as error:
        parsed(*overrides)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the configuration .*none.toml: No such file"):
        configfile.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[data\n")
    with pytest.raises(InputError, match=r"bad.toml is not valid TOML: .*line 1"):
        configfile.load(tmp_path / "bad.toml")
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(InputError, match="'data' is missing; 'optim' is missing"):
        configfile.load(tmp_path / "empty.toml")


def test_a_section_that_is_a_value_is_named() -> None:
    with pytest.raises(InputError, match="run = 3: Input should be a valid dictionary"):
        configfile.parse({"run": 3, "data": {"train": "x"}, "optim": {"epochs": 1}}, name="x", where="test")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_load_and_are_short(path: Path) -> None:
    config = configfile.load(path)
    assert config.run.name == path.stem
    assert len(path.read_text().splitlines()) <= 40
