"""A fault of a notebook's parameters is one line in the notebook, with no traceback before or after it."""

import pytest
from IPython.core.interactiveshell import InteractiveShell

from paperlib.experiments.folding import MissingInputError, SettingsError, fold_traceback
from paperlib.experiments.study import Study


@pytest.mark.parametrize(
    ("error", "kind"), [(ValueError("epochs: no"), SettingsError), (FileNotFoundError("x: none"), MissingInputError)]
)
def test_an_error_keeps_its_text_and_type(error, kind):
    with pytest.raises(type(error), match=str(error)) as caught, fold_traceback():
        raise error
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        ("epoch = 1", "did you mean 'epochs'?"),
        ("epochs = 'twelve'", "epochs: "),
        ("detector = 'yolov4-tinny'", "did you mean 'yolov4-tiny'?"),
        ("weights = 'nowhere.weights'", "paperlib data fetch coco-weights"),
        ("dataset = 'vhr10'", "paperlib data fetch"),
    ],
)
def test_a_notebook_shows_one_line(parameter, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path))
    monkeypatch.setenv("PAPERLIB_WEIGHTS", str(tmp_path))
    shell = InteractiveShell()
    shell.user_ns["Study"] = Study
    cells = f"# Parameters\n{parameter}"
    shell.user_ns["In"] = ["", cells]
    capsys.readouterr()
    shell.run_cell(cells, store_history=True)
    result = shell.run_cell("study = Study.begin('01_scale_factor', globals())", store_history=True)
    assert result.error_in_exec is not None
    shown = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [line for line in shown if "Traceback" in line] == []
    assert shown[-1].startswith("paperlib: ") and said in shown[-1]
