"""Variants of a recipe are trained beside one baseline, and what is there already is not trained again."""

import csv
import json

import pytest
import yaml

from hf_sllm.training.ablate import ABLATIONS, ablate
from hf_sllm.training.recipe import find_recipe, load_recipe, merge, read_yaml


def write(tmp_path, recipe, **values):
    file = tmp_path / "ablation.yaml"
    variants = {"plain": {}, "one latent": {"sllm_config": {"num_latents": 1}}}
    changes = {"max_steps": 2, "sllm_config": {"latent_size": 8}}
    file.write_text(
        yaml.safe_dump({"recipe": str(recipe), "changes": changes, "variants": variants, **values}, sort_keys=False)
    )
    return file


def test_each_variant_has_its_ratio_to_the_one_baseline_and_its_curve(recipe_file, tmp_path):
    file = write(tmp_path, recipe_file())
    results = ablate(file, tmp_path / "out")
    assert [line.name for line in results] == ["backbone trained", "plain", "one latent"]
    assert all(line.ratio == line.bits_per_byte / results[0].bits_per_byte for line in results[1:])
    sizes = [json.loads((tmp_path / "out" / name / "config.json").read_text()) for name in ("plain", "one latent")]
    assert [(config["num_latents"], config["latent_size"]) for config in sizes] == [(2, 8), (1, 8)]
    rows = list(csv.DictReader((tmp_path / "out" / "curves.csv").open()))
    assert {row["model"] for row in rows} == {"backbone trained", "plain", "one latent"}
    weights = tmp_path / "out" / "plain" / "model.safetensors"
    trained = weights.stat().st_mtime_ns
    assert ablate(file, tmp_path / "out") == results
    assert weights.stat().st_mtime_ns == trained


def test_other_keys_are_refused(recipe_file, tmp_path):
    with pytest.raises(ValueError, match="it must have changes, recipe, variants"):
        ablate(write(tmp_path, recipe_file(), variant={}), tmp_path / "out")


@pytest.mark.parametrize("file", sorted(ABLATIONS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_packages_ablations_change_recipes_that_can_be_read(file, tmp_path):
    values = read_yaml(find_recipe(file.stem, ABLATIONS))
    for variant in values["variants"].values():
        load_recipe(values["recipe"], tmp_path, merge(values["changes"], variant))
