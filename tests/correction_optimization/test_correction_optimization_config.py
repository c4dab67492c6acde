import dataclasses

import pytest
from helpers import make_args
from trl import DPOConfig, TrlParser

from correction_trl import CorrectionOptimizationConfig
from correction_trl.correction_optimization.correction_optimization_config import _UNUSED_DPO_SETTINGS, DEFAULTS
from correction_trl.correction_optimization.losses import LOSS_TYPES


OWN_FIELDS = [
    field
    for field in dataclasses.fields(CorrectionOptimizationConfig)
    if field.name not in {inherited.name for inherited in dataclasses.fields(DPOConfig)}
    or field.name in ("loss_type", "beta", "label_smoothing", "max_completion_length")
]


def config(tmp_path, **overrides) -> CorrectionOptimizationConfig:
    return CorrectionOptimizationConfig(**make_args(tmp_path, **overrides))


def parse(tmp_path, *arguments: str) -> CorrectionOptimizationConfig:
    base = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false", "--report_to", "none"]
    return TrlParser(CorrectionOptimizationConfig).parse_args_and_config([*base, *arguments])[0]


def test_defaults_are_the_documented_safe_ones(tmp_path):
    args = config(tmp_path)
    assert (args.loss_type, args.beta, args.reference_free, args.nll_weight) == ("sigmoid", 0.3, False, 0.36)
    assert (args.shared_prefix, args.max_staleness, args.unchanged_pairs) == ("auto", 0, "drop")


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_loss_is_accepted_and_stays_a_name(tmp_path, loss_type):
    assert config(tmp_path, loss_type=loss_type).loss_type == loss_type
    assert parse(tmp_path, "--loss_type", loss_type).loss_type == loss_type


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"loss_type": "simpo"}, r"Unknown `loss_type='simpo'`: expected one of linear, sigmoid, "),
        ({"loss_type": ["sigmoid", "sft"]}, "Unknown `loss_type="),
        ({"shared_prefix": "sometimes"}, "`shared_prefix` must be 'auto', True or False"),
        ({"shared_prefix": None}, "`shared_prefix` must be 'auto', True or False"),
        ({"unchanged_pairs": "forget"}, "`unchanged_pairs='forget'` must be one of 'drop', 'keep'"),
        ({"beta": 0.0}, "`beta=0.0` must be positive; for the bare log-ratio set `loss_type: linear`"),
        ({"beta": -0.1}, "`beta=-0.1` must be positive"),
        ({"nll_weight": -0.5}, "`nll_weight=-0.5` must not be negative"),
        ({"loss_type": "dpop", "reference_free": True}, "`loss_type='dpop'` .* needs `reference_free=False`"),
        ({"dpop_lambda": -1.0}, "`dpop_lambda=-1.0` must not be negative"),
        ({"label_smoothing": 0.5}, r"`label_smoothing=0.5` must lie in \[0, 0.5\)"),
        ({"label_smoothing": -0.1}, r"`label_smoothing=-0.1` must lie in \[0, 0.5\)"),
        (
            {"label_smoothing": 0.1, "loss_type": "hinge"},
            "`label_smoothing` belongs to `loss_type='sigmoid'`; with 'hinge'",
        ),
        ({"cpl_bias": 0.0}, r"`cpl_bias=0.0` must lie in \(0, 1\]"),
        ({"cpl_bias": 1.1}, r"`cpl_bias=1.1` must lie in \(0, 1\]"),
        ({"ddpo_gamma": 0.0}, "`ddpo_gamma=0.0` must be positive"),
        ({"credit": "last"}, "`credit='last'` must be one of 'all', 'from_edit', 'edits'"),
        ({"credit": "edits", "loss_type": "ddpo"}, "weighs the edited tokens itself .* leave `credit` at 'all'"),
        (
            {"loss_type": "sft", "nll_weight": 0.5},
            "`nll_weight=0.5` has no meaning for `loss_type: sft`.* set it to 0.0",
        ),
        ({"loss_type": "sft", "length_prior": {"name": "normal", "mean": 9, "std": 2}}, "`length_prior=.* no meaning"),
        ({"loss_type": "sft", "precompute_ref_log_probs": True}, "no meaning for `loss_type: sft`.* set it to false"),
        ({"loss_type": "sft", "shared_prefix": True}, "no prefix to share. Set `shared_prefix: auto`"),
        ({"max_staleness": -1}, "`max_staleness=-1` must be at least 0"),
        ({"max_completion_length": 0}, "`max_completion_length=0` must be at least 1"),
        ({"generation_batch_size": 0}, "`generation_batch_size=0` must be at least 1"),
        ({"temperature": 0.0}, "`temperature=0.0` must be positive; on-policy responses are samples of the policy"),
        ({"length_prior": "poisson"}, "`length_prior: 'poisson'` must be a mapping with a `name`, for example"),
        ({"length_prior": "{name: normal, mean"}, "`length_prior` is no mapping: "),
        ({"length_prior": {"mean": 3}}, "must be a mapping with a `name`"),
        (
            {"length_prior": {"name": "poisson"}},
            "the unknown name 'poisson': expected 'normal', 'lognormal'",
        ),
    ],
    ids=str,
)
def test_a_setting_that_makes_no_sense_is_named_in_one_sentence(tmp_path, settings, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        config(tmp_path, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"label_smoothing": 0.49},
        {"cpl_bias": 1.0, "loss_type": "cpl"},
        {"loss_type": "dpop", "dpop_lambda": 0.0},
        {"loss_type": "linear", "nll_weight": 0.0, "reference_free": True},
        {"length_prior": {"name": "normal", "mean": 20.0, "std": 4.0, "weight": 0.1, "form": "product"}},
        {"length_prior": {"name": "fitted", "lengths": [3, 5]}},
        {"max_staleness": 3, "generation_batch_size": 1},
    ],
    ids=str,
)
def test_settings_at_the_edge_of_what_makes_sense_are_accepted(tmp_path, settings):
    args = config(tmp_path, **settings)
    assert {name: getattr(args, name) for name in settings} == settings


UNUSED_VALUES = {
    "loss_weights": [1.0],
    "ld_alpha": 0.5,
    "f_divergence_type": "js_divergence",
    "f_alpha_divergence_coef": 0.3,
    "use_weighting": True,
    "discopop_tau": 0.1,
    "padding_free": True,
    "truncation_mode": "keep_end",
    "pad_token": "<pad>",
}


@pytest.mark.parametrize("name", _UNUSED_DPO_SETTINGS)
def test_a_setting_of_dpo_that_is_not_read_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"`{name}` has no meaning for correction optimization; remove it: "):
        config(tmp_path, **{name: UNUSED_VALUES[name]})


def test_the_settings_of_dpo_that_are_refused_still_exist():
    assert set(_UNUSED_DPO_SETTINGS) <= {field.name for field in dataclasses.fields(DPOConfig)}


@pytest.mark.parametrize(
    ("given", "meant"),
    [(True, True), (False, False), ("true", True), ("False", False), ("auto", "auto"), ("AUTO", "auto")],
)
def test_shared_prefix_takes_booleans_and_their_names(tmp_path, given, meant):
    assert config(tmp_path, shared_prefix=given).shared_prefix is meant


@pytest.mark.parametrize(("text", "meant"), [("true", True), ("false", False), ("auto", "auto")])
def test_shared_prefix_means_the_same_in_yaml_and_on_the_command_line(tmp_path, text, meant):
    assert parse(tmp_path, "--shared_prefix", text).shared_prefix is meant
    file = tmp_path / "config.yaml"
    file.write_text(f"shared_prefix: {text}\n")
    assert parse(tmp_path, "--config", str(file)).shared_prefix is meant
    assert parse(tmp_path, "--config", str(file), "--shared_prefix", "auto").shared_prefix == "auto"


def test_mappings_can_be_given_in_yaml_and_on_the_command_line(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("generation_kwargs: {typical_p: 0.9}\nlength_prior: {name: fitted, lengths: [3, 5]}\n")
    args = parse(tmp_path, "--config", str(file))
    assert args.generation_kwargs == {"typical_p": 0.9}
    assert args.length_prior == {"name": "fitted", "lengths": [3, 5]}
    for text in ('{"name": "fitted", "lengths": [3, 5]}', "{name: fitted, lengths: [3, 5]}"):
        args = parse(tmp_path, "--generation_kwargs", '{"typical_p": 0.9}', "--length_prior", text)
        assert args.generation_kwargs == {"typical_p": 0.9}
        assert args.length_prior == {"name": "fitted", "lengths": [3, 5]}


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_beta_and_the_anchor_have_a_default_of_each_loss(tmp_path, loss_type):
    args = config(tmp_path, loss_type=loss_type)
    assert (args.beta, args.nll_weight) == DEFAULTS[loss_type]
    args = config(tmp_path, loss_type=loss_type, beta=0.7, nll_weight=0.0)
    assert args.reference_free is (loss_type == "sft")
    assert (args.beta, args.nll_weight) == (0.7, 0.0)


@pytest.mark.parametrize("argument", ["--loss_type", "--unchanged_pairs", "--vllm_mode"])
def test_the_command_line_names_the_choices(tmp_path, argument, capsys):
    with pytest.raises(SystemExit):
        parse(tmp_path, argument, "nonsense")
    assert "choose from" in capsys.readouterr().err


@pytest.mark.parametrize("field", OWN_FIELDS, ids=lambda field: field.name)
def test_every_parameter_is_documented_with_its_default_and_has_help(field):
    assert field.metadata.get("help"), f"{field.name} has no help"
    documentation = CorrectionOptimizationConfig.__doc__
    line = next((line for line in documentation.splitlines() if line.strip().startswith(f"{field.name} (")), None)
    assert line, f"{field.name} is not in the docstring"
    if field.default is not None:
        shown = f'`"{field.default}"`' if isinstance(field.default, str) else f"`{field.default}`"
        assert f"defaults to {shown}" in line


def test_the_configuration_survives_a_round_trip(tmp_path):
    args = config(tmp_path, loss_type="cpl", shared_prefix=True, generation_kwargs={"typical_p": 0.9})
    for name, value in args.to_dict().items():
        if name in {field.name for field in OWN_FIELDS}:
            assert value == getattr(args, name)
    again = dataclasses.replace(args)
    assert again.loss_type == "cpl" and again.shared_prefix is True
