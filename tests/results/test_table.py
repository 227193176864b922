"""Tables: what is averaged, what is refused, what is marked, and how it is written."""

import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import scipy.stats

import invbench
from invbench.core.method import Method
from invbench.core.registry import DATASETS, METHODS, register_method
from invbench.errors import UserError
from invbench.results.display_names import display_dataset, display_method, display_metric
from invbench.results.formats import Format, written
from invbench.results.layout import PAPER, Style, laid_out, notes
from invbench.results.selection import Select
from invbench.results.table import completeness, higher_is_better, omitted
from invbench.spreadsheet import csv


def rows(**columns: list[object]) -> pd.DataFrame:
    """Return runs that differ in the given columns, as `load_results` would."""
    count = len(next(iter(columns.values())))
    base: dict[str, object] = {
        "status": "done", "method": "erm", "dataset": "spirals", "backbone": "mlp", "protocol": "last",
        "cost.seconds_per_step": 0.1, "data.metric": "test_accuracy",
    }  # fmt: skip
    return pd.DataFrame([base | {name: values[i] for name, values in columns.items()} for i in range(count)])


@pytest.mark.parametrize("select", list(Select))
def test_nothing_to_tabulate(select: str) -> None:
    with pytest.raises(UserError, match="no finished run in these results .they are empty"):
        invbench.table(pd.DataFrame(), select=select)
    with pytest.raises(UserError, match="no finished run in these results .1 failed"):
        invbench.table(rows(status=["failed"]), select=select)


def test_interval_against_a_table_of_t() -> None:
    means = invbench.table(rows(test_accuracy=[1.0, 2.0, 3.0])).iloc[0]
    assert (means["n"], means["mean"]) == (3, 2.0)
    assert means["half_width"] == pytest.approx(4.302653 / 3**0.5, rel=1e-6)  # t(2) at 97.5 %, ddof = 1


def test_p_values_are_combined_and_corrected() -> None:
    """Twice the median of each row, times the number of rows for the smallest one; no interval, no best, no mean."""
    p_values = [0.01, 0.02, 0.3, 0.4, 0.5, 0.9]
    frame = rows(method=["erm"] * 3 + ["vrex"] * 3, seed=[0, 1, 2] * 2, test_invariance_p=p_values)
    means = invbench.table(frame, "test_invariance_p")
    assert means["mean"].tolist() == pytest.approx([2 * 0.04, 1.0])
    assert means["half_width"].isna().all()
    assert not means["best"].any()
    single = invbench.table(rows(test_invariance_p=[0.03]), "test_invariance_p")
    assert single["mean"].tolist() == [0.03]
    note, meaning = notes(means, {})
    assert meaning.startswith("a small one: given the prediction")
    assert note.startswith("test_invariance_p: twice the median over seeds, Holm-corrected over the table's rows")
    with pytest.raises(UserError, match="p-values of several problems have no mean"):
        laid_out(means, with_mean=True)


def test_runs_of_different_settings_are_never_averaged() -> None:
    frame = rows(test_accuracy=[0.1, 0.3, 0.9], **{"method.threshold": [0.0, 0.0, 1.0], "trainer.epochs": [5, 5, 5]})
    means = invbench.table(frame)
    assert means["method.threshold"].tolist() == [0.0, 1.0]
    assert means["n"].tolist() == [2, 1]
    assert "trainer.epochs" not in means, "what all rows share is not shown"
    assert pd.isna(means["half_width"].iloc[1])
    with pytest.raises(UserError, match=r"erm spirals: runs with method.threshold 0 and 1 are not averaged"):
        laid_out(means, rows=["method"])


def test_rows_are_sorted_by_numbers_and_whole_ones_have_no_point() -> None:
    steps = [100.0, 20.0, math.nan, 3.0]
    frame = rows(method=["vrex", "vrex", "erm", "vrex"], test_accuracy=[0.1, 0.2, 0.3, 0.4], **{"method.steps": steps})
    layout = laid_out(invbench.table(frame))
    assert [head for head, _ in layout.rows] == [["erm", ""], ["vrex", "3"], ["vrex", "20"], ["vrex", "100"]]


@pytest.mark.parametrize("name", ["protocol", "data.variant"])
def test_neither_are_those_of_different_protocols_or_variants(name: str) -> None:
    means = invbench.table(rows(test_accuracy=[0.1, 0.3], **{name: ["one", "other"]}))
    assert means[name].tolist() == ["one", "other"]
    assert not means["best"].any() or name == "protocol", "another variant is another problem"
    with pytest.raises(UserError, match=f"runs with {name} one and other are not averaged"):
        laid_out(means, rows=["method"], columns=["dataset"])


def test_other_data_are_refused() -> None:
    frame = rows(
        run_id=["a", "b"], method=["erm", "vrex"], seed=[3, 3], test_accuracy=[0.1, 0.3],
        **{"data.fingerprint": ["x", "y"]},
    )  # fmt: skip
    with pytest.raises(UserError, match="spirals seed 3 had other data in run a than in b"):
        invbench.table(frame)
    assert len(invbench.table(frame.assign(seed=[3, 4]))) == 2, "each seed draws its own"


def test_omitted_runs_do_not_count_and_are_told() -> None:
    frame = rows(
        status=["done", "done", "failed", "failed", "lost"], test_accuracy=[0.5, 0.7, None, None, None],
        seed=[0, 1, 2, 3, 4], kind=[None, None, "oom", "diverged", None],
        **{"data.variant": ["v", "v", None, None, None]},
    )  # fmt: skip
    means = invbench.table(frame)
    assert (means["n"].tolist(), means["runs"].tolist()) == ([2], [5])
    assert "(2/5)" in written(laid_out(means), [], Format.text)
    assert omitted(frame) == {"failed (oom)": 1, "failed (diverged)": 1, "lost": 1}
    assert "not in the table: 1 failed (oom)" in notes(means, omitted(frame))
    assert completeness(frame) == ["2 of 5 runs done, 2 failed, 1 not finished"]
    assert completeness(frame[:2]) == []


def test_a_run_in_two_folders_counts_once() -> None:
    frame = rows(
        run_id=["a", "a", "a", "b"], status=["done", "done", "failed", "done"], test_accuracy=[0.1, 0.2, None, 0.4],
        finished=["2026-01-01", "2026-01-02", "2026-01-03", "2026-01-01"], seed=[0, 0, 0, 1],
    )  # fmt: skip
    means = invbench.table(frame).iloc[0]
    assert (means["n"], means["runs"]) == (2, 2)
    assert means["mean"] == pytest.approx(0.3), "the last that was finished"
    assert omitted(frame) == {}


def test_a_metric_that_no_run_has() -> None:
    with pytest.raises(UserError, match="no run has the metric 'tset_accuracy'; did you mean 'test_accuracy'"):
        invbench.table(rows(test_accuracy=[0.5]), "tset_accuracy")
    with pytest.raises(UserError, match="no finished run has the metric of its task; there are train_loss"):
        invbench.table(rows(train_loss=[0.5]))


def three_methods() -> pd.DataFrame:
    """Return three methods: the best, one that is clearly worse, and one that is not."""
    values = {"a": [0.9, 0.8, 0.85], "b": [0.5, 0.41, 0.45], "c": [0.86, 0.82, 0.8]}
    return rows(
        method=[name for name in values for _ in range(3)], seed=[0, 1, 2] * 3,
        test_accuracy=[value for scores in values.values() for value in scores],
    )  # fmt: skip


def test_the_best_and_its_equals_are_marked() -> None:
    means = invbench.table(three_methods()).set_index("method")
    assert means["best"].to_dict() == {"a": True, "b": False, "c": False}
    assert means["tied"].to_dict() == {"a": False, "b": False, "c": True}
    raw = scipy.stats.ttest_rel([0.9, 0.8, 0.85], [0.5, 0.41, 0.45]).pvalue
    assert means["p_value"]["b"] == pytest.approx(2 * raw), "Holm: the smaller of two"
    frame = three_methods().assign(**{"data.metric": "test_loss"}).rename(columns={"test_accuracy": "test_loss"})
    assert invbench.table(frame).set_index("method")["best"].to_dict() == {"a": False, "b": True, "c": False}
    odd = frame.assign(**{"data.metric": "test_oddity"}).rename(columns={"test_loss": "test_oddity"})
    assert not invbench.table(odd)["best"].any()
    assert any("whether a high one is good is not known" in line for line in notes(invbench.table(odd), {}))


def tuned() -> pd.DataFrame:
    """Return two settings, the better in validation being the worse in the test, and a third that lacks a seed."""
    validation = [0.9, 0.9, 0.7, 0.8, 1.0]
    return rows(
        seed=[0, 1, 0, 1, 0], test_accuracy=[0.6, 0.8, 0.8, 1.0, 1.0], validation_accuracy=validation,
        **{"best_validation.step": [1.0] * 5, "best_validation.validation_accuracy": validation},
        **{"data.primary": ["accuracy"] * 5, "data.higher_is_better": [True] * 5},
        **{"trainer.learning_rate": [0.1, 0.1, 0.2, 0.2, 0.3]},
    )  # fmt: skip


def test_selection() -> None:
    assert len(invbench.table(tuned())) == 3
    chosen = invbench.table(tuned(), select="best_validation").iloc[0]
    assert (chosen["mean"], chosen["n"], chosen["candidates"]) == (pytest.approx(0.7), 2, 3)
    assert invbench.table(tuned(), select="oracle").iloc[0]["mean"] == pytest.approx(0.9)
    assert any("for comparison, not a result" in line for line in notes(invbench.table(tuned(), select="oracle"), {}))
    with pytest.raises(UserError, match="no selection 'orcale'; did you mean 'oracle'"):
        invbench.table(tuned(), select="orcale")


def test_the_oracle_goes_by_the_split_that_is_kept_for_it() -> None:
    kept = tuned().assign(test_out_accuracy=[0.9, 0.9, 0.1, 0.1, 0.9])
    assert invbench.table(kept, select="oracle").iloc[0]["mean"] == pytest.approx(0.7), "not the best test accuracy"
    some = kept.assign(test_out_accuracy=[0.9, 0.9, 0.1, math.nan, 0.9])
    assert invbench.table(some, select="oracle").iloc[0]["mean"] == pytest.approx(0.9), "only where all runs have one"


def left_out(scores: dict[float, dict[int, list[float]]]) -> pd.DataFrame:
    """Return two runs on all environments of each learning rate, and the given scores by left-out environment."""
    runs = [
        {"trainer.learning_rate": rate, "trainer.held_out_environment": math.nan, "seed": seed, "test_accuracy": rate}
        for rate in scores
        for seed in (0, 1)
    ]
    runs += [
        {"trainer.learning_rate": rate, "trainer.held_out_environment": env, "seed": seed, "held_out_accuracy": score}
        for rate, by_environment in scores.items()
        for env, values in by_environment.items()
        for seed, score in enumerate(values)
    ]
    frame = rows(seed=[0] * len(runs)).drop(columns="seed")
    facts = {"data.primary": "accuracy", "data.higher_is_better": True, "data.environments": 2}
    return frame.assign(**facts, **pd.DataFrame(runs))


def chosen_rate(frame: pd.DataFrame) -> float:
    return float(invbench.table(frame, select="leave_one_env_out")["mean"].iloc[0])


def test_environments_count_alike_whatever_was_run_of_each() -> None:
    frame = left_out({0.1: {0: [0.95, 0.95, 0.95], 1: [0.30]}, 0.2: {0: [0.7], 1: [0.7]}})
    with pytest.warns(UserWarning, match="2 of 2 settings lack runs, such as seed 1 without environment 1; of each"):
        assert chosen_rate(frame) == 0.2


def test_environments_are_judged_by_the_same_seeds() -> None:
    """Seed 1 of environment 0 has no counterpart, and a setting with fewer such seeds is not judged."""
    frame = left_out({0.1: {0: [0.6, 0.9], 1: [0.6]}, 0.2: {0: [0.7], 1: [0.7, 0.1]}})
    with pytest.warns(UserWarning, match="2 of 2 settings lack runs, such as seed 1 without environment 1"):
        assert chosen_rate(frame) == 0.2
    frame = left_out({0.1: {0: [0.6, 0.6], 1: [0.6, 0.6]}, 0.2: {0: [0.9, 0.9], 1: [0.9]}})
    with pytest.warns(UserWarning, match="1 of 2 settings lack runs"):
        assert chosen_rate(frame) == 0.1
    with pytest.raises(
        UserError, match="no settings were run .*; 1 of 1 settings lack runs, such as seed 0 without env"
    ):
        chosen_rate(left_out({0.1: {0: [0.6, 0.6]}}))


def test_settings_without_any_left_out_run_of_a_seed_are_named_too() -> None:
    frame = left_out({0.1: {0: [0.9, 0.9], 1: [0.9, 0.9]}, 0.2: {0: [0.95], 1: [0.95]}, 0.3: {}})
    with pytest.warns(UserWarning, match="2 of 3 settings lack runs, such as seed 1 without environment 0"):
        assert chosen_rate(frame) == 0.1
    apart = left_out({0.1: {0: [0.5, 0.9, 0.7], 1: [0.5, 0.9, 0.7]}, 0.2: {0: [0.6, 0.6, 0.6], 1: [0.6, 0.6, 0.6]}})
    lost = zip(apart["trainer.held_out_environment"], apart["trainer.learning_rate"], apart["seed"], strict=True)
    some = apart[[math.isnan(env) or (rate, seed) not in ((0.1, 0), (0.2, 1)) for env, rate, seed in lost]]
    with pytest.warns(UserWarning, match="2 of 2 settings lack runs"):
        assert chosen_rate(some) == 0.1, "by seed 2, which both have"


def test_a_plug_ins_metric_is_ranked_as_its_record_says() -> None:
    frame = three_methods().rename(columns={"test_accuracy": "test_r2"}).assign(**{"data.metric": "test_r2"})
    assert not invbench.table(frame)["best"].any(), "no word in the name says which way"
    known = frame.assign(**{"data.primary": "r2", "data.higher_is_better": True})
    assert invbench.table(known).set_index("method")["best"].to_dict() == {"a": True, "b": False, "c": False}
    low = frame.assign(**{"data.primary": "r2", "data.higher_is_better": False})
    assert invbench.table(low).set_index("method")["best"].to_dict() == {"a": False, "b": True, "c": False}
    for name in ("test_r2_env12", "validation_r2_worst", "test_out_r2_average"):
        assert higher_is_better(name, "r2", True)
    assert higher_is_better("test_r22", "r2", True) is None
    assert higher_is_better("test_loss", "r2", True) is False
    assert higher_is_better("test_r2", "r2", math.nan) is None


def test_a_step_before_the_penalty_has_its_weight_is_said_to_be() -> None:
    """Validation likes runs that are still ERM's."""
    settings = {"method.anneal_steps": 5.0, "method.weight": 9.0, "method.weight_before": 1.0}
    early = tuned().assign(**settings, **{"best_validation.step": 5.0})
    (line,) = [line for line in notes(invbench.table(early, select="best_validation"), {}) if "comes before" in line]
    assert line.startswith("erm on spirals: the best step in validation comes before method.anneal_steps is over")
    for change in ({"best_validation.step": 6.0}, {"method.weight": 1.0}):
        late = invbench.table(early.assign(**change), select="best_validation")
        assert not any("comes before" in line for line in notes(late, {}))


def test_settings_that_were_chosen_on_other_seeds_are_said_to_be() -> None:
    means = invbench.table(three_methods().assign(protocol="best_validation"))
    (line,) = [line for line in notes(means, {}) if line.startswith("settings of runs with protocol best_validation")]
    assert line.endswith("shown is the last step")


def test_a_caption_has_the_units_of_the_table_and_no_commands() -> None:
    frame = tuned().assign(**{"data.constant.test_accuracy": 0.495})
    means = invbench.table(frame, select="best_validation")
    lines = notes(means, {}, Style.of(Format.latex, None, True))
    assert any(line.startswith("a constant prediction scores:") and line.endswith("49.5") for line in lines)
    assert not any("bench " in line for line in lines)


def test_levels_and_penalties_that_never_acted_are_below_the_table() -> None:
    frame = three_methods().assign(**{"data.constant.test_accuracy": [0.5, 0.6, 0.7] * 3})
    frame = frame.assign(inactive=[None] * 3 + ["it was 0"] * 3 + [None] * 3)
    means = invbench.table(frame)
    assert means["constant"].tolist() == pytest.approx([0.6] * 3)
    lines = notes(means, {})
    assert "a constant prediction scores: spirals 0.6" in lines
    assert "b on spirals: it was 0" in lines
    assert not any("constant" in line for line in notes(invbench.table(three_methods()), {}))


def test_equal_means_share_rank_and_mark() -> None:
    """coral is erm where there is nothing to match; the order of a sum shows in the last digit."""
    frame = rows(
        method=["a", "a", "b", "b", "c", "c"], seed=[0, 1] * 3,
        test_accuracy=[0.8, 0.7, 0.8 + 2e-16, 0.7 - 1e-12, 0.5, 0.4],
    )  # fmt: skip
    means = invbench.table(pd.concat([frame, frame.assign(dataset="more")], ignore_index=True))
    assert means.groupby("method")["best"].all().to_dict() == {"a": True, "b": True, "c": False}
    assert not means["tied"].any()
    (line,) = [line for line in notes(means, {}) if line.startswith("mean ranks over 2 datasets")]
    assert "a 1.50, b 1.50, c 3.00" in line


def test_equal_settings_are_chosen_in_one_order_and_said_to_be_equal() -> None:
    """Whatever the order of the runs is, to which the last digit of a mean belongs."""
    scores = [0.1, 0.2, 0.3, 0.7]
    seeds = list(range(4))
    frame = pd.concat(
        [
            rows(
                seed=seeds, run_id=[f"{rate}{seed}" for seed in seeds], test_accuracy=values,
                **{
                    "best_validation.step": [1.0] * 4, "best_validation.test_accuracy": values,
                    "validation_accuracy": values, "best_validation.validation_accuracy": values,
                    "data.primary": ["accuracy"] * 4, "data.higher_is_better": [True] * 4,
                    "trainer.learning_rate": [rate] * 4,
                },
            )
            for rate, values in ((0.1, scores), (0.02, scores[::-1]), (0.003, [0.0] * 4))
        ],
        ignore_index=True,
    )  # fmt: skip
    for order in range(5):
        shuffled = frame.sample(frac=1, random_state=order, ignore_index=True)
        means = invbench.table(shuffled, select="best_validation")
        assert means["run_ids"].tolist() == [["0.020", "0.021", "0.022", "0.023"]]
        assert means[["candidates", "equal_candidates"]].values.tolist() == [[3, 2]]
        assert "up to 2 settings were equally good, and the first are shown: erm on spirals" in notes(means, {})


def test_costs_of_runs_trained_together_are_shares_and_not_compared() -> None:
    frame = rows(
        method=["erm", "erm", "vrex", "vrex", "irmv1", "irmv1"], seed=[0, 1] * 3, test_accuracy=[0.5] * 6,
        fused=[1, 1, 4, 4, 1, 4], **{"cost.seconds_per_step": [0.3, 0.2, 0.1, 0.1, 0.4, 0.1]},
    ).assign(**{"cost.wall_seconds": 1.0})  # fmt: skip
    means = invbench.table(frame, "cost.seconds_per_step").set_index("method")
    assert means["mean"].to_dict() == pytest.approx({"erm": 0.25, "irmv1": 0.4, "vrex": 0.1})
    assert means["best"].to_dict() == {"erm": True, "irmv1": False, "vrex": False}
    assert math.isnan(means.loc["vrex", "half_width"])
    assert math.isnan(means.loc["vrex", "p_value"])
    said = notes(means.reset_index(), {}, PAPER)
    assert "shares of runs that were trained together, not compared with others: V-REx on Spirals" in said
    assert not any("shares" in line for line in notes(invbench.table(frame), {}))


def test_methods_by_datasets() -> None:
    """Each dataset with the metric of its own task; ranks over all of them."""
    frame = pd.concat(
        [
            three_methods(),
            three_methods().assign(dataset="more"),
            three_methods()
            .assign(dataset="regression", test_accuracy=math.nan, test_loss=range(9))
            .assign(**{"data.metric": "test_loss"}),
        ],
        ignore_index=True,
    )
    means = invbench.table(frame)
    layout = laid_out(means)
    assert layout.names == ["method"]
    assert layout.titles == ["more test_accuracy", "regression test_loss", "spirals test_accuracy"]
    assert [[entry.best for entry in entries if entry] for _, entries in layout.rows] == [
        [True, True, True], [False] * 3, [False] * 3,
    ]  # fmt: skip
    (line,) = [line for line in notes(means, {}) if line.startswith("mean ranks over 3 datasets")]
    assert "a 1.00, c 2.33, b 2.67" in line
    turned = laid_out(means, rows=["dataset", "metric"], columns=["method"])
    assert (turned.names, turned.titles, len(turned.rows)) == (["dataset", "metric"], ["a", "b", "c"], 3)
    with pytest.raises(UserError, match="do not differ in 'methd'; did you mean 'method'"):
        laid_out(means, rows=["methd"])


def odd_names() -> pd.DataFrame:
    """Return methods whose names hold every character with a meaning in some format."""
    return three_methods().replace({"method": {"a": r"a_b&50%{\x}", "b": "<b>|*c*", "c": "#~^$"}})


def test_latex_of_odd_names() -> None:
    means = invbench.table(odd_names())
    text = written(laid_out(means, style=PAPER), notes(means, {}, PAPER), Format.latex)
    assert r"a\_b\&50\%\{\textbackslash{}x\} & \textbf{0.85 $\pm$ 0.12} (3) \\" in text
    assert r"\#\textasciitilde{}\textasciicircum{}\$ & 0.83 $\pm$ 0.08 (3)$^{\dagger}$ \\" in text
    assert text.count("{") == text.count("}")
    assert re.findall(r"\\(?:begin|end)\{(\w+)", text) == ["table", "tabular", "tabular", "table"]
    (caption,) = re.findall(r"\\caption\{(.*)\}\n\\label\{tab:results\}\n", text)
    assert caption.startswith(
        r"Test accuracy: mean $\pm$ 95 \% t-interval over seeds, in parentheses their number. Bold: "
    )
    assert r"Bold: the best; $^{\dagger}$: not distinguishable from it at 5 \% (paired t-tests" in caption


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_latex_compiles(tmp_path: Path) -> None:
    means = invbench.table(odd_names())
    text = written(laid_out(means, style=PAPER), notes(means, {}, PAPER), Format.latex)
    paper = ["\\documentclass{article}", "\\usepackage{booktabs}", "\\begin{document}", text, "\\end{document}"]
    (tmp_path / "paper.tex").write_text("\n".join(paper), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Missing character" not in done.stdout
    assert "1 page" in done.stdout


def test_html_and_markdown_of_odd_names() -> None:
    means = invbench.table(odd_names())
    text = written(laid_out(means, style=PAPER), notes(means, {}, PAPER), Format.html)
    assert "&lt;b&gt;|*c*" in text
    assert "<b>" not in text
    assert text.count("<tr>") == text.count("</tr>") == 4
    assert "<strong>0.85 ± 0.12</strong> (3)" in text
    text = written(laid_out(means, style=PAPER), notes(means, {}, PAPER), Format.markdown)
    assert r"| &lt;b&gt;\|\*c\* | 0.45 ± 0.11 (3) |" in text
    assert "**0.85 ± 0.12** (3)" in text


@pytest.mark.parametrize(
    ("mean", "half_width", "style", "expected"),
    [
        (0.8432, 0.0119, PAPER, "0.843 ± 0.012"), (0.8432, 0.00961, PAPER, "0.843 ± 0.010"),
        (0.8432, 0.94, PAPER, "0.8 ± 0.9"), (0.8432, 0.961, PAPER, "0.8 ± 1.0"), (0.8432, math.nan, PAPER, "0.843"),
        (0.99996, math.nan, PAPER, "1.00"), (0.0, math.nan, PAPER, "0.00"), (-0.0004, 0.02, PAPER, "0.000 ± 0.020"),
        (0.5, 0.0, PAPER, "0.500 ± 0.000"), (0.5, 1e-17, PAPER, "0.500 ± 0.000"),
        (1234.4, 56.2, PAPER, "1234 ± 56"), (1.2e-7, 3.4e-8, PAPER, "1.20e-07 ± 3.4e-08"),
        (1.23456e8, 3e5, PAPER, "1.2346e+08 ± 3.0e+05"), (5.28e8, math.nan, PAPER, "5.28e+08"),
        (math.inf, math.nan, PAPER, "inf"), (0.8432, 0.0119, Style(digits=4), "0.8432 ± 0.0119"),
        (0.8432, math.nan, Style(digits=1), "0.8"), (0.8432, 0.0119, Style(percent=True), "84.3 ± 1.2"),
        (0.8432, 0.0119, Style(digits=1, percent=True), "84.3 ± 1.2"),
    ],
)  # fmt: skip
def test_numbers_are_rounded_by_their_interval(mean: float, half_width: float, style: Style, expected: str) -> None:
    assert style.mean("test_accuracy", mean, half_width) == expected


def test_per_cent_is_of_shares_and_said() -> None:
    means = invbench.table(three_methods())
    style = Style(percent=True)
    assert "85 ± 12" in written(laid_out(means, style=style), [], Format.markdown)
    assert notes(means, {}, style)[0].startswith("test accuracy (%): mean ± 95 % t-interval")
    assert style.mean("test_loss", 0.5, math.nan) == "0.500"
    assert style.metric("test_loss") == "test loss"


def test_csv_has_all_digits() -> None:
    lines = csv(invbench.table(three_methods())).splitlines()
    assert lines[0].startswith("method,dataset,metric,at,n,runs,mean,half_width,")
    assert re.search(r"0\.85\d{10,}|,0\.85,", lines[1])


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("test_accuracy_worst", True), ("test_mean_squared_error", False), ("test_roc_auc", True), ("what", None),
     ("coefficient_error_causal", False), ("cost.seconds_per_step", False), ("invariance.rotation", False)],
)  # fmt: skip
def test_which_way_is_better(metric: str, expected: Any) -> None:
    assert higher_is_better(metric) is expected


def test_names_as_papers_have_them() -> None:
    """Each of ours has one, also where names are joined; others keep the one that they are registered under."""
    for name in METHODS.entries():
        assert display_method(name) != name, f"methods/{name}.py needs a display_name, as papers have it"
    for name in DATASETS.entries():
        assert display_dataset(name) != name, f"datasets/{name}.py needs a display_name, as papers have it"
    assert display_method("irmv1+adareg") == "IRM + AdaReg"
    assert display_method("not_here+vrex") == "not_here + V-REx"
    assert [display_metric(name) for name in ("test_accuracy", "test_roc_auc_worst", "test_loss_env12")] == [
        "test accuracy", "test ROC AUC (worst environment)", "test loss (environment 12)",
    ]  # fmt: skip
    frame = rows(
        method=["and_mask", "erm"] * 2, dataset=["spirals"] * 2 + ["digits"] * 2, test_accuracy=[0.5, 0.6, 0.7, 0.8],
        **{"dataset.size": [1, 1, 2, 2]},
    )  # fmt: skip
    means = invbench.table(frame)
    layout = laid_out(means, style=PAPER)
    assert (layout.names, layout.titles) == (["Method"], ["Rotated digits", "Spirals"])
    assert [head for head, _ in layout.rows] == [["AND-mask"], ["ERM"]]
    assert "AND-mask" not in csv(means)
    assert laid_out(means).rows[0][0] == ["and_mask"], "in a terminal, as one types it"


@METHODS.temporary()
def test_a_plug_in_says_its_name() -> None:
    @register_method("plug_in")
    class PlugIn(Method):
        display_name: ClassVar[str] = "Plug-in"

    assert display_method("irmv1+plug_in") == "IRM + Plug-in"
