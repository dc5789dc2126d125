"""The report: one self-contained HTML file, with plots as inline SVG, from the results."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _ORANGE, _GREY, _PALE = "#1f6f8b", "#d9822b", "#8a8f98", "#ecc294"

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1d232b; background: #fff;
       max-width: 60rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; margin: .8rem 0; }
th, td { text-align: left; vertical-align: top; padding: .4rem .7rem .4rem 0;
         border-bottom: 1px solid #dfe3e8; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
p.small, td.small { color: #555d68; font-size: .88rem; }
.yes { color: #1a7f37; } .no { color: #b42318; }
figure { margin: 1rem 0; } figcaption { color: #555d68; font-size: .88rem; }
svg { max-width: 100%; height: auto; }
"""


def render(results: dict[str, Any]) -> str:
    """The whole report as HTML."""
    body = "\n".join(
        (
            _head(results),
            _models(results),
            _training(results),
            _questions(results),
            _checks(results),
            _memory(results),
            _details(results),
        )
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>QLoRA with bitsanywhere</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def summary(results: dict[str, Any]) -> str:
    """The main results as plain text for the terminal."""
    rows = [("", "bf16", "NF4")]
    bf16, nf4 = results["models"]["bf16"], results["models"]["nf4"]
    for label, show in _MODEL_ROWS:
        rows.append((label, show(bf16), show(nf4)))
    rows += [("", "", ""), ("held-out syllogisms", "before", "after")]
    before, after = results["scores"]["before"], results["scores"]["after"]
    for label, show in _SCORE_ROWS:
        rows.append((label, show(before), show(after)))
    lines = [f"{a:<46}{b:>12}{c:>12}" for a, b, c in rows]
    lines.append("")
    for check in results["checks"]:
        verdict = "ok " if check["passed"] else "NO "
        lines.append(
            f"{verdict} {check['name']}: {check['measured']:.4f} (allowed {check['allowed']:.4f})"
        )
    lines.append(f"\ntotal {_total(results):.0f} s")
    return "\n".join(lines)


_Show = Callable[[dict[str, Any]], str]
_MODEL_ROWS: tuple[tuple[str, _Show], ...] = (
    ("size in memory", lambda m: f"{m['bytes'] / 1e6:.1f} MB"),
    ("of which linear layers", lambda m: f"{m['linear_bytes'] / 1e6:.1f} MB"),
    ("load time", lambda m: f"{m['load_seconds']:.2f} s"),
    ("perplexity on the shipped text", lambda m: f"{m['perplexity']:.2f}"),
)
_SCORE_ROWS: tuple[tuple[str, _Show], ...] = (
    ("right answer preferred to three wrong ones", lambda s: f"{s['chosen']:.0%}"),
    ("freely written answer follows", lambda s: f"{s['written']:.0%}"),
    ("log-likelihood per token of the right answer", lambda s: f"{s['log_likelihood']:.2f}"),
)

_SCORED = (
    ("before", "before"),
    ("after", "after"),
    ("merged_bf16", "merged into bf16"),
    ("merged_nf4", "merged into 4 bits"),
)


def _total(results: dict[str, Any]) -> float:
    return sum(stage["seconds"] for stage in results["stages"])


def _head(results: dict[str, Any]) -> str:
    models, scores = results["models"], results["scores"]
    smaller = models["bf16"]["linear_bytes"] / models["nf4"]["linear_bytes"]
    machine = results["machine"]
    return (
        "<h1>A language model in 4 bits, fine-tuned by QLoRA</h1>\n"
        f'<p class="small">{escape(results["model"])} &middot; {escape(results["library"])} '
        f"&middot; {escape(machine['name'])} ({escape(machine['device'])}) &middot; "
        f"{escape(results['date'])}</p>\n"
        f"<p>The linear layers take {smaller:.1f} times less memory in 4-bit NF4 than in bf16. "
        f"Fine-tuning an adapter on top of them moved the share of syllogisms whose conclusion "
        f"the model writes correctly from {scores['before']['written']:.0%} to "
        f"{scores['after']['written']:.0%}, on adjectives and nouns that training never showed. "
        f"Everything together took {_total(results):.0f} seconds.</p>"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> str:
    """An HTML table; cells are HTML already, the last `numbers` columns are right-aligned."""
    first = len(header) - numbers

    def line(cells: Sequence[str], tag: str) -> str:
        made = (
            f'<{tag} class="n">{cell}</{tag}>' if i >= first else f"<{tag}>{cell}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(made)}</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return f"<table>\n<thead>{line(header, 'th')}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _models(results: dict[str, Any]) -> str:
    bf16, nf4 = results["models"]["bf16"], results["models"]["nf4"]
    rows = [(label, show(bf16), show(nf4)) for label, show in _MODEL_ROWS]
    answers = [(escape(m["title"]), escape(m["answer"])) for m in (bf16, nf4)]
    return "\n".join(
        (
            "<h2>The model in bf16 and in 4 bits</h2>",
            _table(("", escape(bf16["title"]), escape(nf4["title"])), rows, 2),
            '<p class="small">The embedding table, which is also the output layer of this model, '
            "stays in bf16. Sizes count each parameter once, with the statistics of the 4-bit "
            f"blocks. Text: {escape(results['text'])}.</p>",
            _figure(_draw_sizes, results, (7.2, 1.7), "Memory of the parameters."),
            f"<p>Question: <em>{escape(results['question'])}</em></p>",
            _table(("model", "answer"), answers, 0),
        )
    )


def _training(results: dict[str, Any]) -> str:
    training, scores = results["training"], results["scores"]
    rows = [(label, *(show(scores[name]) for name, _ in _SCORED)) for label, show in _SCORE_ROWS]
    pace = training["seconds"] / training["steps"]
    return "\n".join(
        (
            "<h2>QLoRA on syllogisms</h2>",
            f"<p>{training['items']} generated syllogisms and short sorites in the manner of Lewis "
            "Carroll, each checked against every possible model of its premises; "
            f"{training['steps']} steps of {training['batch']}, {pace:.2f} s a step, "
            f"{training['adapter_parameters'] / 1e6:.1f} million trained numbers. The "
            f"{scores['before']['items']} held-out questions use other adjectives and nouns; "
            f"{len(scores['before']['answers'])} of them are answered in writing. Guessing among "
            "four answers gives 25%.</p>",
            _table(("", *(title for _, title in _SCORED)), rows, len(_SCORED)),
            _figure(_draw_loss, results, (7.2, 2.9), "Training loss (answer tokens only)."),
            _figure(_draw_scores, results, (7.2, 2.6), "Scores on the held-out questions."),
        )
    )


def _questions(results: dict[str, Any], most: int = 6) -> str:
    before = results["scores"]["before"]["answers"]
    after = results["scores"]["after"]["answers"]
    rows = [
        (
            escape(item["question"]).replace("\n", "<br/>"),
            escape(item["answer"]),
            escape(first),
            escape(last),
        )
        for item, first, last in list(zip(results["items"], before, after))[:most]
    ]
    header = ("premises", "a right answer", "written before", "written after")
    return "<h2>Some held-out questions</h2>\n" + _table(header, rows, 0)


def _verdict(passed: bool) -> str:
    word = "yes" if passed else "no"
    return f'<span class="{word}">{word}</span>'


def _checks(results: dict[str, Any]) -> str:
    rows = [
        (
            _verdict(c["passed"]),
            escape(c["name"]),
            escape(c["reason"]),
            f"{c['measured']:.4f}",
            f"{c['allowed']:.4f}",
        )
        for c in results["checks"]
    ]
    return (
        "<h2>Saved, reloaded, merged: the same model?</h2>\n"
        + _table(("holds", "check", "what is allowed, and why", "measured", "allowed"), rows, 2)
        + '\n<p class="small">Differences are relative: root mean square of the difference over '
        "that of the value; of centred logits in the first three rows. Merging into 4 bits keeps "
        "only a part of what the adapter learned, since changes smaller than half a step between "
        "NF4's levels are rounded away: to deploy, use the bf16 model in the folder merged, or "
        "keep the adapter apart.</p>"
    )


def _memory(results: dict[str, Any]) -> str:
    what = "allocated on the GPU" if results["machine"]["device"] == "cuda" else "resident"
    caption = f"Memory of the process ({what}) over the stages numbered below."
    rows = [
        (str(i), escape(s["name"]), f"{s['seconds']:.1f}", f"{s['cpu_seconds']:.1f}")
        for i, s in enumerate(results["stages"], 1)
    ]
    return "\n".join(
        (
            "<h2>Memory and time</h2>",
            _figure(_draw_memory, results, (7.2, 2.9), caption),
            _table(("", "stage", "seconds", "processor seconds"), rows, 2),
        )
    )


def _details(results: dict[str, Any]) -> str:
    pairs = {**results["machine"], **results["versions"]}
    line = ", ".join(f"{escape(str(k))} {escape(str(v))}" for k, v in pairs.items())
    kept = "".join(f"<li>{escape(path)}</li>" for path in results["written"])
    return (
        f'<h2>Versions and files</h2>\n<p class="small">{line}</p>\n<ul>{kept}</ul>\n'
        '<p class="small">All numbers: results.json beside this file.</p>'
    )


def _figure(
    draw: Callable[[Axes, dict[str, Any]], None],
    results: dict[str, Any],
    size: tuple[float, float],
    caption: str,
) -> str:
    """A plot as inline SVG whose ids are its own, with a caption."""
    import matplotlib
    from matplotlib.figure import Figure

    look = {"svg.fonttype": "none", "svg.hashsalt": draw.__name__, "font.family": "sans-serif"}
    look |= {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
    with matplotlib.rc_context(look):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots(), results)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    own = draw.__name__.strip("_")
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{own}-", svg)
    return f"<figure>\n{svg}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def _draw_sizes(axes: Axes, results: dict[str, Any]) -> None:
    models = [results["models"]["nf4"], results["models"]["bf16"]]
    names = [model["title"] for model in models]
    linear = [model["linear_bytes"] / 1e6 for model in models]
    rest = [(model["bytes"] - model["linear_bytes"]) / 1e6 for model in models]
    axes.barh(names, linear, color=_BLUE, label="linear layers")
    axes.barh(names, rest, left=linear, color=_GREY, label="embedding and norms")
    axes.set_xlabel("MB")
    axes.legend(frameon=False, loc="lower right")


def _draw_loss(axes: Axes, results: dict[str, Any]) -> None:
    losses = results["training"]["losses"]
    steps = range(1, len(losses) + 1)
    windows = [losses[max(0, i - 5) : i] for i in steps]
    smooth = [sum(window) / len(window) for window in windows]
    axes.plot(steps, losses, color=_GREY, linewidth=0.8, marker=".", label="each step")
    axes.plot(steps, smooth, color=_ORANGE, linewidth=2, label="mean of the last five")
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("loss (nats a token)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _draw_scores(axes: Axes, results: dict[str, Any]) -> None:
    labels = ["right answer preferred", "written answer follows"]
    for i, ((name, title), color) in enumerate(zip(_SCORED, (_GREY, _BLUE, _ORANGE, _PALE))):
        scores = results["scores"][name]
        heights = [scores["chosen"] * 100, scores["written"] * 100]
        places = [i * 0.21 + group for group in range(2)]
        bars = axes.bar(places, heights, 0.19, color=color, label=title)
        axes.bar_label(bars, fmt="%.0f")
    axes.axhline(25, xmax=0.5, color="black", linewidth=0.8, linestyle=":", label="guessing")
    axes.set_xticks([0.315, 1.315], labels)
    axes.set_ylim(0, 105)
    axes.set_ylabel("%")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_memory(axes: Axes, results: dict[str, Any]) -> None:
    memory, total = results["memory"], _total(results)
    axes.plot([t for t, _ in memory], [held / 1e6 for _, held in memory], color=_BLUE)
    top = max((held for _, held in memory), default=1) / 1e6
    for i, stage in enumerate(results["stages"], 1):
        axes.axvline(stage["start"], color=_GREY, linewidth=0.6, linestyle=":")
        if stage["seconds"] > total / 50:
            middle = stage["start"] + stage["seconds"] / 2
            axes.text(middle, top * 1.04, str(i), ha="center", color="#555d68")
    axes.set_ylim(0, top * 1.12)
    axes.set_xlabel("seconds")
    axes.set_ylabel("MB")
