"""
The command `correction-trl`: a recipe by its name, launched through accelerate.

    correction-trl score
    correction-trl score --config qlora_24gb --dataset_name your-name/your-problems
    correction-trl correction_optimization --config_file two_cpu_processes --max_steps 10

Arguments of `accelerate launch` go to it, all others to the recipe. Files that the package ships are found by name.
"""

import difflib
import sys
from pathlib import Path


def recipes_folder() -> Path:
    """Where the recipes lie: in the installed package, or at the top of the clone around it."""
    package = Path(__file__).parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise SystemExit("This installation holds no recipes; install `correction-trl` again.")


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """
    Which arguments are `accelerate launch`'s, and which the recipe's. A name that both know is the recipe's, but for
    `--config_file`.
    """
    from accelerate.commands.launch import launch_command_parser
    from transformers import TrainingArguments

    known = {option for action in launch_command_parser()._actions for option in action.option_strings}
    known -= {f"--{name}" for name in TrainingArguments.__dataclass_fields__}
    known -= {"-h", "--help"}
    for_accelerate: list[str] = []
    for_recipe: list[str] = []
    current: list[str] | None = None
    for argument in arguments:
        if argument.startswith("--"):
            current = for_accelerate if argument.partition("=")[0] in known else for_recipe
        (for_recipe if current is None else current).append(argument)
    return for_accelerate, for_recipe


def main(argv: list[str] | None = None) -> None:
    """The entry point of `correction-trl`."""
    argv = sys.argv[1:] if argv is None else argv
    folder = recipes_folder()
    names = sorted(path.stem for path in folder.glob("*.py"))
    if not argv or argv[0] in ("-h", "--help"):
        configs = {name: sorted(p.stem for p in (folder / "configs" / name).glob("*.yaml")) for name in names}
        print(
            "correction-trl RECIPE [--config NAME or FILE.yaml] [arguments of the recipe and of `accelerate launch`]\n"
        )
        for name in names:
            print(f"  {name:24} {', '.join(configs[name])}")
        print("\n`correction-trl RECIPE --help` lists a recipe's arguments.")
        return
    if argv[0] == "--version":
        from . import __version__

        print(__version__)
        return
    if argv[0] not in names:
        close = difflib.get_close_matches(argv[0], names, n=1)
        guess = f"; did you mean `{close[0]}`?" if close else "."
        raise SystemExit(f"There is no recipe `{argv[0]}`{guess} The recipes: {', '.join(names)}.")
    recipe = str(folder / f"{argv[0]}.py")
    if "--help" in argv or "-h" in argv:
        import runpy

        sys.argv = [recipe, "--help"]
        runpy.run_path(recipe, run_name="__main__")
        return

    from accelerate.commands.launch import launch_command, launch_command_parser

    for_accelerate, for_recipe = split_arguments(argv[1:])
    if "--config_file" in for_accelerate:
        at = for_accelerate.index("--config_file") + 1
        shipped = folder / "accelerate_configs" / f"{''.join(for_accelerate[at : at + 1])}.yaml"
        if shipped.is_file() and not Path(for_accelerate[at]).is_file():
            for_accelerate[at] = str(shipped)
    launch_command(launch_command_parser().parse_args([*for_accelerate, recipe, *for_recipe]))
