import numpy as np
import pytest
from small_run import AFTER, BEFORE, is_png

from correction_trl.evaluation.metrics import summarize
from correction_trl.reporting import plots
from correction_trl.reporting.plots import plot_before_after, plot_edit_distribution, plot_learning_curves


class TestPictures:
    HISTORY = [
        {"step": step, "epoch": step / 10, "loss": 1 / step, "logps/response": -step, "logps/correction": -2.0}
        for step in range(1, 11)
    ]

    def drawn(self, monkeypatch):
        """The figures that were saved."""
        figures = []
        save = plots.save_figure
        monkeypatch.setattr(plots, "save_figure", lambda figure, path: (figures.append(figure), save(figure, path))[1])
        return figures

    def test_learning_curves_show_what_was_logged(self, tmp_path, monkeypatch):
        figures = self.drawn(monkeypatch)
        history = [*self.HISTORY, {"step": 10, "eval_loss": 0.2}, {"step": 10, "train_loss": 0.3, "train_runtime": 9}]
        assert is_png(plot_learning_curves(history, tmp_path / "new" / "curves.png"))
        loss, log_probs = figures[0].axes
        assert (loss.get_title(loc="left"), log_probs.get_title(loc="left")) == ("Loss", "Log-probability")
        assert loss.get_xlabel() == "optimizer step" and log_probs.get_ylabel() == "nats per sequence"
        assert list(loss.lines[0].get_ydata()) == [1 / step for step in range(1, 11)]
        assert list(loss.lines[1].get_xdata()) == [10] and list(loss.lines[1].get_ydata()) == [0.2]
        assert [text.get_text() for text in log_probs.get_legend().texts] == ["response y", "correction y'"]

    def test_learning_curves_with_own_panels_and_gaps(self, tmp_path, monkeypatch):
        figures = self.drawn(monkeypatch)
        history = [{"step": 1, "share": 0.5}, {"step": 2, "share": float("nan")}, {"step": 3, "share": 0.25}]
        assert is_png(plot_learning_curves(history, tmp_path / "c.png", [("Share", "share (%)", {"share": "s"})]))
        assert list(figures[0].axes[0].lines[0].get_ydata()) == [50, 25]

    @pytest.mark.parametrize("history", [[], [{"step": 3, "train_loss": 0.5, "train_runtime": 1.0}]])
    def test_a_run_too_short_to_be_logged_does_not_fail(self, tmp_path, caplog, history):
        assert plot_learning_curves(history, tmp_path / "c.png") is None
        assert "logging_steps" in caplog.text
        assert not (tmp_path / "c.png").exists()

    def test_long_runs_are_smoothed_without_lag(self, tmp_path, monkeypatch):
        figures = self.drawn(monkeypatch)
        history = [{"step": step, "loss": float(step)} for step in range(1, 201)]
        plot_learning_curves(history, tmp_path / "c.png")
        smooth = figures[0].axes[0].lines[1]
        np.testing.assert_allclose(smooth.get_xdata(), smooth.get_ydata(), atol=0.51)

    def test_before_after_shows_values_and_intervals(self, tmp_path, monkeypatch):
        figures = self.drawn(monkeypatch)
        labels = {"acc@t1": "right answers"}
        assert is_png(plot_before_after(BEFORE, AFTER, tmp_path / "b.png", labels=labels))
        accuracy, log_probs = figures[0].axes
        assert [label.get_text() for label in accuracy.get_yticklabels()] == ["right answers"]
        assert accuracy.get_xlabel() == "problems answered right (%)" and log_probs.get_xlabel() == "nats"
        assert [text.get_text() for text in accuracy.texts] == ["50.0%  →  66.7%"]
        interval, point = accuracy.lines[2], accuracy.lines[3]
        assert list(interval.get_xdata()) == [100 * AFTER["acc@t1"]["low"], 100 * AFTER["acc@t1"]["high"]]
        assert list(point.get_xdata()) == [100 * AFTER["acc@t1"]["mean"]]

    def test_before_after_without_values_or_keys(self, tmp_path):
        nothing = {"acc@t1": summarize([])}
        assert plot_before_after(nothing, nothing, tmp_path / "b.png") is None
        with pytest.raises(ValueError, match=r"Cannot draw \['acc@t2'\]"):
            plot_before_after(BEFORE, AFTER, tmp_path / "b.png", keys=["acc@t2"])

    def test_edit_distribution_counts_every_problem_once(self, tmp_path, monkeypatch):
        figures = self.drawn(monkeypatch)
        assert is_png(plot_edit_distribution([0, 0.05, 0.1, 1.0, None], [0, 0, 0.11, np.nan], tmp_path / "e.png"))
        (axis,) = figures[0].axes
        heights = np.array([bar.get_height() for bar in axis.patches]).reshape(2, 11)
        np.testing.assert_allclose(heights[0], [0.25, 0.5, 0, 0, 0, 0, 0, 0, 0, 0, 0.25])
        np.testing.assert_allclose(heights[1], [2 / 3, 0, 1 / 3, 0, 0, 0, 0, 0, 0, 0, 0])
        assert "n = 4" in axis.get_legend().texts[0].get_text()
        assert axis.get_xticklabels()[2].get_text() == "10-20"

    def test_edit_distribution_tells_small_edits_apart(self, tmp_path, monkeypatch):
        figures = self.drawn(monkeypatch)
        plot_edit_distribution([0.01, 0.02, 0.095], [], tmp_path / "e.png")
        heights = [bar.get_height() for bar in figures[0].axes[0].patches]
        assert [round(3 * height) for height in heights] == [0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1]

    def test_edit_distribution_without_corrections_or_with_wrong_ratios(self, tmp_path):
        assert plot_edit_distribution([None], [], tmp_path / "e.png") is None
        with pytest.raises(ValueError, match="outside \\[0, 1\\]"):
            plot_edit_distribution([7.0], [0.5], tmp_path / "e.png")
