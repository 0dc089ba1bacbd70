"""Executes the notebooks of this folder and writes them, with their results, as pages of the documentation.

`python examples/render.py [NAME ...]` needs the dependency group `docs`. A notebook whose data is not there keeps its page.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import jupytext
from nbclient.exceptions import CellExecutionError
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExecutePreprocessor
from traitlets.config import Config

HERE = Path(__file__).parent
PAGES = HERE.parent / "docs" / "examples"
NOTEBOOKS = sorted(path for path in HERE.glob("*.py") if path != Path(__file__))


def render(source: Path) -> str:
    """Write one page and its figures; returns what became of it."""
    notebook = jupytext.read(source)
    try:
        ExecutePreprocessor(timeout=600, kernel_name="python3").preprocess(notebook, {"metadata": {"path": str(HERE)}})
    except CellExecutionError as error:
        if error.ename == "SystemExit":
            return error.evalue
        raise
    name, folder = source.stem, PAGES / f"{source.stem}_files"
    settings = Config(
        {"NbConvertBase": {"display_data_priority": ["image/png", "text/html", "text/markdown", "text/plain"]}}
    )
    text, resources = MarkdownExporter(config=settings).from_notebook_node(
        notebook, {"output_files_dir": folder.name, "unique_key": name}
    )
    text = re.sub(r"<style scoped>.*?</style>\n", "", text, flags=re.DOTALL).replace(
        ' border="1" class="dataframe"', ""
    )
    text = text.replace(' style="text-align: right;"', "")
    text = re.sub(r"^!\[png\]", "![Figure]", text, flags=re.MULTILINE)
    shutil.rmtree(folder, ignore_errors=True)
    for file, content in resources["outputs"].items():
        (PAGES / file).parent.mkdir(parents=True, exist_ok=True)
        (PAGES / file).write_bytes(content)
    note = f"\n*This page is `examples/{source.name}`, executed. The file opens as a notebook in Jupyter (with jupytext) and in VS Code.*\n"
    (PAGES / f"{name}.md").write_text(text.strip() + "\n" + note, encoding="utf-8")
    return f"{PAGES / name}.md"


if __name__ == "__main__":
    os.environ.pop("MPLBACKEND", None)
    chosen = [HERE / f"{name}.py" for name in sys.argv[1:]] or NOTEBOOKS
    PAGES.mkdir(exist_ok=True)
    for source in chosen:
        print(f"{source.name}: {render(source)}", flush=True)
