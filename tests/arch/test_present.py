"""The formats: schema, escapes, and that each says what the report says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bitsanywhere.arch.present import FORMATS
from bitsanywhere.arch.present.as_html import embeddable
from bitsanywhere.arch.present.as_json import schema, to_dict
from bitsanywhere.arch.report import Report, audit
from bitsanywhere.arch.rules import RULES
from docs.rule_table import rule_table
from tests.arch.binaries import PTX, container, elf, entry, wheel

FIXTURES = Path(__file__).parent / "fixtures"
DEVICES = ("orin-nano", "t4", "a100", "h100", "b300", "rtx5090", "sm_131")


@pytest.fixture(scope="module")
def report() -> Report:
    names = ("rdc_sm80.so", "plain_sm80_ptx80.so", "plain_zstd.so", "plain_sm100f.so", "lto.fatbin")
    return audit([str(FIXTURES / name) for name in names], DEVICES, "12.3")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A wheel whose member names attack terminals, tables and pages."""
    code = elf({".nv_fatbin": container(entry(80), entry(90, PTX, isa=(8, 5)))})
    names = ["a|b`c`*d*.so", "e\x1b[31m\x07f.so", "g</script><img src=x onerror=alert(1)>.so"]
    path = tmp_path_factory.mktemp("hostile") / "evil-1-py3-none-linux_aarch64.whl"
    path.write_bytes(wheel(dict.fromkeys(names, code)))
    return audit([str(path)], ["t4", "h100"])


def validate(value: object) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(value, schema())


def test_json_follows_the_schema_that_ships(report: Report, hostile: Report) -> None:
    validate(json.loads(FORMATS["json"](report)))
    validate(to_dict(hostile))
    validate(to_dict(audit([str(FIXTURES)])))


def test_the_schema_can_fail(report: Report) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for spoil in (
        lambda made: made["files"][0]["devices"][0].pop("sources"),
        lambda made: made["files"][0]["devices"][0].update(verdict="perhaps"),
        lambda made: made["files"][0]["libraries"][0]["registered"]["sass"].append("80"),
        lambda made: made["files"][0]["devices"][0].update(surplus=1),
        lambda made: made.update(surplus=1),
    ):
        made = to_dict(report)
        spoil(made)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(made, schema())


def test_the_schema_knows_every_verdict_in_the_rules() -> None:
    assert schema()["$defs"]["verdict"]["enum"] == list(RULES)


def test_json_has_the_fields_that_tools_rely_on(report: Report) -> None:
    (file, *_) = json.loads(FORMATS["json"](report))["files"]
    assert file["libraries"][0]["registered"] == {
        "containers": 1,
        "sass": ["sm_80"],
        "ptx": [],
        "lto": [],
        "compression": ["none"],
    }
    h100 = next(each for each in file["devices"] if each["device"] == "h100")
    assert (h100["covered"], h100["verdict"], h100["capability"]) == (False, "no-symbol", "9.0")
    assert h100["error"] == {
        "code": 500,
        "name": "cudaErrorSymbolNotFound",
        "text": "named symbol not found",
        "message": "CUDA error 500 (cudaErrorSymbolNotFound): named symbol not found",
    }
    assert h100["sources"]
    assert "sm_90" in h100["fix"]


def test_every_format_names_every_file_device_and_verdict(report: Report) -> None:
    for name, present in FORMATS.items():
        text = present(report).replace("\\_", "_")
        for file in report.files:
            assert file.path.rsplit("/", 1)[-1] in text, name
            for each in file.devices:
                assert each.finding.device.name in text, name
                assert each.finding.verdict in text, name


def test_table_explains_what_is_not_covered_and_nothing_else() -> None:
    path = str(FIXTURES / "rdc_sm80.so")
    missing = FORMATS["table"](audit([path], ["orin-nano", "sm_87"]))
    assert "sm_87: not covered" in missing
    assert "CUDA error 500 (cudaErrorSymbolNotFound): named symbol not found" in missing
    assert "bitsandbytes/issues/1930" in missing
    assert "contrary" in missing
    assert "JetPack 7.2" in missing
    assert "not covered" not in FORMATS["table"](audit([path], ["a100"]))


def test_no_format_lets_a_file_name_steer_the_reader(hostile: Report) -> None:
    for name in ("table", "markdown", "html"):
        text = FORMATS[name](hostile)
        assert "\x1b" not in text, name
        assert "\x07" not in text, name
    rows = [line for line in FORMATS["markdown"](hostile).splitlines() if line.startswith("| t4")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [7]
    assert "<img" not in FORMATS["markdown"](hostile).replace("\\<", "")


def test_html_is_one_page_that_loads_nothing_and_cannot_be_broken_out_of(hostile: Report) -> None:
    page = FORMATS["html"](hostile)
    assert page.count("</script>") == 2
    assert "<img" not in page
    assert not re.search(r"""(src|href)\s*=\s*["']|@import|url\(""", page)
    data = page.split('id="audit">')[1].split("</script>")[0]
    assert json.loads(data) == to_dict(hostile)
    assert json.loads(embeddable(json.dumps("</script>&<!--"))) == "</script>&<!--"


def test_sarif_results_refer_to_rules_that_are_there(report: Report) -> None:
    made = json.loads(FORMATS["sarif"](report))
    assert made["version"] == "2.1.0"
    (run,) = made["runs"]
    rules = [each["id"] for each in run["tool"]["driver"]["rules"]]
    assert len(run["results"]) == len(report.files) * len(DEVICES)
    for each in run["results"]:
        assert rules[each["ruleIndex"]] == each["ruleId"]
        assert each["level"] == ("none" if RULES[each["ruleId"]].covered else "error")
        assert each["message"]["text"]
        uri = each["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert " " not in uri
    assert len({each["partialFingerprints"]["verdict/v1"] for each in run["results"]}) == len(
        run["results"]
    )


def test_the_documented_rule_table_is_the_one_in_the_data() -> None:
    page = Path(__file__).parents[2] / "docs" / "audit-rules.md"
    assert page.read_text(encoding="utf-8") == rule_table()
