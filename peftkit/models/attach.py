"""Adapters on a base: the modules that they change, and the parameters that are trained and that there are."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftkit.errors import FieldError, first_line
from peftkit.models.dtypes import hold_in_float32
from peftkit.models.methods import PREFIX
from peftkit.models.quantization import quantised_modules

__all__ = [
    "FILTERS", "adapted", "attention_inputs", "begin_rows", "count_embeddings", "count_parameters",
    "embedding_modules", "filtered", "grow_vocabulary", "inner_model", "load_adapter", "matches", "not_adapted",
    "resolve_targets", "save_model", "saved_embeddings", "tied_modules", "unwrapped",
]  # fmt: skip

_OUTPUTS = ("c_proj", "dense", "o_proj", "out_proj", "output")
"""What the projection from attention back to hidden states is called."""

FILTERS = ("exclude_modules", "layers_to_transform", "layers_pattern")
"""What chooses among the targets. PEFT passes over the last two where it is given full names, as it is here."""


def resolve_targets(
    structure: Any, target_modules: str | list[str], auto: Mapping[str, list[str]], fallback: Sequence[str], field: str
) -> list[str]:
    """The full names of the modules that get an adapter, from the model's structure alone (the meta device will do).

    Args:
        structure: the model.
        target_modules: `auto`, `all-linear`, a regular expression over whole paths, or names, of modules or of what
            their paths end in.
        auto: the names that `auto` stands for, by the type of model.
        fallback: names that it stands for in other models, as far as they have them.
        field: of the recipe, for messages.

    Raises:
        FieldError: a name or the expression matches nothing, or matches the tied embedding or head.
    """
    linear = _linear_layers(structure)
    head = _name_of(structure, structure.get_output_embeddings())
    tied = tied_modules(structure)
    adaptable = [name for name in linear if name != head]
    kinds = dict.fromkeys(re.sub(r"^.*\.\d+\.", "", name) for name in adaptable)  # without the layers' numbers
    refused = partial(FieldError, field, remedy=f"The model has: {', '.join(kinds)}; or use auto or all-linear.")
    if target_modules == "all-linear":
        return adaptable
    if target_modules == "auto":
        usual = [name for name in fallback if any(matches(module, name) for module in adaptable)]
        target_modules = auto.get(structure.config.model_type) or usual
        if not target_modules:
            raise refused(f"auto knows no targets for {structure.config.model_type}.")
    names = [*linear, *(name for name in tied if name not in linear)]
    if isinstance(target_modules, str):
        try:
            chosen = [name for name in names if re.fullmatch(target_modules, name)]
        except re.error as error:
            raise refused(f"is no regular expression: {error}.") from error
        patterns = [] if chosen else [target_modules]
    else:
        chosen = [name for name in names if any(matches(name, pattern) for pattern in target_modules)]
        patterns = [pattern for pattern in target_modules if not any(matches(name, pattern) for name in names)]
    if patterns:
        raise refused(f"{patterns[0]!r} matches no module.")
    if not target_modules:
        raise refused("is empty.")
    shared = next((name for name in chosen if name in tied), None)
    if shared is not None:
        raise refused(
            f"{shared} is tied: input embedding and head are one matrix, so an adapter on it cannot be merged."
        )
    return chosen


def attention_inputs(structure: Any, usual: Sequence[str]) -> list[str]:
    """The projections that attention computes from hidden states: by their usual names, PEFT's, or their place.

    By their place they are the linear layers of a module that is called attention or, in models without it, mixer; but
    for the one that projects back to hidden states, and for routers.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    linear = _linear_layers(structure)
    for names in (usual, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(structure.config.model_type, ())):
        if found := [name for name in names if any(matches(module, name) for module in linear)]:
            return found
    for place in ("att", "mixer"):
        inside = [name for name in linear if re.search(rf"\.\d+\.(?!.*router)\w*{place}", name)]
        if found := [name for name in inside if name.rpartition(".")[2] not in _OUTPUTS]:
            return found
    return []


def _linear_layers(structure: Any) -> list[str]:
    """The names of the linear layers that text runs through: of a model that sees images too, its language model's."""
    found = [name for name, module in structure.named_modules() if _is_linear(module)]
    if structure.config.get_text_config() is structure.config:
        return found
    decoder = _name_of(structure, structure.get_decoder())
    return [name for name in found if "." not in name or name.startswith(f"{decoder}.")]


def _is_linear(module: Any) -> bool:
    """Whether a module is a linear layer, or computes what one computes: a router may be of such a class."""
    if not isinstance(module, nn.Linear | Conv1D):
        return False
    if type(module).forward in (nn.Linear.forward, Conv1D.forward):
        return True
    with suppress(RuntimeError, TypeError, ValueError, AttributeError):
        result = module(torch.empty(1, module.in_features, device=module.weight.device, dtype=module.weight.dtype))
        return isinstance(result, torch.Tensor) and result.shape == (1, module.out_features)
    return False


def not_adapted(structure: Any, targets: list[str]) -> dict[str, str]:
    """Those of the modules that PEFT puts no LoRA on, by its own rules, each with the reason.

    They are some of Mamba's, whose weights fused kernels read themselves, and those that are called as the experts of a
    mixture were before Transformers 5: PEFT takes the names for these experts, which are parameters now.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=targets)
    convert_peft_config_for_transformers(config, structure, None)
    experts = f"it takes the name for weights of the experts of {structure.config.model_type}."
    refused = {name: experts for name in targets if name not in config.target_modules}
    if getattr(structure.config, "rescale_every", 0):  # RWKV's
        divided = "the model divides its weight, and not the adapter, while it evaluates (rescale_every)."
        ends = ("attention.output", "feed_forward.value")
        refused |= {name: divided for name in targets if name.endswith(ends)}
    for name in targets:
        try:
            LoraModel._check_target_module_compatiblity(None, config, structure, name.rpartition(".")[2])
        except ValueError as error:
            refused[name] = first_line(error)
    return refused


def filtered(targets: list[str], extras: Mapping[str, Any]) -> list[str]:
    """The targets that are left by `exclude_modules`, `layers_to_transform` and `layers_pattern`, by PEFT's own rule.

    Raises:
        FieldError: one of these leaves them all, or a layer has none.
    """
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    ends = sorted({name.rpartition(".")[2] for name in targets})

    def left(**filters: Any) -> list[str]:
        config = LoraConfig(target_modules=ends, **filters)
        return [name for name in targets if check_target_module_exists(config, name)]

    filters = {name: extras[name] for name in FILTERS if extras.get(name) not in (None, [], "")}
    excluded, layers = filters.get("exclude_modules", []), filters.get("layers_to_transform", [])
    for pattern in [excluded] if isinstance(excluded, str) else excluded:
        if left(exclude_modules=excluded if pattern is excluded else [pattern]) == targets:
            raise FieldError("lora.exclude_modules", f"{pattern!r} excludes none of the targets.", remedy="Remove it.")
    for layer in [layers] if isinstance(layers, int) else layers:
        if not left(layers_to_transform=[layer], layers_pattern=filters.get("layers_pattern")):
            what = f"no target is in layer {layer}; they are counted from 0."
            raise FieldError("lora.layers_to_transform", what, remedy="Name layers that the base has.")
    found = left(**filters)
    if not found:
        raise FieldError("lora.exclude_modules", "excludes all of the targets.", remedy="Exclude fewer.")
    return found


def adapted(model: Any, kind: Any, targets: list[str], base_folder: Path, **settings: Any) -> Any:
    """Put a new adapter on the target modules and freeze the rest; the caller has set the seed.

    All that is trained is float32 whatever dtype the base has. PEFT looks into `base_folder` at every checkpoint, and
    would ask the hub about a name that is no folder.

    Args:
        model: the base.
        kind: PEFT's class of the adapter's configuration.
        targets: full names of modules.
        base_folder: where the base was opened from.
        settings: what else the configuration is made of.

    Raises:
        FieldError: PEFT cannot do it.
    """
    from peft import TaskType, get_peft_model

    from peftkit.models.kernels import use_row_kernels

    first = model.get_submodule(targets[0])
    config = kind(
        **settings,
        target_modules=targets,
        task_type=TaskType.CAUSAL_LM,
        fan_in_fan_out=Conv1D in (type(first), getattr(first, "source_cls", None)),  # what a quantised layer was
    )
    try:
        found = get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise FieldError(config.peft_type.lower(), f"PEFT refuses it for this model: {first_line(error)}") from error
    found.peft_config["default"].base_model_name_or_path = str(base_folder)
    use_row_kernels(found)
    # PEFT sees to the adapter's weights, and not to biases and modules_to_save
    hold_in_float32(found, [name for name, weight in found.named_parameters() if weight.requires_grad])
    return found


def load_adapter(model: Any, folder: Path) -> list[str]:
    """Load the tensors of an adapter into the model that saved it.

    PEFT passes over names that it does not know, so what it would save now is compared with the file.

    Returns:
        Names of the tensors that are in one of them alone, or that have not the same values in both.
    """
    from peft import get_peft_model_state_dict

    name = model.active_adapters[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has loaded an embedding, too
        model.load_adapter(str(folder), name, is_trainable=True)
        held = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    saved = load_file(folder / "adapter_model.safetensors")
    for each in {*saved_embeddings(inner_model(model))} - {*held}:
        saved.pop(each, None)  # the base's own, in checkpoints of earlier versions
    shared = {*held} & {*saved}
    return sorted({*held} ^ {*saved} | {each for each in shared if not torch.equal(held[each].cpu(), saved[each])})


def save_model(model: Any, folder: Path) -> None:
    """Write a model, or only its adapter: never embeddings, which are the base's own but for rows that are trained."""
    model.save_pretrained(folder, **({"save_embedding_layers": False} if hasattr(model, "peft_config") else {}))


def grow_vocabulary(model: Any, rows: int) -> None:
    """Give embedding and head of a base so many rows; more than these, which some have as padding, stay."""
    if rows > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(rows, mean_resizing=False)


@torch.no_grad()
def begin_rows(model: Any, rows: Sequence[int]) -> None:
    """Set rows of embedding and head to the mean of the other ones (Hewitt 2021, "Initializing new word embeddings").

    With it, a new token takes little probability from those that the model knows. Transformers' `mean_resizing` adds
    noise of 3e-5 standard deviations, and leaves alone the rows that a padded embedding has for new tokens.
    """
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    tables = [weight for module in modules for weight in (module.weight, getattr(module, "bias", None))]
    for table in {id(table): table for table in tables if table is not None}.values():
        total = table.sum(0, dtype=torch.float32) - table[rows].sum(0, dtype=torch.float32)
        table[rows] = (total / (len(table) - len(rows))).to(table.dtype)


def inner_model(model: Any) -> Any:
    """The language model itself, inside its adapter where it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def embedding_modules(structure: Any) -> list[str]:
    """The names of the input embedding and of the head, as far as the model has them."""
    modules = (structure.get_input_embeddings(), structure.get_output_embeddings())
    return [name for module in modules if module is not None and (name := _name_of(structure, module)) is not None]


def saved_embeddings(structure: Any) -> dict[str, str]:
    """What the weights of embedding and head may be called in an adapter's file, each with its module.

    PEFT saves them where the vocabulary was resized: plain ones, those with LoRA or trained rows on them, and what they
    were before they were trained whole.
    """
    inner = ("", ".base_layer", ".token_adapter.base_layer", ".modules_to_save", ".original_module")
    return {f"{PREFIX}{module}{each}.weight": module for module in embedding_modules(structure) for each in inner}


def tied_modules(structure: Any) -> list[str]:
    """The same where they are one matrix, and nothing where each has its own."""
    return embedding_modules(structure) if getattr(structure.config, "tie_word_embeddings", False) else []


def count_parameters(model: Any) -> tuple[int, int]:
    """Trainable parameters and all parameters; a quantised weight counts as the numbers it stands for."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    packed = {id(module.weight): module.in_features * module.out_features for module in quantised_modules(model)}
    total = sum(packed.get(id(parameter), parameter.numel()) for parameter in model.parameters())
    return trainable, total


def count_embeddings(model: Any, *, trained: bool = False) -> int:
    """Parameters of the embeddings and of the head, each weight once; with `trained`, of those that are trained."""
    found = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    weights = {id(module.weight): module.weight for module in [*found, unwrapped(model.get_output_embeddings())]}
    return sum(weight.numel() for weight in weights.values() if weight.requires_grad or not trained)


def unwrapped(module: Any) -> Any:
    """An embedding or a head of which PEFT trains rows alone, without these; any other module as it is."""
    return module.token_adapter.base_layer if hasattr(module, "token_adapter") else module


def _name_of(structure: Any, wanted: Any) -> str | None:
    return next((name for name, module in structure.named_modules() if module is wanted), None)


def matches(name: str, pattern: str) -> bool:
    """Whether a module is called so, or its path ends in it."""
    return name == pattern or name.endswith(f".{pattern}")
