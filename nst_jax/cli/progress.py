"""Progress on standard error: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from nst_jax.transfer.types import Progress

LINE_SECONDS = 30.0  # between two plain lines, at most


@contextmanager
def planning_display(console: Console | None = None) -> Iterator[None]:
    """Show on a terminal that the block is planning a run."""
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
    """Give a function that shows the ``Progress`` of a run.

    Args:
      steps: number of steps of the run.
      console: by default standard error.
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
                if not scale:  # the remaining time is estimated from steps, without compilation
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
    """Give a function that shows the number of finished images of a job, including fractions.

    Args:
      images: number of images of the job.
      console: by default standard error.
      clock: returns seconds.
    """
    console = console or Console(stderr=True)
    describe = _job_describer(images, clock=clock)
    if not console.is_terminal:
        shown_at, shown = -LINE_SECONDS, -1

        def print_line(done: float) -> None:
            nonlocal shown_at, shown
            if int(done) > shown or clock() > shown_at + LINE_SECONDS:
                console.print(describe(done), highlight=False, soft_wrap=True)
                shown_at, shown = clock(), int(done)

        yield print_line
        return
    columns = (BarColumn(), TextColumn("{task.description}"))
    # Standard output is left alone, because another program may read it.
    with Bar(*columns, console=console, redirect_stdout=False) as bar:
        task = bar.add_task("compiling", total=images)
        yield lambda done: bar.update(task, completed=done, description=describe(done))


def _job_describer(images: int, *, clock: Callable[[], float]) -> Callable[[float], str]:
    """Make a function that describes the progress of a job.

    Its speed is measured from the first report, which comes after compilation.
    """
    first: tuple[float, float] | None = None

    def describe(done: float) -> str:
        nonlocal first
        # A batch that ran out of memory starts again, so the number may fall.
        if first is None or done < first[1]:
            first = (clock(), done)
        speed = (done - first[1]) / max(clock() - first[0], 1e-6)
        rate = f", {speed:.3g} images/s, {(images - done) / speed:.0f} s left" if speed else ""
        return f"{int(done + 1e-6)}/{images} images{rate}"  # a sum of fractions may be inexact

    return describe


def _compiled(progress: Progress) -> str:
    """The line for the first step of a scale."""
    text = f"compiled in {progress.compile_s:.1f} s"
    if progress.scales == 1:
        return text
    height, width, _ = progress.image.shape
    return f"scale {progress.scale}/{progress.scales}, {width}x{height} px: {text}"


def _detail(progress: Progress) -> str:
    return f"loss {float(progress.info.loss):.5g}, {progress.seconds_per_step:.3g} s/step"


def _line_printer(console: Console) -> Callable[[Progress], None]:
    """Make a function that prints about ten lines per run, and at least one every half minute."""
    shown, shown_at, scale = -1, 0.0, 0

    def show(progress: Progress) -> None:
        nonlocal shown, shown_at, scale
        if progress.scale > scale:
            console.print(_compiled(progress), highlight=False)
            scale = progress.scale
        tenth = 10 * progress.step // progress.steps
        if tenth > shown or time.monotonic() > shown_at + LINE_SECONDS:
            left = (progress.steps - progress.step) * progress.seconds_per_step
            console.print(
                f"step {progress.step}/{progress.steps}, {_detail(progress)}, {left:.0f} s left",
                highlight=False,
                soft_wrap=True,
            )
            shown, shown_at = tenth, time.monotonic()

    return show
