"""Every method of vLLM that kvserve overrides, replaces or calls by position, and the parameters that it expects.

By the class that declares it. A test compares the list with our classes and assignments; for another version of vLLM
the guard names the first method that has changed: look at what it does now, then write it here.
"""

SIGNATURES: dict[str, dict[str, str]] = {
    "vllm.distributed.kv_transfer.kv_connector.v1.base.KVConnectorBase_V1": {
        "build_connector_meta": "self scheduler_output",
        "get_num_new_matched_tokens": "self request num_computed_tokens",
        "handle_preemptions": "self kv_connector_metadata",
        "on_new_request": "self request",
        "update_state_after_alloc": "self request blocks num_external_tokens",
    },
    "vllm.renderers.online_renderer.OnlineRenderer": {
        "preprocess_chat": "self request messages default_template default_template_content_format "
        "default_template_kwargs tool_dicts parser skip_mm_cache",
    },
    "vllm.v1.attention.backend.AttentionBackend": {
        "get_builder_cls": "",
        "get_impl_cls": "",
    },
    "vllm.v1.attention.backend.AttentionImpl": {
        "forward": "self layer query key value kv_cache attn_metadata output output_scale output_block_scale",
    },
    "vllm.v1.attention.backend.AttentionMetadataBuilder": {
        "build": "self common_prefix_len common_attn_metadata fast_build",
    },
    "vllm.v1.core.block_pool.BlockPool": {
        "_insert_block_hash": "self block_hash_with_group_id block num_tokens",
        "_remove_cached_block_hashes": "self block",
        "reset_prefix_cache": "self",
    },
    "vllm.v1.core.kv_cache_coordinator.KVCacheCoordinator": {
        "cache_blocks": "self request num_computed_tokens",
        "find_longest_cache_hit": "self block_hashes max_cache_hit_length",
    },
    "vllm.v1.core.kv_cache_manager.KVCacheManager": {
        "allocate_slots": "self request num_new_tokens num_new_computed_tokens new_computed_blocks "
        "num_lookahead_tokens num_external_computed_tokens delay_cache_blocks num_encoder_tokens "
        "full_sequence_must_fit reserved_blocks has_scheduled_reqs skip_zeroing_group_ids",
    },
    "vllm.v1.core.sched.scheduler.Scheduler": {
        "_connector_finished": "self request",
        "_free_request": "self request delay_free_blocks",
        "_get_local_prefix_cache_hit": "self request",
        "_preempt_request": "self request timestamp drop_stale_output",
        "_reserve_prefill_lookahead": "self request num_computed_tokens num_new_tokens",
        "add_request": "self request",
        "make_spec_decoding_stats": "self spec_decoding_stats num_draft_tokens num_accepted_tokens "
        "num_invalid_spec_tokens request_id",
        "make_stats": "self spec_decoding_stats kv_connector_stats cudagraph_stats perf_stats ec_connector_stats",
        "schedule": "self throttle_prefills",
        "update_from_output": "self scheduler_output model_runner_output",
    },
    "vllm.v1.core.single_type_kv_cache_manager.SingleTypeKVCacheManager": {
        "add_local_computed_blocks": "self request_id new_computed_blocks num_local_computed_tokens "
        "num_external_computed_tokens",
        "allocate_new_blocks": "self request_id num_tokens num_tokens_main_model",
        "get_num_blocks_to_allocate": "self request_id num_tokens new_computed_blocks total_computed_tokens "
        "num_local_computed_tokens num_tokens_main_model apply_admission_cap prefill_end",
        "has_positionally_stable_blocks": "property",
        "pop_blocks_for_free": "self request_id",
    },
    "vllm.v1.engine.async_llm.AsyncLLM": {
        "shutdown": "self timeout",
    },
    "vllm.v1.engine.core.EngineCoreProc": {
        "_make_ready_response": "self",
    },
    "vllm.v1.engine.core_client.AsyncMPClient": {
        "abort_requests_async": "self request_ids",
        "add_request_async": "self request",
        "call_utility_all_async": "self method args",
    },
    "vllm.v1.engine.core_client.DPAsyncMPClient": {
        "add_request_async": "self request",
    },
    "vllm.v1.engine.core_client.MPClient": {
        "_apply_ready_response": "self payload",
    },
    "vllm.v1.engine.input_processor.InputProcessor": {
        "process_inputs": "self request_id prompt params supported_tasks arrival_time lora_request "
        "tokenization_kwargs trace_headers priority data_parallel_rank resumable session_id kv_hints",
    },
    "vllm.v1.engine.output_processor.OutputProcessor": {
        "_finish_request": "self req_state",
        "do_tracing": "self engine_core_output req_state iteration_stats",
        "process_outputs": "self engine_core_outputs engine_core_timestamp iteration_stats weight_version",
    },
    "vllm.v1.kv_cache_interface.KVCacheSpec": {
        "is_uniform_with_collection": "self kv_cache_specs",
        "max_memory_usage_bytes": "self vllm_config",
        "merge": "cls specs",
    },
    "vllm.v1.metrics.loggers.StatLoggerBase": {
        "log_engine_initialized": "self",
        "record": "self scheduler_stats iteration_stats mm_cache_stats engine_idx",
    },
    "vllm.v1.outputs.AsyncModelRunnerOutput": {
        "get_output": "self",
    },
    "vllm.v1.worker.block_table.BlockTable": {
        "add_row": "self block_ids row_idx",
        "compute_slot_mapping": "self num_reqs query_start_loc positions",
    },
    "vllm.v1.worker.gpu.model_runner.GPUModelRunner": {
        "_dummy_run": "self num_tokens args skip_attn uniform_decode context_len skip_eplb is_profile "
        "valid_dummy_state_slots randomize_inputs kwargs",
        "add_requests": "self scheduler_output",
        "execute_model": "self scheduler_output intermediate_tensors dummy_run skip_attn_for_dummy_run is_profile "
        "context_len valid_dummy_state_slots randomize_inputs",
        "finish_requests": "self scheduler_output",
        "gather_batch_req_state": "self scheduler_output dummy_run",
        "get_kv_cache_spec": "self",
        "initialize_kv_cache": "self kv_cache_config is_profiling kv_cache_allocation_context",
        "prepare_attn": "self input_batch",
        "sample_tokens": "self grammar_output",
    },
    "vllm.v1.worker.gpu_model_runner.GPUModelRunner": {
        "_build_attention_metadata": "self num_tokens num_reqs max_query_len num_tokens_padded num_reqs_padded "
        "ubatch_slices logits_indices max_num_sampled_tokens use_spec_decode for_cudagraph_capture "
        "num_scheduled_tokens slot_mappings",
        "_determine_batch_execution_and_padding": "self num_tokens num_reqs num_scheduled_tokens_np "
        "max_num_scheduled_tokens use_cascade_attn allow_microbatching force_eager force_uniform_decode "
        "force_has_lora force_num_active_loras num_encoder_reqs",
        "_dummy_run": "self num_tokens cudagraph_runtime_mode force_attention uniform_decode allow_microbatching "
        "skip_eplb is_profile create_mixed_batch remove_lora is_graph_capturing num_active_loras "
        "profile_seq_lens randomize_inputs",
        "_update_states": "self scheduler_output",
        "execute_model": "self scheduler_output intermediate_tensors",
        "get_kv_cache_spec": "self",
        "initialize_kv_cache": "self kv_cache_config is_profiling kv_cache_allocation_context",
        "sample_tokens": "self grammar_output",
    },
    "vllm.v1.worker.gpu_worker.Worker": {
        "_make_model_runner": "self",
    },
    "vllm.v1.worker.worker_base.WorkerBase": {
        "init_device": "self",
    },
}
"""Class -> method -> parameters, or "property"."""
