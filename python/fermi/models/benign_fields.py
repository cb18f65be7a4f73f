"""Fields of config.json that say how a checkpoint was made or how it is sampled, but not what the model computes."""

from __future__ import annotations

__all__ = ["BENIGN_FIELDS"]

# fmt: off
BENIGN_FIELDS = frozenset({
    # who made it, with what
    "architectures", "model_type", "transformers_version", "auto_map", "_name_or_path", "name_or_path",
    "_commit_hash", "tokenizer_class", "torch_dtype", "dtype", "is_llama_config", "transformers.js_config",
    "unsloth_version", "unsloth_fixed", "model_max_length", "max_sequence_length", "seq_length",
    # how it is trained
    "initializer_range", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop",
    "embedding_dropout", "residual_dropout", "classifier_dropout", "attention_probs_dropout_prob",
    "hidden_dropout_prob",
    "neftune_noise_alpha", "loss_type", "gradient_checkpointing",
    # how Transformers computes the same
    "use_cache", "cache_implementation", "attn_implementation", "_attn_implementation",
    "_attn_implementation_autoset", "_flash_attn_2_enabled", "use_flash_attn", "chunk_size_feed_forward",
    "num_logits_to_keep", "output_attentions", "output_hidden_states", "return_dict", "torchscript", "use_bfloat16",
    "pretraining_tp", "tf_legacy_loss", "is_decoder", "tie_encoder_decoder", "cross_attention_hidden_size",
    # of other tasks
    "id2label", "label2id", "num_labels", "_num_labels", "problem_type", "finetuning_task", "task_specific_params",
    "custom_pipelines",
    # special tokens
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "prefix",
    # how text is sampled, once kept here, now in generation_config.json
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores",
    "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "epsilon_cutoff", "eta_cutoff",
    "encoder_repetition_penalty", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind",
})
# fmt: on
