"""
Run every notebook with the small budget that it takes in CI, and keep it with its outputs: .ci/notebooks.py FOLDER

A cell that fails fails the build, and so does a notebook without a picture at its end.
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def main(folder: Path) -> None:
    os.environ["CI"] = "true"  # what the notebooks look at
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb")):
        start = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(
            notebook,
            timeout=300,  # s, a cell
            resources={"metadata": {"path": str(folder)}},  # where the cells write
        ).execute()
        nbformat.write(notebook, folder / path.name)
        outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
        if not any("image/png" in output.get("data", {}) for output in outputs):
            raise SystemExit(f"{path.name} showed no picture")
        print(f"notebooks/{path.name}: ok, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
