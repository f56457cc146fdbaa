"""Keep a guard's safety in your own Hugging Face Trainer: any method of guardkeel as a callback.

    python examples/keep_any_trainer.py                         a toy guard, offline, in seconds
    python examples/keep_any_trainer.py GUARD SUITE TEXTS OUT   your own

GUARD is a causal guard's folder or reference, SUITE labelled guard conversations (a name, JSONL file or card, of
which the `fit` split is used), TEXTS a JSONL file whose messages the model learns to write, OUT where the adapter
goes. The Trainer, its data and its loss are ordinary; `keeper` is all that guardkeel adds.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from guardkeel import Keeper, guard_probes, load_guard, load_suite
from guardkeel.conversation import read_jsonl
from guardkeel.tuning.data import suite_data
from guardkeel.tuning.gather import balanced
from guardkeel.tuning.regularisers.registry import build


def train(name: str, suite: str, texts: str, out: Path, *, method: str = "fwssr", steps: int = 10) -> None:
    """Teach a guard to write some texts, held by a method."""
    guard = load_guard(name, dtype="float32")
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = guard.model = get_peft_model(guard.model, lora)

    rows = balanced(suite_data(load_suite(suite)).targets, 64)
    keeper = Keeper(build(method), guard_probes(guard, rows, max_tokens=1024))

    tokens = [
        guard.tokenizer(e.conversation.text, truncation=True, max_length=128) for e in read_jsonl(texts)
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder, max_steps=steps, learning_rate=1e-3, report_to="none", save_strategy="no"
            ),
            train_dataset=[{"input_ids": t["input_ids"]} for t in tokens],
            data_collator=DataCollatorForLanguageModeling(guard.tokenizer, mlm=False),
            callbacks=[keeper],
        )
        trainer.train()
    print({key: round(value, 4) for key, value in keeper.regulariser.log().items()})
    model.save_pretrained(out)


def main(arguments: Sequence[str]) -> None:
    """Train what the arguments name, or the toy guard."""
    if len(arguments) == 4:
        name, suite, texts, out = arguments
        train(name, suite, texts, Path(out))
        return
    if arguments:
        sys.exit(__doc__)
    sys.path.insert(0, str(Path(__file__).parent))
    from toy import make

    with tempfile.TemporaryDirectory() as folder:
        toy = make(folder)
        train(str(toy / "guard"), str(toy / "mine.jsonl"), str(toy / "mine.jsonl"), toy / "kept")


if __name__ == "__main__":
    main(sys.argv[1:])
