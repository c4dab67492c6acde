"""Mixtures: TRL's meaning of a fraction, any file that a recipe reads, and a sentence that names the dataset."""

import json
from dataclasses import replace

import pytest
from trl import DatasetMixtureConfig, get_dataset
from trl.scripts.utils import DatasetConfig

from correction_trl.carry_addition import embedded_path
from correction_trl.errors import BadInput
from correction_trl.mixtures import load_mixture, read_mixture
from correction_trl.recipe import ScriptArguments, parse


@pytest.fixture
def files(tmp_path):
    """`a` with 60 rows, `b` with 30, whose columns are the same; `c` has messages."""
    for name, n, prompt in (("a", 60, "a{}?"), ("b", 30, "b{}?"), ("c", 5, None)):
        rows = [
            {
                "prompt": prompt.format(i) if prompt else [{"role": "user", "content": "?"}],
                "answer": str(i),
                "source": name,
            }
            for i in range(n)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(tmp_path / f"{name}.jsonl") for name in "abc"}


def mixture(*datasets):
    return load_mixture(read_mixture(list(datasets)))


def test_fractions_are_trls_and_no_row_is_used_twice(files):
    mixed = mixture({"path": files["a"], "fraction": 1}, {"path": files["b"], "fraction": 3})
    assert mixed["prompt"] == [f"a{i}?" for i in range(10)] + [f"b{i}?" for i in range(30)]
    trl = [DatasetConfig("json", data_files=files[name], fraction=f) for name, f in (("a", 1), ("b", 3))]
    assert mixed.to_list() == get_dataset(DatasetMixtureConfig(datasets=trl))["train"].to_list()


def test_without_fractions_all_rows_are_there_and_each_has_its_split_and_columns(files):
    mixed = mixture(
        {"path": files["b"], "split": "train[:4]", "columns": ["answer", "prompt"]},
        {"path": files["a"], "split": "train[50%:]", "columns": ["prompt", "answer"]},
    )
    assert len(mixed) == 4 + 30 and set(mixed.column_names) == {"prompt", "answer"}
    folder = embedded_path("carry_addition")
    mixed = mixture({"path": folder, "split": "validation"}, folder)
    one = [mixture({"path": folder, "split": split}) for split in ("validation", "train")]
    assert len(mixed) == sum(map(len, one)) and mixed[0] == one[0][0] and mixed[-1] == one[1][-1]


@pytest.mark.parametrize(
    ("datasets", "sentence"),
    [
        ([{"path": "a", "fration": 0.5}], r"number 1 \(a.jsonl\): `fration` is unknown; did you mean `fraction`"),
        ([{"path": "a", "weights": 1}], "`weights` is unknown; it takes path, name, "),
        ([{"name": "x"}], "number 1: name the dataset"),
        ([{"path": "a", "fraction": 0}], r"number 1 \(a.jsonl\): `fraction: 0` must be a positive number"),
        ([{"path": "a", "fraction": float("nan")}], "must be a positive number"),
        ([{"path": "a", "fraction": True}], "must be a positive number"),
        ([{"path": "a", "fraction": 1}, {"path": "b"}], "number 2: has no `fraction`, and others have"),
        ([{"path": "a", "columns": "prompt"}], r"`columns: prompt` must be a list"),
        ([{"path": "a", "split": 3}], "`split: 3` must be a text"),
        ([{"path": "a", "columns": ["promt"]}], "number 1 .*: it has no column 'promt'; its columns are prompt"),
        ([{"path": "a"}, {"path": "b", "split": "test"}], r"number 2 \(b.jsonl\): its split 'test' cannot be loaded"),
        ([{"path": "a"}, {"path": "nowhere/at-all"}], r"number 2 \(nowhere/at-all\): its split"),
        ([{"path": "a"}, {"path": "b", "columns": ["prompt"]}], "number 2 .*its columns are prompt, and those of"),
        ([{"path": "a"}, {"path": "c"}], r"number 2 \(c.jsonl\): its column 'prompt' is .*write both alike"),
        (
            [{"path": "a", "fraction": 1000}, {"path": "b", "fraction": 1}],
            r"number 2 \(b.jsonl\): with `fraction: 1` none of its rows is in the mixture of 60",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_names_the_dataset_and_the_remedy(files, datasets, sentence):
    datasets = [{**d, "path": files.get(d["path"], d["path"])} if "path" in d else d for d in datasets]
    with pytest.raises(BadInput, match=sentence):
        mixture(*datasets)


def test_a_recipes_yaml_has_the_mixture_and_nothing_that_contradicts_it(files, tmp_path):
    config = tmp_path / "mine.yaml"
    text = f"datasets:\n  - path: {files['a']}\n    fraction: 0.5\n  - {{path: {files['b']}, fraction: 0.5}}\n"
    config.write_text(text)
    (arguments,) = parse((ScriptArguments,), config, ["--config", str(config)])
    assert arguments.datasets == [DatasetConfig(files[name], fraction=0.5) for name in "ab"]
    assert not arguments.embedded and len(arguments.load_mixture()) == 60
    (arguments,) = parse((ScriptArguments,), config, ["--datasets", files["a"], files["b"]])
    assert arguments.datasets == [DatasetConfig(files[name]) for name in "ab"]
    templated = replace(arguments, prompt_template="Once more: {answer}")
    assert templated.load_mixture()[-1]["prompt"] == [{"role": "user", "content": "Once more: 29"}]
    for more, sentence in (
        ("train_rows: 4\n", "and so does `train_rows`"),
        ("dataset_name: x/y\n", "and so does `dataset_name`"),
    ):
        config.write_text(text + more)
        with pytest.raises(SystemExit, match=sentence):
            parse((ScriptArguments,), config, ["--config", str(config)])
    config.write_text("datasets: {path: x}\n")
    with pytest.raises(SystemExit, match="must be a list"):
        parse((ScriptArguments,), config, ["--config", str(config)])
