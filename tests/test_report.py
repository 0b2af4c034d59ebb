"""report: the contract of report.json, and its three renderings of one realistic run."""

from __future__ import annotations

import io
import json
import re
import tomllib
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from edgekd import _plots as plots
from edgekd import _report_format as text
from edgekd import report as reports
from edgekd._intervals import wilson_interval
from edgekd._svg import Scale
from edgekd.errors import ArtifactError
from edgekd.recipe import Recipe
from edgekd.report import (
    Curve,
    Engine,
    FloatIsland,
    Fusion,
    Int8VsFloat,
    Latency,
    Lineage,
    Mobile,
    Operator,
    Paired,
    ParityRow,
    Report,
    Rung,
    Stage,
    Verdict,
)
from edgekd.targets._base import Audit, Island

X86, TRT = "onnxruntime_x86", "tensorrt"


def _rung(name: str, right: int, size_kib: int, agree: int, kl: float, **more: Any) -> Rung:
    n = 10_000
    return Rung(
        rung=name,
        value=right / n,
        ci95=wilson_interval(right, n),
        n=n,
        agreement=agree / n,
        agreement_ci95=wilson_interval(agree, n),
        kl=kl,
        nll=0.21 + kl,
        ece=0.012,
        brier=0.09,
        size_bytes=size_kib * 1024,
        parameters=11_173_962 if name == "teacher" else 272_474,
        **more,
    )


def _latency(name: str, samples: list[float], verdict: str | None) -> Latency:
    p50, p90, p95 = (float(np.percentile(samples, q)) for q in (50, 90, 95))
    return Latency(
        rung=name,
        target=X86,
        device="cpu",
        runtime="onnxruntime 1.31.0",
        provider_requested="CPUExecutionProvider",
        provider_used="CPUExecutionProvider",
        threads=1,
        batch=1,
        n=len(samples),
        mean_ms=float(np.mean(samples)),
        std_ms=float(np.std(samples)),
        min_ms=min(samples),
        max_ms=max(samples),
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=None,
        cold_ms=12.4,
        first_ms=3.1,
        upper_ms=p90 * 1.02,
        drift=-0.004,
        budget_ms=500.0,
        percentile=90.0,
        confidence=0.99,
        verdict=verdict,
    )


def _samples(level_ms: float) -> list[float]:
    random = np.random.default_rng(7)
    values = level_ms * (1 + random.gamma(2.0, 0.02, size=512))
    values[[40, 300]] *= 1.9
    return [float(value) for value in values]


def _curves() -> list[Curve]:
    rows = []
    for stage, seeds, epochs in (("teacher", [0], 30), ("student_alone", [0, 1, 2], 30), ("student", [0, 1, 2], 30)):
        for seed in seeds:
            for epoch in range(1, epochs + 1):
                fall = 2.2 * np.exp(-epoch / 6) + 0.05 + 0.01 * seed
                terms = {"total": fall, "cross_entropy": 0.1 * fall}
                if stage == "student":
                    terms["kd"] = 0.9 * fall
                rows.append(
                    Curve(
                        stage=stage,
                        seed=seed,
                        epoch=epoch,
                        terms=terms,
                        val_accuracy=float(0.93 - 0.6 * np.exp(-epoch / 5) - 0.004 * seed),
                        lr=0.1,
                        seconds=3.2,
                    )
                )
    rows += [
        Curve(stage="int8", epoch=e, terms={"total": 0.06, "kd": 0.05 / e}, val_accuracy=0.925 + 0.001 * e, seconds=6.0)
        for e in (1, 2, 3)
    ]
    return rows


def _operators() -> list[Operator]:
    rows = []
    for rung, int8, scale in (("onnx_float", False, 3.1), ("onnx_int8", True, 1.0)):
        times = [scale * 40 / (i + 1) for i in range(18)]
        for index, time in enumerate(times):
            quantized = int8 and index != 4
            rows.append(
                Operator(
                    rung=rung,
                    target=X86,
                    name=f"/layer{index // 6 + 1}/layer{index // 6 + 1}.{index % 6}/conv{index % 2 + 1}/Conv_quant",
                    op="QLinearConv" if quantized else "Conv",
                    mean_us=time,
                    share=time / sum(times),
                    int8=quantized,
                )
            )
    return rows


def sample_report() -> Report:
    """A run with everything in it: two targets, repeats, an island, a missed engine."""
    recipe = Recipe.model_validate({"name": "fashion", "teacher": {"model": "resnet"}, "student": {"model": "resnet"}})
    seeds = {"seeds": [0.9231, 0.9218, 0.9244], "mean": 0.9231, "sd": 0.0013}
    student, int8 = _samples(0.62), _samples(0.21)
    lineage = [("teacher", "checkpoint", []), ("student", "checkpoint", ["teacher"]), ("int8", "program", ["student"])]
    return Report(
        name="fashion_mnist",
        created_utc="2026-03-01T12:30:00Z",
        edgekd_version="0.1.0",
        recipe=recipe.resolved(),
        verdict=Verdict(
            overall="PASS",
            reasons=[
                "p90 latency is within the budget at 99 % confidence.",
                "All exported files agree with their torch programs on at least 99.9 % of samples.",
            ],
            rung="onnx_int8",
            target=X86,
            device="cpu",
            budget_ms=500.0,
            percentile=90.0,
            confidence=0.99,
            measured_ms=0.236,
        ),
        ladder=[
            _rung("teacher", 9378, 43_700, 10_000, 0.0),
            _rung("student_alone", 9187, 1_080, 9411, 0.081, seeds=[0.9187, 0.9171, 0.9192], mean=0.9183, sd=0.0011),
            _rung("student", 9231, 1_080, 9533, 0.043, **seeds),
            _rung("int8_ptq", 9204, 312, 9482, 0.052),
            _rung("int8", 9229, 312, 9521, 0.045, **seeds),
            _rung("onnx_float", 9231, 1_075, 9533, 0.043, target=X86),
            _rung("onnx_int8", 9229, 297, 9520, 0.045, target=X86),
            _rung("onnx_int8", 9226, 301, 9517, 0.046, target=TRT),
        ],
        paired=[
            Paired(
                a="student_alone",
                b="student",
                difference=0.0044,
                ci95=(0.0009, 0.0079),
                p_value=0.0141,
                a_only=140,
                b_only=184,
                n=10_000,
            ),
            Paired(
                a="int8_ptq",
                b="int8",
                difference=0.0025,
                ci95=(-0.0001, 0.0051),
                p_value=0.064,
                a_only=75,
                b_only=100,
                n=10_000,
            ),
            Paired(
                a="student",
                b="int8",
                difference=-0.0002,
                ci95=(-0.0022, 0.0018),
                p_value=0.92,
                a_only=51,
                b_only=49,
                n=10_000,
            ),
            Paired(
                a="int8",
                b="onnx_int8",
                difference=0.0,
                ci95=(-0.0004, 0.0004),
                p_value=1.0,
                a_only=1,
                b_only=1,
                n=10_000,
            ),
        ],
        latency=[_latency("onnx_float", student, None), _latency("onnx_int8", int8, "PASS")],
        latency_samples={"onnx_float": student, "onnx_int8": int8},
        int8_vs_float=[Int8VsFloat(target=X86, device="cpu", speedup=2.94, ci95=(2.90, 2.98), slow_ops=["Add"])],
        fusion=[
            Fusion(
                target=X86,
                quantizable=23,
                int8=22,
                coverage=22 / 23,
                float_islands=[
                    FloatIsland(
                        name="/layer1/add_1/Add",
                        op="Add",
                        cause="its skip input has no QuantizeLinear, so the whole addition runs in float32",
                        remedy="annotate the skip input in the target's quantizer",
                    )
                ],
                legitimate={"Softmax": 1},
                operators={"QLinearConv": 19, "QLinearAdd": 2, "Add": 1, "QGemm": 1, "Softmax": 1},
            )
        ],
        parity=[
            ParityRow(
                target=X86,
                file="model.int8.onnx",
                top1_agreement=0.9997,
                n=10_000,
                max_abs_error=0.31,
                mean_abs_error=0.0021,
                sqnr_db=41.2,
                min_agreement=0.999,
            ),
            ParityRow(
                target=X86,
                file="model.float.onnx",
                top1_agreement=1.0,
                n=10_000,
                max_abs_error=8.6e-6,
                mean_abs_error=4.1e-7,
                sqnr_db=124.8,
                min_agreement=0.999,
            ),
        ],
        engines=[
            Engine(
                path="export/tensorrt/model.sm86.engine",
                library="tensorrt_rtx",
                version="1.1.1",
                compute_capability="8.6",
                size_bytes=912_000,
                status="built; running it needs a GPU",
            ),
        ],
        mobile=[
            Mobile(
                rung="onnx_int8",
                target=X86,
                device="cpu",
                cold_ms=11.8,
                first_ms=1.9,
                peak_memory_mib=61.2,
                size_bytes=304_128,
            )
        ],
        operators=_operators(),
        curves=_curves(),
        lineage=[
            Lineage(
                stage=stage,
                kind=kind,
                id=f"{index}f3a9c1d2e4b5a6978",
                key=f"{index}c0ffee1122334455",
                parents=[f"{lineage.index(parent)}f3a9c1d2e4b5a6978" for parent in lineage if parent[0] in parents],
                path=f"runs/fashion_mnist/{stage}",
            )
            for index, (stage, kind, parents) in enumerate(lineage)
        ],
        stages=[
            Stage(stage="teacher", seconds=1312.4, cached=True),
            Stage(stage="student", seconds=611.0, cached=False),
            Stage(stage="bench", seconds=9.21, cached=False),
        ],
        environment={
            "python": "3.12.3",
            "torch": "2.13.0",
            "cpu": {"model": "AMD EPYC 7763", "features": ["avx2", "fma"], "cores": 2, "governor": None},
        },
        notes=["This CPU has no VNNI: neighbouring weights share 8 bits (reduce_range)."],
    )


def test_report_survives_json_unchanged() -> None:
    report = sample_report()
    assert reports.from_json(reports.to_json(report)) == report
    assert reports.from_json(reports.to_json(report).encode()) == report


def test_json_has_every_part_of_the_contract() -> None:
    values = json.loads(reports.to_json(sample_report()))
    assert values["schema_version"] == 1
    contract = {
        "ladder": "rung metric value ci95 n agreement kl size_bytes parameters",
        "latency": "rung target device runtime provider_requested provider_used threads batch n mean_ms p50_ms p90_ms"
        " p95_ms p99_ms cold_ms budget_ms percentile confidence verdict",
        "int8_vs_float": "target device speedup ci95 slow_ops",
        "fusion": "target quantizable int8 coverage float_islands",
        "stages": "stage seconds cached",
    }
    for part, fields in contract.items():
        assert set(fields.split()) <= set(values[part][0]), part
    assert {"recipe", "environment", "paired", "parity", "engines", "curves", "lineage", "verdict"} <= set(values)
    assert values["latency"][0]["p99_ms"] is None


def test_from_json_skips_fields_when_a_newer_edgekd_added_them() -> None:
    values = json.loads(reports.to_json(sample_report()))
    values["new_part"] = {"x": 1}
    values["ladder"][2]["new_number_ms"] = 3.5
    values["fusion"][0]["float_islands"][0]["new_text"] = "y"
    assert reports.from_json(json.dumps(values)) == sample_report()


def test_from_json_refuses_when_damaged() -> None:
    whole = reports.to_json(sample_report())
    with pytest.raises(ArtifactError, match=r"runs/a/report\.json is damaged: .*Run `edgekd run RECIPE` again"):
        reports.from_json(whole[: len(whole) // 2], source="runs/a/report.json")
    with pytest.raises(ArtifactError, match=r"is damaged"):
        reports.from_json(b"\xff\xfe\x00")


@pytest.mark.parametrize("content", ['{"schema_version": 2}', "[]", "{}", "3"])
def test_from_json_refuses_when_schema_is_another(content: str) -> None:
    with pytest.raises(ArtifactError, match=r"has schema_version (2|None), this edgekd reads 1"):
        reports.from_json(content)


def test_from_json_names_the_field_when_a_value_is_wrong() -> None:
    values = json.loads(reports.to_json(sample_report()))
    values["ladder"][1]["value"] = "high"
    with pytest.raises(ArtifactError, match=r"does not hold a report: ladder\.1\.value: .*\(1 problems in all\)"):
        reports.from_json(json.dumps(values))


def test_report_refuses_nan_and_unknown_fields() -> None:
    with pytest.raises(ValidationError, match="finite number"):
        Stage(stage="x", seconds=float("nan"), cached=False)
    with pytest.raises(ValidationError, match="Extra inputs"):
        Stage.model_validate({"stage": "x", "seconds": 1.0, "cached": False, "secs": 2})


def test_interval_accepts_a_list() -> None:
    assert Int8VsFloat.model_validate(
        {"target": X86, "device": "cpu", "speedup": 2.0, "ci95": [1.9, 2.1], "slow_ops": []}
    ).ci95 == (1.9, 2.1)


def test_fusion_of_keeps_everything_of_an_audit() -> None:
    audit = Audit(
        target=X86,
        quantizable=4,
        int8=3,
        islands=(Island(name="a", op="Conv", cause="c", remedy="r"),),
        legitimate={"Softmax": 1},
        operators={"QLinearConv": 3},
    )
    fusion = reports.fusion_of(audit)
    assert fusion.coverage == 0.75
    assert fusion.float_islands == [FloatIsland(name="a", op="Conv", cause="c", remedy="r")]
    assert (fusion.legitimate, fusion.operators) == ({"Softmax": 1}, {"QLinearConv": 3})


def _terminal(report: Report, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    for renderable in reports.render_terminal(report):
        console.print(renderable)
    out = console.file
    assert isinstance(out, io.StringIO)
    return out.getvalue()


def test_terminal_ends_with_the_verdict() -> None:
    shown = _terminal(sample_report())
    assert shown.index("Accuracy ladder") < shown.index("Latency") < shown.rindex("PASS")
    assert "budget 500 ms" in shown.split("Verdict")[-1]


def test_terminal_keeps_every_number_whole_when_80_columns_wide() -> None:
    shown = _terminal(sample_report(), width=80)
    assert max(map(len, shown.splitlines())) <= 80
    for number in ("93.29 to 94.24 %", "42.7 MiB", "+0.44", "0.665", "41.2", "2.90 to 2.98 ×"):  # noqa: RUF001
        assert number in shown


def test_terminal_shows_square_brackets_when_a_name_has_them() -> None:
    report = Report(stages=[Stage(stage="[red]x[/red]", seconds=1.0, cached=False)], notes=["see [data.augment]"])
    assert "[red]x[/red]" in _terminal(report)
    assert "see [data.augment]" in _terminal(report)


def test_markdown_has_the_numbers_and_a_recipe_that_toml_reads() -> None:
    report = sample_report()
    page = reports.render_markdown(report)
    assert page.startswith("# fashion\\_mnist" if "\\_" in page else "# fashion_mnist")
    assert "**PASS**" in page
    assert "| student | – | 92.31 % | 91.77 to 92.82 % | 10,000 |" in page  # noqa: RUF001
    block = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert block
    assert tomllib.loads(block[1])["bench"] == report.recipe["bench"]


def test_markdown_tables_keep_their_columns_when_a_value_has_a_bar() -> None:
    page = reports.render_markdown(Report(stages=[Stage(stage="a|b\nc", seconds=1.0, cached=True)]))
    assert "| a\\|b c | 1.00 s | already there |" in page


class _Page(HTMLParser):
    """What a page is made of: tags with their attributes, and whether they nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_html_is_self_contained() -> None:
    page = _Page(reports.render_html(sample_report()))
    assert page.open == []
    for tag in ("script", "link", "img", "iframe", "object", "video"):
        assert page.all(tag) == []
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.search(r"@import|url\(|https?://", reports.render_html(sample_report()))


def test_html_is_accessible() -> None:
    page = _Page(reports.render_html(sample_report()))
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    charts = page.all("svg")
    assert len(charts) >= 8
    assert all(chart["role"] == "img" and len(chart["aria-label"] or "") > 20 for chart in charts)
    assert len(page.all("table")) == len(page.all("caption")) >= 12
    assert all(head.get("scope") in ("row", "col") for head in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {(link["href"] or "")[1:] for link in page.all("a")}
    assert len(links) >= 6
    assert links <= set(ids)


def test_html_shows_every_part() -> None:
    page = reports.render_html(sample_report())
    for part in (
        "PASS",
        "92.29 %",
        "its skip input has no QuantizeLinear",
        "model.sm86.engine",
        "AMD EPYC 7763",
        "already there",
        "budget_ms = 500.0",
        "This CPU has no VNNI",
        "Loss of student_alone",
        "CPUExecutionProvider",
    ):
        assert part in page, part


def test_html_escapes_text_that_looks_like_markup() -> None:
    evil = "<script>alert(1)</script>\"'&"
    report = Report(
        name=evil,
        notes=[evil],
        recipe={"name": evil, evil: 1},
        verdict=Verdict(overall="FAIL", reasons=[evil]),
        latency_samples={evil: [1.0, 2.0]},
        ladder=[_rung(evil, 9000, 10, 9000, 0.1, target=evil)],
        operators=[Operator(rung=evil, name=evil, op=evil, mean_us=1.0, share=1.0, int8=False)],
        curves=[Curve(stage=evil, epoch=1, terms={evil: 1.0})],
        environment={evil: evil},
    )
    page = _Page(reports.render_html(report))
    assert page.all("script") == []
    assert page.open == []


@pytest.mark.parametrize(
    "report",
    [
        Report(),
        Report(verdict=Verdict(overall="INCONCLUSIVE")),
        Report(latency_samples={"model": [1.0]}, verdict=Verdict(overall="FAIL", budget_ms=0.5, percentile=90.0)),
        Report(latency_samples={"model": [2.0, 2.0], "none": []}),
        Report(latency_samples={"slow": [900.0, 1000.0], "fast": [0.1, 0.11]}, verdict=Verdict(overall="PASS")),
        Report(latency_samples={"model": [float(i % 7) + 1 for i in range(5000)]}),
        Report(curves=[Curve(stage="a", epoch=1, terms={"total": 0.0}, val_accuracy=1.0)]),
        Report(ladder=[_rung("only", 10_000, 0, 10_000, 0.0)]),
        Report(operators=[Operator(rung="r", name="n", op="o", mean_us=0.0, share=0.0, int8=True)]),
        Report(int8_vs_float=[Int8VsFloat(target=X86, device="cpu", speedup=0.9)]),
    ],
)
def test_every_rendering_holds_when_little_was_measured(report: Report) -> None:
    page = reports.render_html(report)
    assert _Page(page).open == []
    assert "nan" not in page
    assert reports.render_markdown(report).startswith("# run\n")
    _terminal(report)
    assert reports.from_json(reports.to_json(report)) == report


def test_provider_that_was_not_requested_is_marked() -> None:
    row = sample_report().latency[0].model_copy(update={"provider_requested": "QNNExecutionProvider"})
    page = reports.render_html(Report(latency=[row]))
    assert '<td class="bad">CPUExecutionProvider, not QNNExecutionProvider</td>' in page


def _ecdf(samples: dict[str, list[float]], budget_ms: float | None) -> str:
    return str(plots.ecdf_chart(samples, budget_ms=budget_ms, percentile=90.0))


def test_ecdf_breaks_its_axis_only_when_the_budget_is_far() -> None:
    samples = {"a": [1.0, 1.1, 1.2, 1.3]}
    near, far = _ecdf(samples, 2.0), _ecdf(samples, 500.0)
    assert near.count('class="budget"') == far.count('class="budget"') == 1
    assert ">500</text>" in far
    assert far.count('class="axis"') - near.count('class="axis"') >= 2
    assert 'class="budget"' not in _ecdf(samples, None)


def test_ecdf_reaches_half_height_at_the_median() -> None:
    # four queries: at the second the curve stands at 2/4, exactly midway between its ends
    drawn = re.search(
        r'd="(M[^"]*)" class="series s0"', _ecdf({"a": [4.0, 1.0, 3.0, 2.0]}, None).split("</text>", 1)[1]
    )
    assert drawn
    points = [tuple(map(float, pair.split())) for pair in drawn[1][1:].split("L")]
    ys = [y for _, y in points]
    assert len(points) == 8
    assert ys[3] == pytest.approx((ys[0] + ys[-1]) / 2, abs=0.1)
    assert [x for x, _ in points] == sorted(x for x, _ in points)


def test_timeline_keeps_hiccups_when_it_thins_the_queries() -> None:
    values = [1.0 + 0.001 * (i % 5) for i in range(5000)]
    values[3333] = 1.5
    kept = dict(plots._thinned(values))
    assert kept[3333] == 1.5
    assert len(kept) <= 620


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0.0, 1.0, False), (-3.0, 7.0, False), (0.2, 500.0, True), (9.1, 9.4, True)]
)
def test_ticks_are_round_and_inside(low: float, high: float, log: bool) -> None:
    ticks = Scale(low, high, 0.0, 100.0, log=log).ticks()
    assert 2 <= len(ticks) <= 9
    assert all(low * 0.999 - 1e-9 <= tick <= high * 1.001 + 1e-9 for tick in ticks)
    assert ticks == sorted(ticks)
    assert all(len(f"{tick:g}") <= 5 for tick in ticks)


def test_log_scale_puts_the_geometric_mean_midway() -> None:
    assert Scale(1.0, 100.0, 0.0, 50.0, log=True).at(10.0) == pytest.approx(25.0)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.9996, "1.00"), (999.6, "1,000"), (-0.5, "−0.500"), (0.0, "0"), (1e-12, "1.00e-12"), (None, "–")],  # noqa: RUF001
)
def test_number_has_three_significant_digits(value: float | None, shown: str) -> None:
    assert text.number(value) == shown


def test_toml_of_a_recipe_reads_back_without_its_nones() -> None:
    recipe = sample_report().recipe

    def without_none(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_none(one) for key, one in value.items() if one is not None}
        return [without_none(one) for one in value] if isinstance(value, list) else value

    assert tomllib.loads(text.toml(recipe)) == without_none(recipe)
    odd = {"a": 'quote " back \\ tab \t del \x7f', "b": [[1, 2], [3.5]], "c d": {"é": True, "e": []}}
    assert tomllib.loads(text.toml(odd)) == odd
