"""Compare the looks of settings at equal time: images side by side, and two numbers for each.

    python scripts/compare_looks.py --output out/looks --seconds 20 \
        --settings neural-style gatys mine=gatys:optimizer=adam,style_weight=300

Every content is stylized with every style by every setting and network, each for the same time:
first the seconds of a step are measured, then each run gets the steps that fit. Compilation is
apart. Other work on the machine makes both unreliable: the table says what each run took. A
setting is ``[LABEL=]PRESET[:NAME=VALUE,...]``, with any setting of ``Config``; lists are
joined by ``+``, as in ``style_losses=gram+mean-std=10``. The steps that it has itself only give
the proportion of its scales.

Two measures that no setting optimises (``look_measures.py``) judge each result by the full network
where it is there, else by the slim one, at layers that are not among the presets' own:

- style: sliced Wasserstein distance to the style; 0 is the style itself, 1 the content;
- content: change of the content's self-similarity; 0 is the content, 1 the style image.

Written into OUTPUT: the images, a sheet for each content and network, looks.md and looks.json,
these two again after each sheet.
"""

import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from look_images import CONTENTS, STYLES, write_images
from look_judge import CONTENT_JUDGES, STYLE_JUDGES, make_judge
from look_report import Found, caption, pair_table, sheet, summary, summary_table
from look_settings import Setting, measure_settings, parse_setting, planned, run_setting

from nst_jax.cli import record as report
from nst_jax.errors import InputError
from nst_jax.images import load_image, save_image, to_uint8
from nst_jax.losses.objective import check_learned
from nst_jax.system import atomic_write, device, keep_freed_memory, versions
from nst_jax.transfer import check_inputs
from nst_jax.weights import find_weights, load_weights

Network = Literal["full", "slim"]
MODELS = {"full": "vgg19", "slim": "vgg19-slim"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare the looks of settings at equal time.

    Attributes:
      output: Folder of what is written.
      settings: What is compared, each as [LABEL=]PRESET[:NAME=VALUE,...].
      contents: Content images, files or names of drawn ones.
      styles: Style images, likewise; all pairs are made.
      networks: full, slim, or both.
      weights: The full network; by default as the command line finds it.
      slim: The slim one; by default the shipped one.
      size: Longer side in pixels.
      seconds: Time of the steps of each run.
      rounds: Measurements of the seconds of a step, settings in turn.
    """

    output: Path
    settings: tuple[str, ...] = ("neural-style", "gatys", "fast")
    contents: tuple[str, ...] = tuple(CONTENTS)
    styles: tuple[str, ...] = tuple(STYLES)
    networks: tuple[Network, ...] = ("full", "slim")
    weights: Path | None = None
    slim: Path | None = None
    size: int = 256
    seconds: float = 20.0
    rounds: int = 5


def load_images(options: Options) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """All images by name, and the names of the contents and of the styles.

    Raises:
      InputError: for a file that cannot be read, and for two of one name.
    """
    wanted = (*options.contents, *options.styles)
    drawn = tuple(name for name in dict.fromkeys(wanted) if name in CONTENTS | STYLES)
    paths = write_images(options.output / "inputs", drawn)
    names = [name if name in paths else Path(name).stem for name in wanted]
    if len(set(names)) < len(names):
        raise InputError("images are told by their names: expected different ones")
    files = [paths.get(name, name) for name in wanted]
    images = {n: load_image(file, size=options.size) for n, file in zip(names, files)}
    count = len(options.contents)
    return images, names[:count], names[count:]


def load_networks(options: Options) -> dict[str, Any]:
    """The networks that are asked for, by name.

    Raises:
      InputError: where one is not there.
    """
    given = {"full": options.weights, "slim": options.slim}
    return {
        name: load_weights(find_weights(path=given[name], model=MODELS[name])).variables
        for name in dict.fromkeys(options.networks)
    }


def check(
    settings: list[Setting], networks: dict[str, Any], images: dict[str, np.ndarray]
) -> list[str]:
    """Check before the work that every setting can run; say which one optimises what judges.

    Raises:
      InputError: where one cannot.
    """
    labels = {file_words(setting.label) for setting in settings}
    if len(labels) < len(settings) or any("/" in label for label in labels):
        raise InputError("settings are told by their labels: expected different ones, without /")
    notes = []
    for setting in settings:
        loss = setting.config.loss
        for name, variables in networks.items():
            try:
                check_learned(variables, loss)
            except InputError as error:
                raise InputError(f"{setting.label}, {name}: {error}") from None
        for image in images.values():
            check_inputs(image, [image], config=setting.config)
        for own, judges in (
            (loss.style_names, STYLE_JUDGES),
            (loss.content_names, CONTENT_JUDGES),
        ):
            if both := set(own) & set(judges):
                names = ", ".join(sorted(both))
                notes.append(f"{setting.label} optimises {names}, at which it is judged, too")
    return notes


def compare(options: Options) -> dict[str, Any]:
    """All results: their measures, as a record; the images and sheets are written.

    Raises:
      InputError: before the first step.
    """
    settings = [parse_setting(text) for text in options.settings]
    networks = load_networks(options)
    options.output.mkdir(parents=True, exist_ok=True)
    images, contents, styles = load_images(options)
    notes = check(settings, networks, images)
    judging = "full" if "full" in networks else "slim"
    judge = make_judge(networks[judging], images)
    first = images[contents[0]], images[styles[0]]
    timings = measure_settings(networks, settings, *first, rounds=options.rounds)

    results: list[Found] = []
    record = {
        "size": options.size,
        "seconds": options.seconds,
        "judge": {
            "network": judging,
            "style_layers": STYLE_JUDGES,
            "content_layers": CONTENT_JUDGES,
        },
        "step_seconds": {" ".join(key): timing for key, timing in timings.items()},
        "settings": {setting.label: setting.words for setting in settings},
        "notes": notes,
        "device": device(),
        "versions": versions(),
        "results": results,
    }
    for content, (network, variables) in product(contents, networks.items()):
        shown, captions = {}, {}
        for style, setting in product(styles, settings):
            config = planned(
                setting.config, timings[network, setting.label], seconds=options.seconds
            )
            pair = images[content], images[style]
            result, _ = run_setting(variables, *pair, setting, config=config)
            image = to_uint8(result.image).astype(np.float32) / 255  # as it is seen
            found = {"content": content, "style_image": style, "network": network}
            found |= {"setting": setting.label, "status": str(result.status)}
            found |= {"steps": len(result.history.loss), "seconds": result.timing["steps_s"]}
            found |= judge(image, content, style)
            key = content, style, setting.label
            shown[key], captions[key] = image, caption(found)
            name = image_name(found)
            save_image(options.output / name, image)
            results.append(found | {"image": name})
            print(
                f"{network}, {content}, {style}: " + captions[key].replace("\n", ", "), flush=True
            )
        title = f"{network} network, {options.seconds:g} s"
        rows = [(content, style) for style in styles]
        labels = [setting.label for setting in settings]
        page = sheet(rows, images, shown, captions, settings=labels, title=title)
        save_image(options.output / f"sheet_{content}__{network}.png", page)
        write(record, options.output)
    return record


def write(record: dict[str, Any], output: Path) -> str:
    """Write what is known so far, looks.json and looks.md; returns the tables."""
    means = summary(record["results"])
    tables = [summary_table(means), pair_table(record["results"]), *record["notes"]]
    text = "\n\n".join(tables) + "\n"
    with atomic_write(output / "looks.md") as temporary:
        temporary.write_text(text, "utf-8")
    report.write_json(output / "looks.json", record | {"summary": means})
    return text


def image_name(found: Found) -> str:
    """The file of a result."""
    parts = (found[name] for name in ("content", "style_image", "network", "setting"))
    return file_words("__".join(parts)) + ".png"


def file_words(text: str) -> str:
    """A text without what is awkward in the names of files."""
    return text.replace(":", "_").replace(",", "_")


def main() -> int:
    options = tyro.cli(Options)
    try:
        print("\n" + write(compare(options), options.output))
    except InputError as error:
        print(f"compare_looks: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
