"""The work of the command ``batch``: pictures are read ahead, computed together, written behind."""

import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, groupby, islice
from typing import NamedTuple

import jax

from nst_jax.batch import follows_content, problem_maker
from nst_jax.batch_checkpoint import Composition, Save
from nst_jax.batch_inputs import Item
from nst_jax.batch_records import BatchJob, Loaded, job_fingerprint, leave_out, make_records, write
from nst_jax.batch_width import AT_MOST, choose_width, even_width, half_width, tell
from nst_jax.checkpoint_records import saving_times
from nst_jax.choices import Choice
from nst_jax.errors import InputError
from nst_jax.images import load_picture
from nst_jax.inputs import check_pictures
from nst_jax.job_plan import explained, is_out_of_memory
from nst_jax.job_records import recovered_words
from nst_jax.lane_memory import picture_memory
from nst_jax.lane_plans import Lane
from nst_jax.lanes import stylize_lanes
from nst_jax.loop import Progress
from nst_jax.memory import free_bytes, own_memory
from nst_jax.parallel import make_mesh
from nst_jax.position import Position
from nst_jax.problem import Problem
from nst_jax.transfer import Result

AHEAD_PIXELS = 2**25  # that are read before they are needed: 0.4 GB
KEPT_STYLES = 64  # style pictures and Gram matrices that stay in memory
WRITERS = 4


class Keeping(NamedTuple):
    """The checkpoints of a job.

    Attributes:
      save: writes one, or None.
      every: at how many steps; None by the clock.
      first: what to begin with.
    """

    save: Save | None
    every: int | None
    first: Composition


def run_job(
    job: BatchJob,
    sizes: Mapping[Item, tuple[int, int]],
    *,
    show: Callable[[float], None],
    asked: Callable[[], int | None],
    keeping: Keeping,
) -> Counter[str]:
    """Make the pictures, those of one size after another together.

    Args:
      job: what they have in common.
      sizes: the pictures and their heights and widths, those of one size after another.
      show: called with the number of pictures done, also in fractions.
      asked: gives the signal that asked to stop, or None; called between chunks of steps.
      keeping: checkpoints, if any.

    Returns:
      How many pictures ended how: "done", "diverged", "failed"; "stopped" is 1 if the job was.

    Raises:
      InputError: where the memory does not suffice, and where results cannot be written.
    """
    tally: Counter[str] = Counter()
    free: int | None = None
    process: int | None = None
    devices = jax.local_devices()
    several = len(devices) > 1
    sizes, begun = begun_first(job, sizes, keeping.first)
    known: dict[tuple[int, ...], Choice] = {}
    if begun and keeping.first.position is not None:  # or other memory would make it another run
        known = {(*next(iter(sizes.values())), 3): keeping.first.position.choice}
    make = problem_maker(
        job.weights.variables,
        config=job.config,
        blend=job.blend,
        mesh=make_mesh(devices) if several else None,
        keep=KEPT_STYLES,
        known=known,
    )
    counts = Counter(sizes.values())
    shared = job.same_styles and not follows_content(job.config)

    def fail(item: Item, error: InputError) -> None:
        leave_out(job, item, error)
        tally["failed"] += 1

    def readable(results: Iterable[tuple[Item, Future[Loaded]]]) -> Iterator[Loaded]:
        for item, future in results:
            try:
                loaded = future.result()
                if loaded.content.shape[:2] != sizes[item]:
                    words = "has another size than at the start of the batch: run again for it"
                    raise InputError(f"{item.content} {words}")
            except InputError as error:
                fail(item, error)
            else:
                yield loaded

    def with_problems(group: Iterable[Loaded]) -> Iterator[tuple[Loaded, Problem]]:
        for loaded in group:
            with explaining(loaded.content.shape):
                try:
                    problem = make(loaded.content, loaded.styles)
                except InputError as error:
                    fail(loaded.item, error)
                    continue
            yield loaded, problem

    keep = saving_times(keeping.every)

    def compute(batch: Sequence[tuple[Loaded, Problem]], *, width: int) -> Result:
        key, jobs = jax.random.key(job.seed), tuple(loaded.job for loaded, _ in batch)

        def callback(progress: Progress) -> bool:
            show(sum(tally.values()) + len(batch) * progress.step / progress.steps)
            stop = asked() is not None
            if keeping.save and progress.position:
                write = partial(save, progress.position)
                keep(write, step=progress.step, last=stop or progress.step == progress.steps)
            return not stop

        def save(position: Callable[[], Position]) -> bool:
            assert keeping.save is not None
            return keeping.save(Composition(jobs, width, position()))

        first = keeping.first
        result = stylize_lanes(
            [Lane(problem, job.config, key) for _, problem in batch],
            mesh=make_mesh(devices[:width]) if several else None,
            width=width,
            distinct=("content", "picture") if shared else ("content", "picture", "style"),
            callback=callback,
            callback_every=keeping.every,
            position=first.position if (jobs, width) == first[:2] else None,
        )
        return jax.device_get(result)  # here, where too little memory is seen to

    if keeping.save and not keeping.first.jobs:
        keeping.save(keeping.first)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(WRITERS) as writers:
        writes: deque[Future[None]] = deque()
        largest = max(height * width for height, width in counts)
        ahead = min(AT_MOST, max(2, AHEAD_PIXELS // largest))
        read = readable(read_ahead(list(sizes), partial(read_item, job), reader, ahead=ahead))
        try:
            for shape, group in groupby(read, key=lambda loaded: loaded.content.shape):
                waiting = with_problems(group)
                first = next(waiting, None)
                if first is None:
                    continue
                # Measured once: what a run has freed stays with the process, and serves the next.
                free = free_bytes(devices[0]) if free is None else free
                process = own_memory() if process is None else process
                with explaining(shape):
                    memory = picture_memory(first[1], free=free)
                most = choose_width(job, memory, shape=shape, devices=devices, free=free)
                width = even_width(most, count=counts[shape[:2]])
                if memory is not None:
                    room = {"free": free, "process": process}
                    tell(first[1], memory, width=width, devices=devices, **room)
                waiting = chain([first], waiting)
                while batch := list(islice(waiting, begun or width)):
                    # What was begun before goes on as it was, whatever has room now.
                    most, begun = keeping.first.width if begun else width, 0
                    if tally["done"] + tally["diverged"] and asked() is not None:
                        tally["stopped"] = 1  # at the last step of the batch before
                        return tally
                    try:
                        result = compute(batch, width=most)
                    except jax.errors.JaxRuntimeError as error:
                        width = half_width(width, devices=devices)
                        if not width or not is_out_of_memory(error):
                            raise explained(error, width=shape[1], height=shape[0]) from None
                        free, waiting = free and free // 2, chain(batch, waiting)
                        print(f"nst-jax: out of memory, going on by {width}", file=sys.stderr)
                        continue
                    if "stopped" in result.status:
                        tally["stopped"] = 1
                        return tally
                    for (loaded, _), often in zip(batch, result.recoveries):
                        if often:
                            words = f"{loaded.item.output.name}: {recovered_words(often)}"
                            print(f"nst-jax: {words}", file=sys.stderr)
                    records = make_records(job, [loaded for loaded, _ in batch], result)
                    for (loaded, _), image, record in zip(batch, result.image, records):
                        writes.append(writers.submit(write, job, loaded, image, record))
                    tally.update(result.status)
                    while len(writes) > 2 * width:
                        writes.popleft().result()
            return tally
        finally:
            reader.shutdown(wait=False, cancel_futures=True)
            for future in writes:
                future.result()


@contextmanager
def explaining(shape: tuple[int, ...]) -> Iterator[None]:
    """Make errors of the input of those of too little memory for a picture."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        raise explained(error, width=shape[1], height=shape[0]) from None


def begun_first(
    job: BatchJob, sizes: Mapping[Item, tuple[int, int]], first: Composition
) -> tuple[Mapping[Item, tuple[int, int]], int]:
    """The pictures to make with those that were begun before in front, and how many these are.

    Where the files of one of them are others now, all begin anew.
    """
    if not first.jobs:
        return sizes, 0
    known: dict[str, Item] = {}
    for item in sizes:
        with suppress(InputError):  # of which is told when it is read
            known[job_fingerprint(job, item)] = item
    begun = [known[name] for name in first.jobs if name in known]
    if len(begun) != len(first.jobs):
        print(
            "nst-jax: the pictures that were begun are others now, beginning anew", file=sys.stderr
        )
        return sizes, 0
    return {item: sizes[item] for item in [*begun, *sizes]}, len(begun)


def read_ahead(
    items: Sequence[Item], read: Callable[[Item], Loaded], reader: Executor, *, ahead: int
) -> Iterator[tuple[Item, Future[Loaded]]]:
    """Items with what is read of them, so many of which are read before they are asked for."""
    coming = iter(items)
    futures = deque((item, reader.submit(read, item)) for item in islice(coming, ahead))
    while futures:
        yield futures.popleft()
        futures.extend((item, reader.submit(read, item)) for item in islice(coming, 1))


def read_item(job: BatchJob, item: Item) -> Loaded:
    """Read a content and its styles.

    Raises:
      InputError: for files that cannot be read, and pictures that do not fit the settings.
    """
    picture = load_picture(item.content, size=job.size)
    styles = {place: job.style(place) for place in item.styles}
    check_pictures(picture.rgb, list(styles.values()), config=job.config)
    return Loaded(item, picture.rgb, picture.alpha, styles, job_fingerprint(job, item))
