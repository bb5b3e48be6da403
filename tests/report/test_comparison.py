"""The list of runs."""

from lesionfast.report.comparison import runs_table


def test_runs_table_shows_ended_and_unfinished_runs(make_run, render, line_of):
    done, broken = make_run(), make_run(n=50)
    (broken.path / "metrics.json").unlink()
    lines = render(runs_table([done, broken]))
    rules = done.metrics["test"]["rules"]["balanced"]
    words = line_of(lines, done.path.name)
    assert words[1] == f"{rules['balanced_accuracy']:.3f}"
    assert words[3] == f"{rules['mel_sensitivity']:.3f}"
    assert words[4:] == ["1.5", "finished"]
    assert line_of(lines, broken.path.name)[-2:] == ["not", "ended"]
