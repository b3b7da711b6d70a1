"""Sheets and tables of a comparison of looks."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nst_jax.images import contact_sheet, resize_to

Found = dict[str, Any]  # one result: see ``compare_looks.compare``
MEASURES = ("style", "content_change")


def fitted(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """An image scaled into the middle of a white one of the given height and width."""
    height, width, _ = image.shape
    scale = min(shape[0] / height, shape[1] / width)
    inner = tuple(max(1, round(side * scale)) for side in (height, width))
    small = resize_to(np.asarray(image, np.float32), shape=(inner[0], inner[1]))
    paper = np.ones((*shape, 3), np.float32)
    top, left = (shape[0] - inner[0]) // 2, (shape[1] - inner[1]) // 2
    paper[top : top + inner[0], left : left + inner[1]] = small
    return paper


def sheet(
    rows: Sequence[tuple[str, str]],
    inputs: Mapping[str, np.ndarray],
    results: Mapping[tuple[str, str, str], np.ndarray],
    captions: Mapping[tuple[str, str, str], str],
    *,
    settings: Sequence[str],
    title: str | None = None,
) -> np.ndarray:
    """A row for each pair: content, style, then the result of each setting.

    Args:
      rows: (content, style) each.
      inputs: content and style images by name.
      results, captions: (content, style, setting) -> image, and what is written beneath.
      settings: labels, in the order of the columns.
      title: a text above.
    """
    shape = next(iter(results.values())).shape[:2]
    images, labels = [], []
    for content, style in rows:
        images += [fitted(inputs[name], shape) for name in (content, style)]
        labels += [f"content: {content}", f"style: {style}"]
        for setting in settings:
            images.append(fitted(results[content, style, setting], shape))
            labels.append(captions[content, style, setting])
    return contact_sheet(images, labels=labels, columns=2 + len(settings), title=title)


def caption(found: Found) -> str:
    """What stands beneath a result."""
    status = "" if found["status"] == "done" else f", {found['status']}"
    numbers = f"style {found['style']:.2f}, content {found['content_change']:.2f}"
    return f"{found['setting']}\n{found['steps']} steps{status}\n{numbers}"


def summary(results: Sequence[Found]) -> list[Found]:
    """For each network and setting the means and the worst values over all pairs."""
    groups: dict[tuple[str, str], list[Found]] = {}
    for found in results:
        groups.setdefault((found["network"], found["setting"]), []).append(found)
    return [
        {"network": network, "setting": setting}
        | {"steps": round(statistics.mean(found["steps"] for found in group))}
        | {"seconds": statistics.mean(found["seconds"] for found in group)}
        | {name: statistics.mean(found[name] for found in group) for name in MEASURES}
        | {f"{name}_worst": max(found[name] for found in group) for name in MEASURES}
        for (network, setting), group in groups.items()
    ]


def summary_table(rows: Sequence[Found]) -> str:
    """The means as Markdown."""
    lines = [
        "| network | setting | steps | seconds | style: mean | worst | content: mean | worst |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        numbers = " | ".join(
            f"{row[name]:.3f}" for part in MEASURES for name in (part, f"{part}_worst")
        )
        lines.append(
            f"| {row['network']} | `{row['setting']}` | {row['steps']} | {row['seconds']:.1f} "
            f"| {numbers} |"
        )
    return "\n".join(lines)


def pair_table(results: Sequence[Found]) -> str:
    """Every result as Markdown: style / content."""
    settings = list(dict.fromkeys(found["setting"] for found in results))
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for found in results:
        row = cells.setdefault((found["network"], found["content"], found["style_image"]), {})
        row[found["setting"]] = f"{found['style']:.3f} / {found['content_change']:.3f}"
    lines = [
        "| network | content | style | " + " | ".join(f"`{name}`" for name in settings) + " |",
        "|---|---|---|" + "---:|" * len(settings),
    ]
    for names, row in cells.items():
        numbers = (row.get(setting, "") for setting in settings)
        lines.append("| " + " | ".join((*names, *numbers)) + " |")
    return "\n".join(lines)
