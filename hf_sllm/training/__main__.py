"""`python -m hf_sllm.training RECIPE [--resume] [--output-dir DIR]`: what `hf-sllm train` runs."""

import argparse

from .recipe import load_recipe
from .run import train


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(prog="python -m hf_sllm.training", description="Train an SLLM by a recipe.")
    parser.add_argument("recipe", help="a YAML file, or the name of a recipe that comes with the package")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output folder")
    parser.add_argument("--output-dir", help="where to save; by default what the recipe says")
    arguments = parser.parse_args()
    train(load_recipe(arguments.recipe, arguments.output_dir), resume=arguments.resume)


if __name__ == "__main__":
    main()
