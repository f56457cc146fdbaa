"""Tiny guards that have learned by heart what to write about a few conversations, in any family's form.

A random model hardly ever keeps to a form of several words. What is trained here changes no keys and values, so that
the long prompts are run once.
"""

from __future__ import annotations

import copy

from guardkeel.conversation import Conversation
from guardkeel.guards.base import Judgement
from guardkeel.guards.causal import CausalGuard
from guardkeel.guards.encoding import Encoder
from guardkeel.guards.prefix import left_padded

WORDS = ("poem", "ships", "bank", "sea", "password", "squared")


def judgement(number, side):
    """One of a few conversations of a few words; prompts have no answer."""
    text = " ".join([WORDS[number]] * 8)
    return Judgement(f"{number}#{side}", Conversation.of(text, None if side == "prompt" else text), side)


def taught(loaded, family, lessons, *, steps=100, rate=1e-2):
    """A guard that writes these texts: `lessons` maps (number of a conversation, side) to text.

    It is a copy of a loaded tiny model, of which the last layer and the head are trained on the texts.
    """
    import torch

    model, tokenizer = copy.deepcopy(loaded[0]), loaded[1]
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())  # the embedding stays as it is
    encoder = Encoder(family, tokenizer)
    encoded = [encoder.encode(judgement(*key)) for key in lessons]
    read, mask = left_padded([e.ids[: len(e.ids) - e.opened] for e in encoded], tokenizer.pad_token_id, "cpu")
    end = tokenizer.eos_token_id
    texts = [[*tokenizer(text, add_special_tokens=False)["input_ids"], end] for text in lessons.values()]
    width = max(map(len, texts))
    said = torch.tensor([text + [-100] * (width - len(text)) for text in texts])
    ids = torch.cat([read, said[:, :-1].clamp(min=0)], dim=1)
    seen = torch.cat([mask, torch.ones_like(said[:, :-1])], dim=1)
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    fixed = read.shape[1] - 1  # what is before the last token read
    with torch.no_grad():
        past = model(
            input_ids=ids[:, :fixed],
            attention_mask=seen[:, :fixed],
            position_ids=positions[:, :fixed],
            use_cache=True,
        ).past_key_values
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.requires_grad_(False)
        layer = model.model.layers[-1]
        for part in (
            layer.self_attn.q_proj,
            layer.self_attn.o_proj,
            layer.mlp,
            model.model.norm,
            model.lm_head,
        ):
            part.requires_grad_(True)
        optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
        for _ in range(steps):
            logits = model(
                input_ids=ids[:, fixed:],
                attention_mask=seen,
                position_ids=positions[:, fixed:],
                past_key_values=copy.deepcopy(past),
            ).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), said.flatten(), ignore_index=-100)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    model.requires_grad_(False)
    return CausalGuard(model, tokenizer, family, name="taught")
