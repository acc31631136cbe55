"""The chain of a run in the page: stages, kernels, the file at the end, a real run."""

import json
import re
from typing import Any

import pytest

import tiny
from decoct.report.chain import compressed, end_of, teacher_of, told, twin_of
from decoct.report.compression import done, sensitivity, stages
from decoct.report.highlights import highlights
from decoct.report.page import write_page
from decoct.report.records import Compression, Kernels, Sensitivity, as_results
from decoct.report.sentence import findings, sentences, shipped_of, subject_of
from decoct.report.table import rows
from decoct.runner.execution import execute

HOSTILE = "<script>window.hacked=1</script>"
LEFT = [{"layer": "head", "operator": "Gemm", "runs": "float", "cause": "its activations are signed"}]


def chained(records: Any, int8_p50: float = 0.024) -> dict[str, Any]:
    """The records of a run: teacher, student alone, student, the student pruned, and that in integers."""
    results = records.digits(1)
    teacher, alone, student, int8 = results["models"]
    pruned = records.model("pruned", 0.979, file_bytes=44_000, latency=records.latency(0.03))
    teacher |= {"chain": ["teacher", "teacher_onnx"], "quantized": False, "kernels": {}}
    student |= {"chain": ["student", "student_onnx"], "quantized": False, "kernels": {}}
    pruned |= {"chain": ["student", "small", "pruned"], "quantized": False, "kernels": {}}
    int8 |= {
        "chain": ["student", "small", "student_int8"],
        "quantized": True,
        "source": "small",
        "latency": records.latency(int8_p50),
        "kernels": {"int8": 10, "weights": 0, "float": 1, "between": {}, "left": LEFT},
    }
    results["models"] = [teacher, int8, alone, student, pruned]
    results["steps"] = [
        {"name": name, "use": use}
        for name, use in (
            ("teacher", "train"), ("student", "distill"), ("small", "prune"),
            ("teacher_onnx", "export"), ("student_onnx", "export"), ("pruned", "export"), ("student_int8", "quantize"),
        )
    ]  # fmt: skip
    layers = [
        {"path": "stem.0", "kind": "channels", "before": 8, "after": 8, "note": "kept in multiples of 8"},
        {"path": "layer1.0.conv1", "kind": "channels", "before": 32, "after": 16, "note": ""},
    ]
    bits = [{"path": "stem.0", "kind": "bits", "before": 32, "after": 8, "note": ""},
            {"path": "head", "kind": "bits", "before": 32, "after": 32, "note": "protected"}]  # fmt: skip
    costs = [{"layer": "head", "alone_db": 21.5, "alone_score": 0.97},
             {"layer": "stem.0", "alone_db": 40.25, "alone_score": 0.98}]  # fmt: skip
    results["compressions"] = [
        {"step": "small", "use": "prune", "source": "student", "scheme": {"use": "channels", "ratio": 0.5},
         "before": {"parameters": 19810, "nonzero": 19810, "macs": 193344},
         "after": {"parameters": 6386, "nonzero": 6386, "macs": 112288}, "changes": layers,
         "rounds": [{"after": {"parameters": 12000, "nonzero": 12000, "macs": 150000}, "scores": {"accuracy": 0.9}}]},
        {"step": "student_int8", "use": "quantize", "source": "small", "scheme": {"use": "static"},
         "before": {"parameters": 6386, "macs": 112288, "file_bytes": 29406},
         "after": {"parameters": 6386, "macs": 112288, "file_bytes": 23242},
         "changes": bits, "audit": {"int8": 10, "weights": 0, "float": 1, "between": {"HardSwish": 2}, "layers": LEFT},
         "quantization": {"calibration": {"samples": 256, "split": "train"}, "facts": {}}, "sensitivity": costs,
         "budgets": {"max_size_bytes": {"budget": 30000.0, "measured": 23242.0}},
         "verified": {"agreement": 0.995, "samples": 200, "sqnr_db": 26.2}},
    ]  # fmt: skip
    return results


def test_the_first_sentence_is_about_the_compressed_file_at_the_end(records):
    results = as_results(chained(records))
    for chosen in (end_of(results), subject_of(results), shipped_of(results)):
        assert chosen is results.model("student_int8")
    assert sentences(results)[0] == (
        "student_int8 answers 12 times faster than its teacher and its file is 30 times smaller; "
        "it loses 0.7 points of accuracy (97.8 % against 98.5 %)."
    )
    assert "student_int8 gives the teacher's answer on 98.6 % of the 360 test samples." in sentences(results)
    assert any("Taught by the teacher, the student is 1.2 points better" in text for text in sentences(results))
    assert [each.figure for each in highlights(results)][:3] == ["12×", "30×", "−0.7"]


def test_without_compression_the_student_stays_the_subject(records):
    results = as_results(records.digits(1))
    assert end_of(results) is None
    assert subject_of(results) is results.model("student")
    assert shipped_of(results) is results.model("student_int8")
    assert stages(results) == []


def test_the_teacher_measured_in_the_same_way_is_compared(records):
    plain = chained(records)
    plain["models"][0]["latency"] |= {"runtime": "torch"}
    plain["models"].append(records.model("teacher_onnx", 0.985, latency=records.latency(0.24), file_bytes=600_000))
    results = as_results(plain)
    assert teacher_of(results, end_of(results)) is results.model("teacher_onnx")
    assert teacher_of(results) is teacher_of(results, results.model("student")) is results.model("teacher")
    assert sentences(results)[0].startswith("student_int8 answers 10 times faster than its teacher")


@pytest.mark.parametrize(
    ("p50", "tone", "text"),
    [
        (0.039, "worse", "answers 1.3 times slower than its float file (pruned) on this machine: integers did not pay"),
        (0.015, "better", "answers 2.0 times faster than its float file (pruned) on this machine. Its file is 2.1"),
        (0.030, "note", "answers as fast as its float file (pruned) on this machine: integers gained no speed here."),
    ],
)
def test_whether_integers_paid_is_said(records, p50, tone, text):
    results = chained(records, p50)
    found = [each for each in findings(results) if "its float file" in each.text]
    assert [each.tone for each in found] == [tone]
    assert text in found[0].text
    results["models"][1]["latency"]["noisy"] = True
    noisy = next(each for each in findings(results) if "its float file" in each.text)
    assert noisy.tone == ("note" if tone == "note" else "open")
    assert ("it may be chance" in noisy.text) == (tone != "note")
    assert tone == "note" or "did not pay" not in noisy.text


def test_the_twin_has_the_same_steps_and_was_measured_alike(records):
    plain = chained(records)
    assert twin_of(as_results(plain), as_results(plain).models[1]).name == "pruned"
    for change in ({"latency": records.latency(0.03, threads=2)}, {"chain": ["student", "pruned"]}, {"chain": []}):
        plain["models"][4] |= change
        assert twin_of(as_results(plain), as_results(plain).models[1]) is None
    assert twin_of(as_results(plain), as_results(plain).models[3]) is None
    assert compressed(as_results(plain), as_results(plain).models[1]) == 2


def test_operators_in_float_are_told_with_their_cause(records):
    found = [each for each in findings(chained(records)) if "operators" in each.text]
    assert [each.tone for each in found] == ["warning"]
    expected = "1 of 11 operators of student_int8 stays in float: head (Gemm): its activations are signed."
    assert found[0].text == expected
    assert told(Kernels(int8=4)) == "All 4 operators with weights run in integers."
    assert told(Kernels()) == ""
    many = [{**LEFT[0], "layer": f"l{i}"} for i in range(7)]
    assert told(Kernels.model_validate({"float": 7, "int8": 1, "left": many})).endswith("; and 2 more.")
    weights = Kernels.model_validate({"weights": 2, "int8": 1, "left": [{"layer": "a", "runs": "weights"}]})
    assert told(weights) == "2 of 3 operators keep weights in integers and compute in float."


def test_a_stage_tells_what_was_done(records):
    first, second = stages(as_results(chained(records)))
    assert first.done == "Pruned: channels, ratio 0.5; 40 to 24 channels in 1 of 2 layers"
    assert (first.parameters.text, first.parameters.note) == ("19.8 k → 6.39 k", "3.1× fewer")
    assert (first.macs.note, first.file.text) == ("1.72× fewer", "–")
    assert [each.title for each in first.tables] == ["Layer by layer", "Round by round"]
    assert first.tables[0].lines[0] == ["stem.0", "channels", "8", "8", "kept in multiples of 8"]
    assert first.tables[1].lines == [["1", "12.0 k", "12.0 k", "150 k", "90.0 %"]]
    assert second.done == "Turned into integers: static, calibrated on 256 train samples; 1 of 2 layers in 8 bits"
    assert (second.parameters.text, second.parameters.note) == ("6.39 k", "")
    assert (second.nonzero.text, second.file.text) == ("–", "29.4 kB → 23.2 kB")
    assert second.says == [
        "1 of 11 operators stays in float: head (Gemm): its activations are signed. Between integer layers the runtime "
        "computes 2 HardSwish in float.",
        "It answers as the float model does on 99.5 % of 200 samples; signal to quantization noise 26.2 dB.",
        "Budget: file 23.2 kB (asked: 30.0 kB).",
    ]
    assert second.tables[1].lines == [["head", "Gemm", "float", "its activations are signed"]]
    assert second.chart is not None
    assert second.chart.data["x"] == [21.5, 40.25]
    assert second.chart.table[1] == ["head", "21.5 dB", "0.97"]


def test_the_tries_of_a_search_are_a_table(records):
    plain = records.digits(1)
    tries = [
        {"value": 0.9, "good": False, "budgets": {"min_quality": {"budget": 0.95, "measured": 0.9}}},
        {"value": 0.5, "good": True, "budgets": {"min_quality": {"budget": 0.95, "measured": 0.96}}},
        {"value": 0.3, "good": True, "budgets": {}},
    ]
    plain["compressions"] = [
        {"step": "s", "use": "search", "setting": "scheme.ratio", "chosen": 0.5, "tries": tries, "scheme": {"n": 2}}
    ]
    (stage,) = stages(as_results(plain))
    assert stage.says == ["scheme.ratio = 0.5 was chosen after 3 tries."]
    assert stage.tables[0].heading == ["scheme.ratio", "Validation accuracy", "Budget"]
    assert stage.tables[0].lines == [["0.3", "–", "kept"], ["0.5", "96.0 %", "chosen"], ["0.9", "90.0 %", "missed"]]


@pytest.mark.parametrize(
    ("scheme", "changes", "words"),
    [
        ({}, [], "Made smaller"),
        ({"use": "clusters", "clusters": 16}, [("clusters", 900, 16)], "clusters 16; clusters of 1 of 1 layer"),
        ({"use": "n_m", "n": 2, "m": 4}, [("weights", 100, 50)] * 2, "n m, n 2, m 4; 200 to 100 weights in 2 of 2"),
        ({"use": "layers"}, [("layers", 1, 0), ("layers", 1, 1)], "layers; 2 to 1 layers"),
        ({"use": "channels"}, [("channels", 8, 8)], "no layer changed in channels"),
        ({"use": "fake"}, [("bits", 32, 4), ("bits", 32, 8)], "2 of 2 layers in 4 and 8 bits"),
    ],
)
def test_any_change_has_words(scheme, changes, words):
    made = [{"path": "p", "kind": kind, "before": before, "after": after} for kind, before, after in changes]
    assert words in done(Compression.model_validate({"step": "s", "scheme": scheme, "changes": made}))


def test_a_chart_needs_a_number():
    assert sensitivity("s", []) is None
    assert sensitivity("s", [Sensitivity(layer="a")]) is None


@pytest.mark.parametrize("entry", [{"step": "a"}, {"step": "a", "changes": None, "tries": None, "scheme": None}])
def test_bare_records_give_a_page(write, records, tmp_path, entry):
    results = records.digits(1)
    results["compressions"] = [entry]
    assert "What was made smaller" in write_page([write(results)], tmp_path / "report.html").read_text("utf-8")


@pytest.mark.browser
@pytest.mark.parametrize("width", [1300, 400])
def test_the_section_in_a_browser(browser, write, records, tmp_path, width):
    results = chained(records)
    results["compressions"][0]["changes"][0] |= {"path": HOSTILE, "note": HOSTILE}
    results["compressions"][1]["sensitivity"][0]["layer"] = HOSTILE
    path = write_page([write(results)], tmp_path / "report.html")
    page = browser.new_page(viewport={"width": width, "height": 900})
    messages, asked = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-drawn]", state="attached")
    section = page.locator("section[aria-labelledby=smaller-0]")
    assert section.locator("table.stages tbody tr").count() == 2
    assert section.locator(".chart svg.marks").count() == 1
    assert section.locator("table.plain").count() == 4
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    text = " ".join(section.inner_text().split())
    assert HOSTILE in text
    assert "19.8 k → 6.39 k" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert (messages, asked) == ([], [path.as_uri()])
    page.close()


def test_a_real_run_from_the_teacher_to_integers(tmp_path):
    short = tiny.LEARN
    plain = {
        **tiny.PAIR,
        "models": {"large": {"use": "small_resnet", "width": 8}, "small": {"use": "small_resnet", "width": 8}},
        "steps": [
            *(step for step in tiny.PAIR["steps"] if step["name"] != "student_alone"),
            {"use": "prune", "name": "pruned", "inputs": {"model": "student", "teacher": "teacher"}, "ratio": 0.5,
             **short},
            {"use": "qat", "name": "rounded", "inputs": {"model": "pruned", "teacher": "teacher"}, **short},
            {"use": "export", "name": "teacher_onnx", "inputs": {"model": "teacher"}},
            {"use": "export", "name": "student_onnx", "inputs": {"model": "pruned"}},
            {"use": "export", "name": "learned_int8", "inputs": {"model": "rounded"}},
            {"use": "quantize", "name": "student_int8", "inputs": {"model": "student_onnx"},
             "scheme": {"use": "static", "sensitivity": True, "protect": ["head"]}, "calibration_samples": 32,
             "max_size_bytes": 10_000_000},
            {"use": "search", "name": "sought", "inputs": {"model": "student"}, "setting": "scheme.ratio", "low": 0.2,
             "high": 0.5, "tries": 2, "min_quality": 0.0, "step": {"use": "prune", "recover": {"use": "none"}}},
            {"use": "benchmark", "repeats": 4, "warmup": 1, "seconds": 0.5,
             "inputs": {"teacher": "teacher_onnx", "student": "student_onnx", "learned_int8": "learned_int8",
                        "student_int8": "student_int8"}},
        ],
    }  # fmt: skip
    results = execute(tiny.recipe(plain), tmp_path).results
    assert json.loads((tmp_path / "results.json").read_text("utf-8")) == results
    pruned, rounded, int8, sought = results["compressions"]
    report = json.loads((tmp_path / "03-pruned" / "compression.json").read_text("utf-8"))
    exported = json.loads(
        (tmp_path / pruned["path"].replace("03-pruned", "08-student_int8") / "exported.json").read_text()
    )
    assert (pruned["step"], pruned["use"], pruned["source"], pruned["seed"]) == ("pruned", "prune", "student", 0)
    assert {name: pruned[name] for name in report if name != "step"} == {k: v for k, v in report.items() if k != "step"}
    assert (rounded["use"], rounded["source"]) == ("qat", "pruned")
    assert (int8["source"], int8["changes"]) == ("student_onnx", exported["quantization"]["changes"])
    assert int8["before"]["file_bytes"] == exported["float_bytes"] > int8["after"]["file_bytes"]
    assert int8["audit"] == exported["audit"]
    assert len(int8["sensitivity"]) == len(int8["changes"]) - 1
    assert int8["budgets"]["max_size_bytes"]["measured"] == int8["after"]["file_bytes"]
    assert (sought["chosen"], len(sought["tries"])) == (0.5, 1)
    assert set(sought["budgets"]) == {"min_quality"}

    models = {each["name"]: each for each in results["models"]}
    assert [name for name, each in models.items() if each["quantized"]] == ["learned_int8", "student_int8"]
    assert models["student"]["kernels"] == {}
    assert models["student_int8"]["source"] == "student_onnx"
    assert models["student_int8"]["chain"] == ["student", "pruned", "student_onnx", "student_int8"]
    assert models["student_int8"]["kernels"]["left"][0]["cause"] == "protected"
    assert models["learned_int8"]["kernels"]["int8"] > 0

    read = as_results(results)
    assert [twin_of(read, read.model(name)).name for name in ("learned_int8", "student_int8")] == ["student"] * 2
    assert any("1 of 10 operators of student_int8 stays in float: head" in each for each in sentences(results))
    text = (tmp_path / "report.html").read_text("utf-8")
    section = re.search(r"What was made smaller</h2>(.*?)</section>", text, flags=re.S)
    assert section is not None
    for name in ("pruned", "rounded", "student_int8", "sought", "layer3.0.conv1", "Tries"):
        assert name in section.group(1)
    assert len(text) < 3_000_000


def test_what_integers_cost_is_said(records):
    results = chained(records)
    speed = {
        "ratio": 1.9,
        "file_ms": 0.019,
        "float_ms": 0.01,
        "words": ["slower than float: 1.9 ×", "larger than float: 1.2 ×"],
    }
    results["compressions"][1]["speed"] = speed
    results["compressions"][1]["quantization"]["facts"] = {"keep_float": {"kinds": {"linear layers": ["a", "b"]}}}
    says = stages(as_results(results))[1].says
    assert "The file is slower than float: 1.9 × and larger than float: 1.2 ×" in says[1]
    assert says[2] == "Kept in float, since that was faster: linear layers (2)."
    results["compressions"][1]["quantization"]["facts"]["keep_float"]["whole"] = True
    assert stages(as_results(results))[1].says[2].endswith("so it was written in float.")
    results["models"][1]["speed"] = speed
    assert rows(results)[1]["Against float"] == "1.9× slower"
    assert "Against float" not in rows(chained(records))[1]
    results["models"] = [each for each in results["models"] if each["name"] != "pruned"]
    found = [each for each in findings(as_results(results)) if "slower than float" in each.text]
    assert [each.tone for each in found] == ["worse"]


def test_a_file_that_is_neither_slower_nor_larger_is_said_to_be_so(records):
    results = chained(records)
    results["compressions"][1]["speed"] = {"ratio": 0.5, "file_ms": 0.005, "float_ms": 0.01, "words": []}
    assert "The file is neither slower nor larger than float" in stages(as_results(results))[1].says[1]
