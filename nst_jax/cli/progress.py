"""Progress of a run on the terminal: a bar, or plain lines where the output is no terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from nst_jax.transfer.types import Progress


@contextmanager
def planning_display(console: Console | None = None) -> Iterator[None]:
    """Say on a terminal, while it is so, that a run is being planned."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status("planning"):
        yield


@contextmanager
def progress_display(
    steps: int, *, console: Console | None = None
) -> Iterator[Callable[[Progress], None]]:
    """Give a function that shows a ``Progress``.

    Args:
      steps: number of steps of the run.
      console: where to, by default standard error.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _line_printer(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task("compiling", total=steps, detail="")
        scale = 0

        def show(progress: Progress) -> None:
            nonlocal scale
            if progress.scale > scale:
                bar.console.print(_compiled(progress))
                if not scale:  # so that the time left is that of steps
                    bar.reset(task, description="stylizing", detail="")
                scale = progress.scale
            bar.update(task, completed=progress.step, detail=_detail(progress))

        yield show


@contextmanager
def job_display(
    images: int,
    *,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[float], None]]:
    """Give a function that shows how many images of a job are done, also in fractions.

    Args:
      images: of the job.
      console: where to, by default standard error.
      clock: gives seconds.
    """
    console = console or Console(stderr=True)
    words = _images_in_words(images, clock=clock)
    if not console.is_terminal:
        shown_at, shown = -30.0, -1

        def print_line(done: float) -> None:
            nonlocal shown_at, shown
            if int(done) > shown or clock() > shown_at + 30:
                console.print(words(done), highlight=False, soft_wrap=True)
                shown_at, shown = clock(), int(done)

        yield print_line
        return
    columns = (BarColumn(), TextColumn("{task.description}"))
    # What goes to the standard output may be read by another program.
    with Bar(*columns, console=console, redirect_stdout=False) as bar:
        task = bar.add_task("compiling", total=images)
        yield lambda done: bar.update(task, completed=done, description=words(done))


def _images_in_words(images: int, *, clock: Callable[[], float]) -> Callable[[float], str]:
    """Words for what is done; the speed is that since the first report, without compilation."""
    first: tuple[float, float] | None = None

    def words(done: float) -> str:
        nonlocal first
        if first is None or done < first[1]:  # less is done after a batch that was too large
            first = (clock(), done)
        speed = (done - first[1]) / max(clock() - first[0], 1e-6)
        rate = f", {speed:.3g} images/s, {(images - done) / speed:.0f} s left" if speed else ""
        return f"{int(done + 1e-6)}/{images} images{rate}"

    return words


def _compiled(progress: Progress) -> str:
    """What is told at the first step of a scale."""
    words = f"compiled in {progress.compile_s:.1f} s"
    if progress.scales == 1:
        return words
    height, width, _ = progress.image.shape
    return f"scale {progress.scale}/{progress.scales}, {width}x{height} px: {words}"


def _detail(progress: Progress) -> str:
    return f"loss {float(progress.info.loss):.5g}, {progress.seconds_per_step:.3g} s/step"


def _line_printer(console: Console) -> Callable[[Progress], None]:
    """Print about ten lines a run, and one every half minute at least."""
    shown, shown_at, scale = -1, 0.0, 0

    def show(progress: Progress) -> None:
        nonlocal shown, shown_at, scale
        if progress.scale > scale:
            console.print(_compiled(progress), highlight=False)
            scale = progress.scale
        tenth = 10 * progress.step // progress.steps
        if tenth > shown or time.monotonic() > shown_at + 30:
            left = (progress.steps - progress.step) * progress.seconds_per_step
            console.print(
                f"step {progress.step}/{progress.steps}, {_detail(progress)}, {left:.0f} s left",
                highlight=False,
                soft_wrap=True,
            )
            shown, shown_at = tenth, time.monotonic()

    return show
