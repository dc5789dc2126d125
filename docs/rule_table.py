"""The page on the rules of the audit, generated from its data."""

from __future__ import annotations

from bitsanywhere.arch.devices import DEVICES, of_arch
from bitsanywhere.arch.rules import ERRORS, FAMILIES, PTX_ISA, RULES, SOURCES

HEAD = """\
# Rules of the audit

Generated from the data that `bitsanywhere audit` judges by; do not edit by hand
(`python docs/rule_table.py > docs/audit-rules.md`).

*Evidence* is the weakest link behind a verdict: *documented* by the maker, *reported* by users,
*inferred* by us, or *measured* by us.
"""


def rule_table() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_verdicts(), *_errors(), *_families(), *_devices(), *_sources()])


def _verdicts() -> list[str]:
    lines = [
        "## Verdicts",
        "",
        "From the best to the worst. A library gets the worst verdict of its fat binaries.",
        "",
        "| verdict | covered | rule | evidence | sources | reported otherwise |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, rule in RULES.items():
        row = (
            f"`{name}`",
            "yes" if rule.covered else "no",
            rule.statement,
            rule.evidence,
            ", ".join(map(_link, rule.sources)) or "-",
            ", ".join(map(_link, rule.contrary)) or "-",
        )
        lines.append(f"| {' | '.join(row)} |")
    return [*lines, ""]


def _errors() -> list[str]:
    lines = [
        "## Errors that are predicted",
        "",
        "| number | name | text | verdicts |",
        "| --- | --- | --- | --- |",
    ]
    for key, error in ERRORS.items():
        verdicts = [f"`{name}`" for name, rule in RULES.items() if rule.error == key]
        if key in ("no-image", "no-symbol"):
            verdicts += ["`tegra-undocumented`", "`unknown-arch`"]
        if key == "driver":
            verdicts.append("`cuda-major`")
        code = "-" if error.code is None else str(error.code)
        lines.append(f"| {code} | {error.name} | {error.text} | {', '.join(verdicts)} |")
    return [*lines, ""]


def _families() -> list[str]:
    isa = ", ".join(f"{a}.{b}: {c}.{d}" for (a, b), (c, d) in PTX_ISA.items())
    lines = [
        "## Families and PTX versions",
        "",
        "| code | runs on |",
        "| --- | --- |",
        *(
            f"| `sm_{arch}f` | {', '.join(of_arch(each).capability for each in sorted(members))} |"
            for arch, members in FAMILIES.items()
        ),
        "",
        "Code with the suffix `a` runs on its own capability only. The newest PTX version that a",
        "driver knows has the minor of its CUDA release (11.x: 7.x, 12.x: 8.x, 13.x: 9.x), except",
        f"for CUDA {isa}.",
    ]
    return [*lines, ""]


def _devices() -> list[str]:
    lines = [
        "## Devices",
        "",
        "| name | product | capability | Tegra |",
        "| --- | --- | --- | --- |",
    ]
    for each in sorted(DEVICES, key=lambda device: (device.arch, device.name)):
        tegra = "yes" if each.tegra else ""
        lines.append(f"| `{each.name}` | {each.title} | {each.capability} | {tegra} |")
    return [*lines, "", "Any other chip is given by its capability, as `sm_87`.", ""]


def _sources() -> list[str]:
    lines = ["## Sources", ""]
    lines += [f"- {_link(key)} ({each.evidence}): {each.says}" for key, each in SOURCES.items()]
    return [*lines, ""]


def _link(key: str) -> str:
    """A source as a link; pages of this documentation are named relative to it."""
    source = SOURCES[key]
    return f"[{source.title}]({source.url.removeprefix('docs/')})"


if __name__ == "__main__":
    print(rule_table(), end="")
