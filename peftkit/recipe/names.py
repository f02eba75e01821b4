"""Names that a recipe section does not take, and what to write instead."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "LORA_BEYOND", "LORA_INITS_BEYOND", "LORA_OWNED", "QUANTIZATION_OWNED", "QUANTIZATION_WIDTHS", "TRAINING_REFUSED",
]  # fmt: skip

_USE_PRECISION = "Set precision: fp32, fp16 or bf16 at the top level of the recipe."
_FROM_ENVIRONMENT = "Remove it: a recipe holds no secrets, and training does not upload."
_OTHERWISE_SHARDED = "Remove it: for a model that is too large for each process, use fsdp: true, or method: qlora."

_OF_LOGITS = (
    "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps", "include_for_metrics",
    "batch_eval_metrics",
)  # fmt: skip

TRAINING_REFUSED: Mapping[str, str] = {
    # Names that Transformers had once, or that other tools use, with their successors (Transformers 5.23).
    "evaluation_strategy": "Use eval_strategy.",
    "warmup_ratio": "Use warmup_steps: a value below 1 is a share of all steps.",
    "no_cuda": "Use precision and the machine's own devices; peftkit finds the GPU.",
    "logging_dir": "Remove it: metrics go to metrics.jsonl in the run folder.",
    "overwrite_output_dir": "Remove it: peftkit never overwrites a run.",
    "save_safetensors": "Remove it: weights are always safetensors.",
    "group_by_length": "Use train_sampling_strategy: group_by_length, or data.packing: true.",
    "tokenizer": "Remove it: the base brings its tokenizer.",
    "include_tokens_per_second": "Remove it: tokens per second are always measured.",
    "adafactor": "Use optim: adafactor.",
    "gradient_checkpointing": "Use activation_checkpointing.",
    "gradient_checkpointing_kwargs": "Use activation_checkpointing_kwargs.",
    "per_gpu_train_batch_size": "Use per_device_train_batch_size.",
    "per_gpu_eval_batch_size": "Use per_device_eval_batch_size.",
    "fp16_opt_level": "Use precision: fp16.",
    "half_precision_backend": "Use precision: fp16 or bf16.",
    "torchdynamo": "Use torch_compile_backend.",
    "push_to_hub_token": "Set HF_TOKEN in the environment.",
    "use_mps_device": "Remove it: the device is found.",
    **dict.fromkeys(("dispatch_batches", "split_batches"), "Use accelerator_config."),
    "past_index": "Remove it: it has no successor.",
    "batch_size": "Use per_device_train_batch_size.",
    "lr": "Use learning_rate.",
    "epochs": "Use num_train_epochs.",
    "gradient_clipping": "Use max_grad_norm.",
    "optimizer": "Use optim.",
    "scheduler": "Use lr_scheduler_type.",
    # Arguments of TrainingArguments that peftkit sets itself.
    "output_dir": "Set output at the top level of the recipe.",
    "run_name": "Set name at the top level of the recipe.",
    **dict.fromkeys(("fp16", "bf16", "fp16_full_eval", "bf16_full_eval"), _USE_PRECISION),
    "use_cpu": "Remove it: the device is found.",
    "do_train": "Remove it: train always trains.",
    "do_eval": "Set eval_strategy.",
    "do_predict": "Remove it and use peftkit generate.",
    "resume_from_checkpoint": "Remove it and use peftkit train --resume.",
    "logging_nan_inf_filter": "Remove it: a loss that is not finite is never taken for 0; see on_nonfinite.",
    **dict.fromkeys(("remove_unused_columns", "label_names"), "Remove it: peftkit builds the batches."),
    "disable_tqdm": "Remove it: peftkit draws its own progress.",
    "prediction_loss_only": "Remove it: evaluation computes a token-weighted loss.",
    "local_rank": "Remove it: the launcher sets it.",
    "ddp_backend": "Remove it: NCCL between GPUs, gloo between CPUs.",
    "auto_find_batch_size": "Remove it and use peftkit train --auto-batch, which keeps the effective batch.",
    "save_only_model": "Remove it: a run cannot be resumed from a checkpoint without its optimizer.",
    "ignore_data_skip": "Remove it: a resumed run sees the rows that it would have seen.",
    "restore_callback_states_from_checkpoint": "Remove it: the whole state is always restored.",
    "dataloader_persistent_workers": "Remove it: a resumed run would draw other random numbers.",
    "use_cache": "Remove it: training never uses a cache.",
    "skip_memory_metrics": "Remove it: the peak of the memory is always measured.",
    "save_on_each_node": "Remove it: the main process writes the checkpoints.",
    "length_column_name": "Remove it: the lengths of rows are known.",
    **dict.fromkeys(_OF_LOGITS, "Remove it: an evaluation sums the loss, and keeps no logits."),
    "enable_jit_checkpoint": "Remove it: SIGTERM always saves first.",
    "fsdp_config": "Remove it: fsdp: true shards each layer by itself, and leaves nothing to configure.",
    **dict.fromkeys(("deepspeed", "parallelism_config"), _OTHERWISE_SHARDED),
    **dict.fromkeys(("push_to_hub", "hub_token", "hub_model_id", "hub_strategy"), _FROM_ENVIRONMENT),
    **dict.fromkeys(("hub_private_repo", "hub_always_push", "hub_revision"), _FROM_ENVIRONMENT),
}
"""Names that the `training` section does not take."""

LORA_BEYOND: Mapping[str, str] = {
    "layer_replication": "repeats layers",
    "target_parameters": "adapts bare parameters",
    "alora_invocation_tokens": "acts only after certain tokens",
    "megatron_config": "is split by Megatron",
    "use_qalora": "pools its inputs",
    "use_bdlora": "is split into blocks",
    "arrow_config": "chooses among experts",
    "kasa_config": "changes the base's weights",
    "velora_config": "compresses its inputs",
    "monteclora_config": "draws its matrices at random",
    "loftq_config": "changes the base's weights",
    "corda_config": "changes the base's weights",
    "lora_ga_config": "changes the base's weights",
}
"""Arguments of `LoraConfig` (PEFT 0.21) with which an adapter is more than a product added to a weight."""

LORA_INITS_BEYOND = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights`, as they begin, that change the base's weights too."""

_NO_PRODUCT = "is more than a product added to a weight, and peftkit could not prove its merge."

LORA_OWNED: Mapping[str, str] = {
    **{name: f"Remove it: an adapter that {what} {_NO_PRODUCT}" for name, what in LORA_BEYOND.items()},
    "trainable_token_indices": "Set base.add_tokens, whose rows are trained alone.",
    "task_type": "Remove it: peftkit trains causal language models.",
    "peft_type": "Remove it: this section is LoRA.",
    "inference_mode": "Remove it: train trains and generate infers.",
    "base_model_name_or_path": "Set base.model.",
    "fan_in_fan_out": "Remove it: it follows from the layer that the adapter is put on.",
    "runtime_config": "Remove it: peftkit does not offload.",
    "megatron_core": "Remove it: peftkit does not train with Megatron.",
    "qalora_group_size": "Remove it: it belongs to use_qalora, which peftkit does not take.",
    "eva_config": "Remove it: EVA begins from activations on the data, which peftkit does not collect.",
    "rank": "Use r.",
    "lora_r": "Use r.",
    "alpha": "Use lora_alpha.",
    "dropout": "Use lora_dropout.",
}
"""Names that the `lora` section does not take."""

QUANTIZATION_OWNED: Mapping[str, str] = {
    "bnb_4bit_compute_dtype": "Set precision at the top level of the recipe; matmuls are computed in it.",
    "llm_int8_enable_fp32_cpu_offload": "Remove it: peftkit does not offload.",
    "kwargs": "Name the argument itself.",
    "quant_type": "Use bnb_4bit_quant_type.",
    "double_quant": "Use bnb_4bit_use_double_quant.",
    "bits": "Use load_in_4bit: true or load_in_8bit: true.",
}
"""Names that the `quantization` section does not take."""

QUANTIZATION_WIDTHS: Mapping[str, int] = {
    "llm_int8_threshold": 8,
    "llm_int8_has_fp16_weight": 8,
    "bnb_4bit_quant_storage": 4,
}
"""Arguments of `BitsAndBytesConfig` that have an effect on weights of one width alone, in bits."""
