"""Whether models can be fused at all, told from headers, configurations and tokenizers before any weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from guardkeel.errors import ConfigError, ModelError
from guardkeel.fusion.methods.base import Method
from guardkeel.fusion.sources import HEAD, Source, Sources
from guardkeel.fusion.tensorfile import Spec
from guardkeel.fusion.tokens import check_same, tokenizer_file

_MATTERS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "hidden_act", "hidden_activation", "rms_norm_eps", "layer_norm_eps", "sliding_window",
    "layer_types", "attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling",
    "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "num_experts_per_tok",
    "num_local_experts", "relative_attention", "position_buckets", "pos_att_type", "share_att_key", "norm_rel_ebd",
    "type_vocab_size", "problem_type",
)  # fmt: skip
"""Settings under which the same weights say something else; compared where both configurations have them."""
_FROM_IT = "fine-tune from the reference, or take the reference that this model was made from"


def preflight(sources: Sources, method: Method | None = None) -> tuple[str, ...]:
    """Refuse models that cannot be fused, by name and with the remedy.

    Args:
        sources: what is read.
        method: also check that it takes so many candidates, and what else it needs.

    Returns:
        What is worth knowing and no reason to stop: mixed dtypes, tied embeddings, tokenizers that are not there.

    Raises:
        ModelError: architecture, tensors, shapes, dtypes, vocabulary or base do not go together.
        ConfigError: the method wants other inputs.
    """
    if method:
        _check_inputs(sources, method)
    reference, notes = sources.reference, []
    for source in sources.models:
        _check_fusible(source)
    for other in sources.models[1:]:
        _check_config(reference, other)
        notes += _check_tensors(reference, other)
        notes += _check_tokenizer(reference, other)
    for candidate in sources.candidates:
        _check_base(reference, candidate)
    for extra, files in sources.extras.items():
        odd = [n for n in files.specs if n not in reference.specs]
        if odd:
            raise ModelError(
                f"{files.files[0]}: {extra} of {odd[0]!r}, which the reference {reference.folder} does not have",
                remedy="measure it on this reference",
            )
    notes += [_dtypes(source) for source in sources.models if len(set(source.stored.values())) > 1]
    kinds = {
        source.reference: Counter(source.stored.values()).most_common(1)[0][0] for source in sources.models
    }
    if len(set(kinds.values())) > 1:
        notes.append("mixed dtypes: " + ", ".join(f"{name} is {kind}" for name, kind in kinds.items()))
    if reference.tied:
        notes.append(f"{reference.tied} is the output head too (tied): it is stored once")
    return tuple(dict.fromkeys(notes))


def _check_inputs(sources: Sources, method: Method) -> None:
    given, most = len(sources.candidates), method.most
    if given < method.least or (most is not None and given > most):
        takes = _count(method.least, "candidate")
        if most != method.least:
            takes = f"{method.least} to {most} candidates" if most else f"{takes} or more"
        raise ConfigError(
            f"{method.name} takes {takes}, {given} are given",
            remedy="see guardkeel fuse --list-methods for methods that take so many",
        )
    if method.needs_unaligned and sources.unaligned is None:
        raise ConfigError(
            f"{method.name} needs the model that the reference was made from",
            remedy="name it with the option `unaligned`, or choose a method that needs no such model",
        )
    for extra in method.extras:
        if extra not in sources.extras:
            raise ConfigError(
                f"{method.name} needs {extra} for the tensors", remedy=f"give its file with extras.{extra}"
            )


def _check_fusible(source: Source) -> None:
    if source.config.get("quantization_config"):
        raise ModelError(
            f"{source.checkpoint / 'config.json'}: quantised weights cannot be fused",
            remedy="give the checkpoint before quantisation, or one saved dequantised",
        )
    odd = [
        (name, spec.dtype)
        for name, spec in source.specs.items()
        if spec.dtype[0] in "FC" and not spec.floating
    ]
    if odd:
        name, dtype = odd[0]
        raise ModelError(
            f"{source.folder}: tensor {name!r} is stored as {dtype}, which is not fused",
            remedy="save the model in float32, bfloat16 or float16",
        )


def _check_config(reference: Source, other: Source) -> None:
    ours, theirs = _flat(reference.config), _flat(other.config)
    for key in ("model_type", "architectures"):
        if ours.get(key) != theirs.get(key):
            raise _config_error(reference, other, key, ours.get(key), theirs.get(key))
    for key in _MATTERS:
        if key in ours and key in theirs and ours[key] != theirs[key]:
            raise _config_error(reference, other, key, ours[key], theirs[key])
    for key, a, b in zip(("rope theta", "rope scaling"), _rope(ours), _rope(theirs), strict=True):
        if a != b and a is not None and b is not None:
            raise _config_error(reference, other, key, a, b)
    labels = [{int(k): v for k, v in (c.get("id2label") or {}).items()} for c in (ours, theirs)]
    if all(labels) and labels[0] != labels[1]:
        raise _config_error(reference, other, "id2label", *labels)


def _config_error(reference: Source, other: Source, key: str, ours: Any, theirs: Any) -> ModelError:
    remedy = _FROM_IT
    if key == "vocab_size":
        remedy = "if no token was added resize_token_embeddings to the reference's; else fine-tune without new tokens"
    return ModelError(
        f"{other.checkpoint / 'config.json'}: {key} is {theirs!r}, the reference's is {ours!r} "
        f"({reference.checkpoint})",
        remedy=remedy,
    )


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's settings, which an image-and-text model keeps one level down."""
    inner = config.get("text_config")
    return {**(inner if isinstance(inner, dict) else {}), **config}


def _rope(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Base and scaling of rotary positions, as transformers 4 and 5 write them; None where they are not said alike."""
    new = config.get("rope_parameters")
    said = dict(new if isinstance(new, dict) else config.get("rope_scaling") or {})
    if any(isinstance(value, dict) for value in said.values()):  # one for each kind of layer
        return None, None
    theta = said.pop("rope_theta", config.get("rope_theta"))
    kinds = [said.pop(key, None) for key in ("rope_type", "type")]
    kind = next((k for k in kinds if k), "default")
    return theta, (kind, {} if kind == "default" else said)


def _check_tensors(reference: Source, other: Source) -> list[str]:
    notes = []
    missing = [n for n in reference.specs if n not in other.specs]
    extra = [n for n in other.specs if n not in reference.specs]
    if HEAD in missing + extra:
        _check_head(*((other, reference) if HEAD in missing else (reference, other)))
        side = other if HEAD in extra else reference
        notes.append(f"{side.reference} stores {HEAD} and the others tie it to the embedding: it is the same")
        (missing if HEAD in missing else extra).remove(HEAD)
    for names, what in ((missing, "lacks"), (extra, "has")):
        if names:
            rest = "" if what == "lacks" else ", and the reference does not"
            raise ModelError(
                f"{other.folder}: it {what} {_count(len(names), 'tensor')}: {', '.join(map(repr, names[:3]))}{rest}",
                remedy=_FROM_IT,
            )
    for name, spec in reference.specs.items():
        theirs = other.specs.get(name, spec)
        if spec.shape != theirs.shape:
            raise _shape_error(reference, other, name, spec, theirs)
        if spec.floating != theirs.floating:
            raise ModelError(
                f"{other.folder}: tensor {name!r} is stored as {theirs.dtype}, the reference's as {spec.dtype}",
                remedy="save both in float32, bfloat16 or float16",
            )
    return notes


def _check_head(tied: Source, own: Source) -> None:
    """A head of one's own is no other thing than a tied one where it is the embedding."""
    embedding = tied.tied
    same = embedding in own.specs and own.specs[HEAD] == own.specs[embedding]
    if not same or any(
        a != bytes(b) for a, b in zip(map(bytes, own.raw(HEAD)), own.raw(str(embedding)), strict=True)
    ):
        raise ModelError(
            f"{own.folder}: has a {HEAD} of its own; in {tied.folder} the embedding is the head (tied)",
            remedy="save both with tie_word_embeddings = false, the tied one's head copied from its embedding",
        )


def _shape_error(reference: Source, other: Source, name: str, ours: Spec, theirs: Spec) -> ModelError:
    vocabulary = name == HEAD or name.endswith(
        ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
    )
    remedy = _FROM_IT
    if vocabulary and ours.shape[1:] == theirs.shape[1:]:
        remedy = (
            "the vocabularies differ in size: resize_token_embeddings to the reference's if no token was added, "
            "else fine-tune without new tokens"
        )
    return ModelError(
        f"{other.folder}: {name!r} has shape {theirs.shape}, the reference {ours.shape} ({reference.folder})",
        remedy=remedy,
    )


def _check_tokenizer(reference: Source, other: Source) -> list[str]:
    files = [tokenizer_file(list(dict.fromkeys((s.folder, s.checkpoint)))) for s in (reference, other)]
    if files[0] is None or files[1] is None:
        without = [s.reference for s, f in zip((reference, other), files, strict=True) if f is None]
        return [f"no tokenizer beside {name}: it is taken to be the same" for name in without]
    check_same(files[0], files[1])
    return []


def _check_base(reference: Source, candidate: Source) -> None:
    """θ_i − θ₀ of an adapter on another base would hold the difference of the bases too."""
    if candidate.base is None or candidate.base_given:
        return
    bases = {reference.checkpoint, reference.folder}
    if any(candidate.base.samefile(b) for b in bases) or candidate.base_digest == reference.base_digest:
        return
    raise ModelError(
        f"{candidate.folder}: the adapter was made on {candidate.base}, the reference is {reference.folder}: their "
        "difference would hold what sets the two bases apart",
        remedy="give the reference that it was made on, or name its base if that is what you mean",
    )


def _dtypes(source: Source) -> str:
    (most, first), *others = Counter(source.stored.values()).most_common()
    said = "".join(f", {n:,} as {dtype}" for dtype, n in others)
    return f"{source.reference} stores {_count(first, 'tensor')} as {most}{said}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
