"""Dynamic batching: what is asked together, what fails alone, what nobody waits for."""

from __future__ import annotations

import asyncio
import threading

import pytest

from guardkeel.conversation import Conversation
from guardkeel.guards.base import Judgement, Verdict
from guardkeel.moderation.batching import BatchWorker, ExpertError
from moderation_parts import Acting, Hanging, until


def item(text):
    return Judgement("", Conversation.of(text), "prompt")


def run(guard, work, **options):
    """await work(worker) with a running worker."""

    async def main():
        worker = BatchWorker(guard, **options)
        await worker.start()
        try:
            return await work(worker)
        finally:
            assert await worker.stop(5)

    return asyncio.run(main())


def test_what_gathers_while_a_batch_runs_is_the_next_batch():
    gate = threading.Event()

    def act(text):
        if text == "first":
            gate.wait(5)
        return float(len(text)) / 10

    guard = Acting(act)

    async def work(worker):
        first = asyncio.create_task(worker.ask(item("first")))
        await until(lambda: guard.batches_seen == [1])
        others = [asyncio.create_task(worker.ask(item("x" * n))) for n in range(1, 8)]
        await until(lambda: worker.waiting == 7)
        gate.set()
        return await first, [v.unsafe for v in await asyncio.gather(*others)]

    first, others = run(guard, work, most=4)
    assert first == Verdict(0.5)
    assert others == [n / 10 for n in range(1, 8)]  # each got its own
    assert guard.batches_seen == [1, 4, 3]


def test_budget_of_tokens_bounds_a_batch_but_one_item_always_goes():
    gate = threading.Event()
    guard = Acting(lambda text: gate.wait(5) and 0.0)

    async def work(worker):
        tasks = [asyncio.create_task(worker.ask(item("y" * 400)))]
        await until(lambda: guard.batches_seen == [1])
        tasks += [asyncio.create_task(worker.ask(item("y" * 400))) for _ in range(5)]
        await until(lambda: worker.waiting == 5)
        gate.set()
        await asyncio.gather(*tasks)

    run(guard, work, budget=210)  # 100 tokens each
    assert guard.batches_seen == [1, 2, 2, 1]
    guard.batches_seen.clear()
    run(guard, lambda worker: worker.ask(item("z" * 4000)), budget=10)
    assert guard.batches_seen == [1]


def test_one_bad_item_costs_the_others_nothing():
    gate = threading.Event()

    def act(text):
        if text == "wait":
            gate.wait(5)
        if text == "bad":
            raise RuntimeError("the text was: bad")
        return 0.25

    guard = Acting(act)

    async def work(worker):
        tasks = [asyncio.create_task(worker.ask(item("wait")))]
        await until(lambda: guard.batches_seen == [1])
        tasks += [asyncio.create_task(worker.ask(item(t))) for t in ("a", "bad", "b")]
        await until(lambda: worker.waiting == 3)
        gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = run(guard, work, retries=1)
    assert [f for f in found if isinstance(f, Verdict)] == [Verdict(0.25)] * 3
    assert str(found[2]) == "raised RuntimeError"
    assert guard.texts.count("bad") == 3  # once with others, twice alone


def test_retry_gets_what_a_passing_fault_withheld():
    tries = []

    def act(text):
        tries.append(text)
        if len(tries) < 3:
            raise OSError
        return 0.75

    assert run(Acting(act), lambda w: w.ask(item("a")), retries=2) == Verdict(0.75)
    tries.clear()
    with pytest.raises(ExpertError, match="raised OSError"):
        run(Acting(act), lambda w: w.ask(item("a")), retries=1)
    assert len(tries) == 2
    tries.clear()
    with pytest.raises(ExpertError):
        run(Acting(act), lambda w: w.ask(item("a")), retries=0)
    assert len(tries) == 1


@pytest.mark.parametrize("garbage", [float("nan"), None, "unsafe", [0.5], object()])
def test_garbage_is_no_verdict(garbage):
    with pytest.raises(ExpertError, match="no verdict"):
        run(Acting(lambda text: garbage), lambda w: w.ask(item("a")), retries=0)


def test_verdict_that_is_no_probability():
    verdict = Verdict(0.5)
    object.__setattr__(verdict, "unsafe", float("nan"))
    with pytest.raises(ExpertError, match="no probability"):
        run(Acting(lambda text: verdict), lambda w: w.ask(item("a")), retries=0)


def test_guard_that_answers_fewer_items_than_asked():
    class Short(Acting):
        def batches(self, items, **options):
            for batch in super().batches(items):
                yield type(batch)(0, batch.indices[:-1], batch.verdicts[:-1])

    with pytest.raises(ExpertError, match="gave no verdict"):
        run(Short(lambda text: 0.5), lambda w: w.ask(item("a")), retries=0)


def test_questions_that_nobody_waits_for_are_skipped():
    hanging = Hanging()
    guard = Acting(hanging)

    async def work(worker):
        first = asyncio.create_task(worker.ask(item("first")))
        await until(lambda: guard.texts == ["first"] or guard.batches_seen == [1])
        late = asyncio.create_task(worker.ask(item("late")))
        await until(lambda: worker.waiting == 1)
        late.cancel()
        await asyncio.sleep(0)
        hanging.release()
        await first
        return await worker.ask(item("last"))

    assert run(guard, work) == Verdict(0.0)
    assert guard.texts == ["first", "last"]


def test_lone_client_waits_for_nobody():
    async def work(worker):
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for _ in range(3):
            await worker.ask(item("a"))
        return loop.time() - begun

    assert run(Acting(lambda text: 0.0), work, wait=5.0) < 5.0


def test_stopping_answers_what_waits():
    async def main():
        worker = BatchWorker(Acting(lambda text: 0.5))
        asked = [asyncio.ensure_future(worker.ask(item("a"))) for _ in range(5)]
        await asyncio.sleep(0)
        await worker.start()
        assert await worker.stop(5)
        return await asyncio.wait_for(asyncio.gather(*asked), 5)

    assert asyncio.run(main()) == [Verdict(0.5)] * 5
