"""Datasets and DataLoader: which rows come, in which order, and what happens when one cannot be read."""

import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest

import cyxcore as cx
from cyxcore import drawing
from cyxcore import transforms as T
from cyxcore.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    ShuffleBuffer,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    class_weights,
    packed_collate,
    pad_collate,
    random_split,
    stratified_split,
)
from cyxcore.data.split import split
from cyxcore.errors import DataError, ShapeError, SpecError


class Squares(Dataset):
    """Row i is (i, i * i); rows in `bad` cannot be read."""

    def __init__(self, count: int, bad: tuple[int, ...] = ()) -> None:
        self.count, self.bad = count, bad

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> tuple[int, int]:
        if row in self.bad:
            raise ValueError("it is torn")
        return row, row * row


class Stream(IterableDataset):
    def __init__(self, count: int, bad: int = -1) -> None:
        self.count, self.bad, self.read = count, bad, 0

    def __iter__(self) -> Any:
        for row in range(self.count):
            if row == self.bad:
                raise ValueError("it is torn")
            self.read += 1
            yield row


def rows_of(loader: DataLoader) -> list[list[int]]:
    return [batch[0].tolist() for batch in loader]


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cyx-loader")]


# datasets -----------------------------------------------------------------------------------------


def test_a_tensor_dataset_gives_the_rows_of_each_tensor() -> None:
    data = TensorDataset(cx.arange(6).reshape(3, 2), np.array([5, 6, 7]))
    assert [part.tolist() for part in data[-1]] == [[4, 5], 7]
    assert [part.tolist() for part in data.take_rows(np.array([2, 0]))] == [[[4, 5], [0, 1]], [7, 5]]
    with pytest.raises(IndexError, match="expected a row below 3, got 3"):
        data[3]


@pytest.mark.parametrize("rows", [slice(1, None), [1, 2], np.array([1, 2]), cx.asarray([False, True, True])])
def test_a_tensor_dataset_gives_several_rows_at_once(rows: Any) -> None:
    data = TensorDataset(cx.arange(6).reshape(3, 2), np.array([5, 6, 7]))
    assert [part.tolist() for part in data[rows]] == [[[2, 3], [4, 5]], [6, 7]]
    assert [part.tolist() for part in data[cx.asarray(1)]] == [[2, 3], 6]


def test_tensors_of_different_lengths_are_no_dataset() -> None:
    with pytest.raises(ShapeError, match=r"same number of rows, got shapes \(3,\), \(4,\)"):
        TensorDataset(cx.arange(3), cx.arange(4))


def test_datasets_are_joined_and_cut() -> None:
    joined = Squares(3) + Squares(2)
    assert isinstance(joined, ConcatDataset) and len(joined) == 5
    assert [joined[row][0] for row in range(-5, 5)] == [0, 1, 2, 0, 1] * 2
    assert [Subset(joined, [4, 0])[row] for row in (0, 1)] == [(1, 1), (0, 0)]
    with pytest.raises(ShapeError, match="expected rows below 5, got 9"):
        Subset(joined, [1, 9])


def test_a_random_split_has_every_row_once_and_is_the_same_for_the_same_seed() -> None:
    parts = random_split(Squares(11), [0.5, 0.25, 0.25], seed=3)
    assert [len(part) for part in parts] == [6, 3, 2]
    assert sorted(row for part in parts for row in part.indices.tolist()) == list(range(11))
    again = random_split(Squares(11), [6, 3, 2], seed=3)
    assert all((a.indices == b.indices).all() for a, b in zip(parts, again, strict=True))
    assert (random_split(Squares(11), [6, 5], seed=4)[0].indices != random_split(Squares(11), [6, 5])[0].indices).any()
    with pytest.raises(SpecError, match="add up to 11, or shares of 1, got 5, 5"):
        random_split(Squares(11), [5, 5])


def test_a_stratified_split_is_the_one_that_jobs_make() -> None:
    labels = np.array([0] * 40 + [1] * 10)
    train, held = stratified_split(Squares(50), labels, 0.2, seed=5)
    expected = split("", 50, labels, 0.2, 5)
    assert (train.indices == expected[0]).all() and (held.indices == expected[1]).all()
    assert Counter(labels[held.indices].tolist()) == {0: 8, 1: 2}


def test_a_stratified_split_takes_the_names_of_classes() -> None:
    labels = np.array([0] * 40 + [1] * 10)
    for names in (np.array(["cat", "dog"])[labels], ["cat"] * 40 + ["dog"] * 10):
        train, held = stratified_split(Squares(50), names, 0.2, seed=5)
        expected = stratified_split(Squares(50), labels, 0.2, seed=5)
        assert (train.indices == expected[0].indices).all() and (held.indices == expected[1].indices).all()
    with pytest.raises(ShapeError, match="a class index >= 0, or a name, for each of 50 rows, got object"):
        stratified_split(Squares(50), np.array(["cat", None] * 25, dtype=object), 0.2)


# order --------------------------------------------------------------------------------------------


def test_a_shuffled_epoch_is_in_the_order_of_a_training_run() -> None:
    loader = DataLoader(Squares(20), batch_size=6, shuffle=True, seed=9)
    for epoch in (1, 2):
        assert sum(rows_of(loader), []) == drawing.permutation(9, epoch, 20).tolist()


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_delivers_the_same_batches(workers: int) -> None:
    data = TensorDataset(np.arange(101), np.arange(101.0))
    alone = DataLoader(data, batch_size=8, shuffle=True, seed=1)
    helped = DataLoader(data, batch_size=8, shuffle=True, seed=1, num_workers=workers)
    assert [rows_of(alone) for _ in range(2)] == [rows_of(helped) for _ in range(2)]
    assert loader_threads() == []


@pytest.mark.parametrize("drop_last, sizes", [(False, [4, 4, 2]), (True, [4, 4])])
def test_the_last_batch_is_smaller_or_left_out(drop_last: bool, sizes: list[int]) -> None:
    loader = DataLoader(Squares(10), batch_size=4, drop_last=drop_last)
    assert [len(batch) for batch in rows_of(loader)] == sizes and len(loader) == len(sizes)


def test_the_seed_comes_from_manual_seed_or_a_generator_unless_it_is_given() -> None:
    def order(**options: Any) -> list[int]:
        return sum(rows_of(DataLoader(Squares(50), batch_size=50, shuffle=True, **options)), [])

    cx.manual_seed(4)
    first = order()
    cx.manual_seed(4)
    assert order() == first != order()
    assert order(generator=cx.random.Generator(2)) == order(generator=cx.random.Generator(2))


def test_rows_are_drawn_in_proportion_to_their_weights() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    sampler = WeightedRandomSampler(class_weights(labels), 4000, seed=2)
    counts = Counter(labels[sampler.rows(1)].tolist())
    assert abs(counts[1] - 2000) < 5 * 32  # five standard deviations of a binomial of 4000 and a half
    assert (sampler.rows(1) == sampler.rows(1)).all() and (sampler.rows(1) != sampler.rows(2)).any()


def test_without_replacement_every_row_comes_once_and_a_weight_of_0_never() -> None:
    sampler = WeightedRandomSampler([1.0, 0.0, 100.0, 1.0], 3, replacement=False)
    assert sorted(sampler.rows(1).tolist()) == [0, 2, 3]
    first = Counter(int(WeightedRandomSampler([1.0, 9.0], 2, False, seed).rows(1)[0]) for seed in range(1000))
    assert abs(first[1] - 900) < 48
    with pytest.raises(SpecError, match=r"1 to 3 \(the rows whose weight is not 0\), got 4"):
        WeightedRandomSampler([1.0, 0.0, 100.0, 1.0], 4, replacement=False)


def test_weights_that_add_up_to_infinity_are_refused() -> None:
    with pytest.raises(SpecError, match="one that is negative or not finite"):
        WeightedRandomSampler([1e308] * 4, 4)


def test_a_sampler_chooses_the_rows() -> None:
    ours = DataLoader(Squares(10), batch_size=3, sampler=SubsetRandomSampler([7, 8, 9], seed=1))
    assert sorted(rows_of(ours)[0]) == [7, 8, 9]
    assert rows_of(DataLoader(Squares(10), batch_size=2, sampler=[3, 1, 2])) == [[3, 1], [2]]


# resuming -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [0, 1, 4, 7, 8])
def test_a_loader_goes_on_in_mid_epoch(done: int, workers: int) -> None:
    whole = DataLoader(Squares(20), batch_size=5, shuffle=True, seed=3)
    expected = rows_of(whole) + rows_of(whole) + rows_of(whole)
    first = DataLoader(Squares(20), batch_size=5, shuffle=True, seed=3, num_workers=workers)
    seen: list[list[int]] = []
    while len(seen) < done:
        for batch in first:
            seen.append(batch[0].tolist())
            if len(seen) == done:
                break
    state = first.state_dict()
    rest = DataLoader(Squares(20), batch_size=5, shuffle=True, seed=99, num_workers=workers)
    rest.load_state_dict(state)
    while rest.epoch <= 3:
        seen += rows_of(rest)
    assert seen == expected


def test_a_pass_that_was_left_is_not_gone_on_with() -> None:
    loader = DataLoader(Squares(6), batch_size=2, shuffle=True, seed=1)
    next(iter(loader))
    assert sum(rows_of(loader), []) == drawing.permutation(1, 2, 6).tolist()


def test_two_loops_at_once_have_their_own_places_and_the_state_is_the_newer_one() -> None:
    loader = DataLoader(Squares(6), batch_size=2)
    older, newer = iter(loader), iter(loader)
    assert [next(older)[0].tolist(), next(newer)[0].tolist(), next(older)[0].tolist()] == [[0, 1], [0, 1], [2, 3]]
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (1, 1)
    assert len(list(older)) == 1 and len(list(newer)) == 2
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (2, 0)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"batch_size": 4}, "batch_size was 4 in the state, is 2 here"),
        ({"rows": 7}, "rows was 7 in the state, is 6 here"),
        ({"batch": 3}, "batch 3 of epoch 1 is not in an epoch of 3 batches"),
        ({"epoch": 0}, "batch 0 of epoch 0"),
    ],
)
def test_a_state_of_another_loader_is_refused(change: dict[str, Any], said: str) -> None:
    loader = DataLoader(Squares(6), batch_size=2, shuffle=True, seed=1)
    with pytest.raises(SpecError, match=said):
        loader.load_state_dict({**loader.state_dict(), **change})
    with pytest.raises(SpecError, match=r"without \['batch_size', 'drop_last', 'rows', 'seed', 'shuffle'\]"):
        loader.load_state_dict({"epoch": 1, "batch": 0})
    with pytest.raises(SpecError, match="expected a state_dict.. of a DataLoader, got NoneType"):
        loader.load_state_dict(None)  # type: ignore[arg-type]


# workers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_reaches_the_caller_with_its_row_after_the_batches_before(workers: int) -> None:
    loader = DataLoader(Squares(12, bad=(7,)), batch_size=3, num_workers=workers)
    seen = []
    with pytest.raises(DataError, match=r"row 7 \(batch 3 of epoch 1\): ValueError: it is torn") as caught:
        for batch in loader:
            seen.append(batch[0].tolist())
    assert seen == [[0, 1, 2], [3, 4, 5]] and isinstance(caught.value.__cause__, ValueError)
    del caught
    assert loader_threads() == []


def test_an_error_in_a_batch_read_at_once_names_the_row_too() -> None:
    class Wholesale(Squares):
        def take_rows(self, rows: Any) -> Any:
            return cx.tensor([self[row] for row in rows])

    with pytest.raises(DataError, match="row 7 "):
        list(DataLoader(Wholesale(12, bad=(7,)), batch_size=12))


def test_no_thread_is_left_when_the_loop_is_left() -> None:
    for batch in DataLoader(Squares(1000), batch_size=2, num_workers=3, prefetch_factor=4):
        assert batch[0].tolist() == [0, 1] and loader_threads()
        break
    assert loader_threads() == []


def test_workers_are_ahead_by_the_prefetch_factor_and_no_further() -> None:
    asked: list[int] = []

    class Counting(Squares):
        def __getitem__(self, row: int) -> Any:
            asked.append(row)
            return super().__getitem__(row)

    batches = iter(DataLoader(Counting(100), batch_size=1, num_workers=2, prefetch_factor=3))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert max(asked) <= 6


def test_batches_train_a_compiled_step_to_the_bits_of_the_plain_one() -> None:
    def trained(wrap: Any, workers: int) -> list[Any]:
        cx.manual_seed(0)
        model = cx.nn.Linear(3, 2)
        optimizer = cx.optim.SGD(model.parameters(), lr=0.1)

        def step(x: Any, y: Any) -> Any:
            loss = cx.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        data = TensorDataset(cx.random.Generator(1).normal(size=(50, 3)), np.arange(50) % 2)
        run = wrap(step)
        loader = DataLoader(data, batch_size=16, shuffle=True, seed=2, num_workers=workers)
        return [run(x, y).item() for _ in range(2) for x, y in loader]

    assert trained(cx.compile, 2) == trained(lambda step: step, 0)


@pytest.mark.parametrize("workers", [0, 3])
def test_images_are_augmented_by_seed_and_step_and_go_on_alike(workers: int) -> None:
    images = np.random.default_rng(1).integers(0, 256, (20, 3, 8, 8)).astype(np.uint8)
    data = TensorDataset(images, np.arange(20))
    augment = T.Compose([T.RandomCrop(8, padding=2), T.RandomHorizontalFlip()])

    def loader() -> DataLoader:
        options: dict[str, Any] = {"batch_size": 8, "shuffle": True, "seed": 4, "num_workers": workers}
        return DataLoader(data, augment=augment, **options)

    def told(batches: Any) -> list[list[Any]]:
        return [[x.tolist(), y.tolist()] for x, y in batches]

    whole = told(loader())
    first = loader()
    assert told(first) == whole
    rest = loader()
    rest.load_state_dict({**rest.state_dict(), "batch": 2})
    assert told(rest) == whole[2:]
    rows = whole[1][1]
    assert whole[1][0] == augment(images[rows], key=(4, drawing.AUGMENT_STEP + 2)).tolist()
    assert told(first) != whole  # the next epoch


# iterable datasets --------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iterable_dataset_is_read_in_its_order_and_gone_on_with(workers: int) -> None:
    loader = DataLoader(Stream(10), batch_size=4, num_workers=workers)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert loader.epoch == 2 and loader_threads() == []
    next(iter(loader))
    rest = DataLoader(Stream(10), batch_size=4)
    rest.load_state_dict(loader.state_dict())
    assert [batch.tolist() for batch in rest] == [[4, 5, 6, 7], [8, 9]] and rest.epoch == 3


def test_an_iterable_dataset_is_read_as_far_as_it_is_asked_for() -> None:
    stream = Stream(1_000_000)
    next(iter(DataLoader(stream, batch_size=4)))
    assert stream.read == 4
    with pytest.raises(DataError, match=r"row 6 \(batch 2 of epoch 1\): ValueError: it is torn"):
        list(DataLoader(Stream(10, bad=6), batch_size=4, num_workers=1))


def test_a_generator_is_read_once_and_not_silently_empty_after_that() -> None:
    loader = DataLoader((row for row in range(5)), batch_size=2)
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4]]
    with pytest.raises(SpecError, match=r"another pass \(epoch 2\), got a generator, which is over after one"):
        list(loader)


def test_a_shuffle_buffer_mixes_neighbours_the_same_way_for_the_same_epoch() -> None:
    def passes() -> list[list[int]]:
        loader = DataLoader(ShuffleBuffer(Stream(100), buffer_size=10, seed=1), batch_size=100)
        return [next(iter(loader)).tolist(), next(iter(loader)).tolist()]

    first, second = passes()
    assert sorted(first) == list(range(100)) and first != second and passes() == [first, second]
    assert all(row <= place + 10 for place, row in enumerate(first))


# collate and options ------------------------------------------------------------------------------


def test_samples_of_any_build_become_batches() -> None:
    samples = [{"x": (np.ones(2), i / 2), "n": "ab"[i], "y": [i, True]} for i in range(2)]
    (batch,) = DataLoader(samples, batch_size=2)
    assert batch["x"][0].shape == (2, 2) and batch["x"][1].dtype == "float32" and batch["n"] == ["a", "b"]
    assert batch["y"][0].dtype == "int64" and batch["y"][1].tolist() == [True, True]


def test_sequences_are_padded_or_packed() -> None:
    samples = [(np.array([1, 2, 3]), 0), (np.array([4]), 1)]
    ((tokens, labels),) = DataLoader(samples, batch_size=2, collate_fn=lambda rows: pad_collate(rows, -1))
    assert tokens.tolist() == [[1, 2, 3], [4, -1, -1]] and labels.tolist() == [0, 1]
    packed = packed_collate([tokens for tokens, _ in samples])
    assert packed["values"].tolist() == [1, 2, 3, 4] and packed["offsets"].tolist() == [0, 3, 4]
    with pytest.raises(SpecError, match="expected a sequence a sample, got a tuple; pack one part of the samples"):
        packed_collate(samples)


def test_samples_that_do_not_fit_are_told_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r"rows 0, 1 \(batch 1 of epoch 1\): collate: .*\(3,\) first and \(4,\) in pl"):
        list(DataLoader([np.zeros(3), np.zeros(4)], batch_size=2))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"batch_size": 0}, "expected batch_size >= 1, got 0"),
        ({"num_workers": -1}, "expected num_workers >= 0, got -1"),
        ({"seed": -1}, r"expected an integer seed 0 <= seed < 2\*\*64, got -1"),
        ({"seed": 1, "generator": cx.random.Generator(1)}, "at most one of seed and generator"),
        ({"shuffle": True, "sampler": [1]}, "does not go with a sampler"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        DataLoader(Squares(5), **options)


class TooFew(list[int]):
    """Says that it has a row more than it gives."""

    def __len__(self) -> int:
        return super().__len__() + 1


@pytest.mark.parametrize(
    "sampler, said",
    [([0.5, 1.7], "a sampler of row numbers, got 0.5"), (TooFew([1, 2]), "expected 3 rows of the sampler, .* got 2")],
)
def test_a_sampler_of_something_else_is_refused(sampler: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        list(DataLoader(Squares(5), batch_size=2, sampler=sampler))


def test_a_loader_without_a_batch_is_refused() -> None:
    with pytest.raises(DataError, match="at least one batch of 8, drop_last leaves none of 5"):
        DataLoader(Squares(5), batch_size=8, drop_last=True)
    with pytest.raises(DataError, match="there are none of 0"):
        DataLoader(Squares(0))
    with pytest.raises(SpecError, match="has its own order"):
        DataLoader(Stream(5), shuffle=True)


def test_a_trainer_goes_on_with_a_loader_from_its_checkpoint(tmp_path: Any) -> None:
    images = np.random.default_rng(1).integers(0, 256, (40, 1, 6, 6)).astype(np.uint8)
    data = TensorDataset(images.astype(np.float32) / 255, np.arange(40) % 2)

    def run(stop_at: int | None = None, resume: Any = None) -> list[bytes]:
        cx.manual_seed(0)
        model = cx.nn.Sequential(cx.nn.Flatten(), cx.nn.Linear(36, 2))
        trainer = cx.Trainer(model, "cross_entropy", cx.optim.Adam(model.parameters(), lr=0.01))
        loader = DataLoader(data, 8, shuffle=True, seed=3, augment=T.RandomCrop(6, padding=1), num_workers=2)
        callback = Stop(stop_at, tmp_path / "c.safetensors")
        trainer.fit(loader, epochs=3, resume=resume, callbacks=[callback], progress=False)
        return [np.asarray(value).tobytes() for value in model.state_dict().values()]

    class Stop(cx.callbacks.Callback):
        def __init__(self, stop_at: int | None, path: Any) -> None:
            self.stop_at, self.path = stop_at, path

        def on_batch_end(self, trainer: Any, *given: Any) -> None:
            if trainer.step == self.stop_at:
                trainer.checkpoint(self.path)
                trainer.stop("as asked")

    whole = run()
    assert run(stop_at=7) != whole
    assert run(resume=tmp_path / "c.safetensors") == whole


def test_a_trainer_says_what_to_do_with_mixed_targets() -> None:
    data = TensorDataset(np.zeros((8, 1, 2, 2), np.float32), np.arange(8) % 2)
    loader = DataLoader(data, 4, seed=1, augment=T.Mixup())
    model = cx.nn.Sequential(cx.nn.Flatten(), cx.nn.Linear(4, 2))
    optimizer = cx.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(DataError, match=r"got two that Mixup or CutMix gave it; hand the trainer batches \(x, y.soft"):
        cx.Trainer(model, "cross_entropy", optimizer).fit(loader, epochs=1, progress=False)

    def loss(output: Any, probabilities: Any) -> Any:
        return -(cx.functional.log_softmax(output, 1) * probabilities).sum(1).mean()

    soft = [(x, mixed.soft(2)) for x, mixed in loader]
    history = cx.Trainer(model, loss, optimizer).fit(soft, epochs=2, progress=False)
    assert len(history) == 2


class Backwards(cx.data.Sampler):
    """As PyTorch's programs write one."""

    def __init__(self, data_source: Any) -> None:
        super().__init__(data_source)
        self.count = len(data_source)

    def __iter__(self) -> Any:
        return iter(range(self.count - 1, -1, -1))

    def __len__(self) -> int:
        return self.count


def test_a_sampler_may_be_an_iterator() -> None:
    loader = DataLoader(TensorDataset(np.arange(5)), batch_size=2, sampler=Backwards(range(5)))
    assert [batch[0].tolist() for batch in loader] == [[4, 3], [2, 1], [0]]


def test_a_batch_sampler_says_which_rows_are_in_each_batch() -> None:
    data = TensorDataset(np.arange(7))
    sampler = cx.data.BatchSampler(Backwards(data), batch_size=3, drop_last=False)
    assert list(sampler) == [[6, 5, 4], [3, 2, 1], [0]] and len(sampler) == 3
    for workers in (0, 2):
        loader = DataLoader(data, batch_sampler=sampler, num_workers=workers, worker_init_fn=None, timeout=0)
        assert len(loader) == 3 and [batch[0].tolist() for batch in loader] == [[6, 5, 4], [3, 2, 1], [0]]
    assert list(cx.data.BatchSampler(range(7), 3, drop_last=True)) == [[0, 1, 2], [3, 4, 5]]
    mixed = DataLoader(data, batch_sampler=cx.data.BatchSampler(cx.data.RandomSampler(data, 1), 3, False))
    plain = DataLoader(data, batch_size=3, sampler=cx.data.RandomSampler(data, 1))
    for _ in range(2):  # and another order in the second epoch
        assert [b[0].tolist() for b in mixed] == [b[0].tolist() for b in plain]
    later = DataLoader(data, batch_sampler=sampler)
    batches = iter(later)
    next(batches)
    state = later.state_dict()
    again = DataLoader(data, batch_sampler=sampler)
    again.load_state_dict(state)
    assert [batch[0].tolist() for batch in again] == [[3, 2, 1], [0]]


def test_a_batch_sampler_stands_alone() -> None:
    with pytest.raises(SpecError, match="batch_sampler says already"):
        DataLoader(TensorDataset(np.arange(4)), batch_size=2, batch_sampler=[[0, 1]])
    with pytest.raises(SpecError, match="lists of row numbers, got 3"):
        list(DataLoader(TensorDataset(np.arange(4)), batch_sampler=[3]))
    with pytest.raises(SpecError, match="expected batch_size >= 1"):
        cx.data.BatchSampler(range(3), 0, False)


@pytest.mark.parametrize(
    "made",
    [
        lambda g: cx.data.RandomSampler(range(9), generator=g),
        lambda g: cx.data.SubsetRandomSampler(range(9), generator=g),
        lambda g: cx.data.WeightedRandomSampler([1.0] * 9, 9, generator=g),
    ],
)
def test_a_generator_draws_the_seed_of_a_sampler(made: Any) -> None:
    one, again, other = (list(made(cx.Generator().manual_seed(seed))) for seed in (1, 1, 2))
    assert one == again != other
    with pytest.raises(SpecError, match="expected a cx.Generator, got int"):
        made(3)
