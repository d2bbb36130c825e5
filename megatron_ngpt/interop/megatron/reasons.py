"""Why an argument has no counterpart: by name, the first row with a pattern that fits."""

from __future__ import annotations

from fnmatch import fnmatchcase

_CHANGES: tuple[tuple[str, str], ...] = (
    (
        "num-experts moe-* expert-* router-* mlp-type topk *use-residual* *aux-loss*",
        "there is no mixture of experts: every block has one feed-forward of --ffn-hidden-size",
    ),
    (
        "multi-latent-attention q-lora-rank kv-lora-rank qk-head-dim "
        "qk-pos-emb-head-dim v-head-dim mscale* mla-*",
        "there is no latent attention: heads are those of grouped-query attention",
    ),
    (
        "mtp-* num-mtp-*",
        "there is no prediction of several tokens",
    ),
    (
        "window-* *sliding-window* linear-attention-* softmax-type attention-output-gate "
        "experimental-attention-variant dsa-* no-rope-freq apply-rope-*",
        "every layer attends to all tokens before, by a plain softmax",
    ),
    (
        "hybrid-* mamba-* is-hybrid-model spec heterogeneous-* *ssm*",
        "all layers are alike, attention and feed-forward",
    ),
    (
        "fp8-* fp4-* *-fp8-* fp8 te-precision-* kitchen-* first-last-layers-bf16 "
        "*-layers-at-*-in-bf16",
        "there is no FP8 and no FP4: products are in train.dtype",
    ),
    (
        "embed-layernorm apply-residual-connection-post-layernorm use-post-ln *-layer-scale* "
        "mult*-scaling glu-linear-offset activation-func-clamp-* embedding-multiplier "
        "residual-* *mup*",
        "another arithmetic, for which there is no setting",
    ),
    (
        "fim-*",
        "text is not filled in the middle",
    ),
    (
        "start-weight-decay* weight-decay* no-weight-decay* apply-wd-*",
        "matrices have optim.weight_decay, vectors none",
    ),
    (
        "sgd-* lion-* soap-* adaptive-* muon-*",
        "optim.optimizer has AdamW, Muon and MuonH",
    ),
    (
        "exp-avg-dtype exp-avg-sq-dtype main-grads-dtype main-params-dtype "
        "use-precision-aware-optimizer *-in-bf16 fp16-lm-cross-entropy",
        "masters, their averages and reductions of the loss are fp32",
    ),
    (
        "finetune pretrained-checkpoint no-load-optim no-load-rng "
        "override-opt-param-scheduler use-checkpoint-* override-opt*-scheduler ckpt-step "
        "exit-on-missing-checkpoint dist-ckpt-strictness load*",
        "how a Megatron checkpoint is loaded; here a run resumes whole (tools/import_hf.py "
        "brings weights)",
    ),
    (
        "curriculum-* data-efficiency-* random-ltd* train-idx-path train-desc-path "
        "train-doc-idx-path train-sample-idx-path train-shuffle-idx-path *token-drop* "
        "phase-transition-iterations",
        "no curriculum and no dropping of tokens; data.stages changes lengths and blends",
    ),
    (
        "*weighted-split-paths* data-args-path per-split-data-args-path "
        "per-dataset-sequences-path data-path2",
        "a file of corpora, which is not read: write them to data.train as {prefix, weight}",
    ),
    (
        "train-data-file valid-data-file mock-data sft* dataloader-type data-sharding "
        "no-data-sharding use-one-sent-docs mask-* short-seq-prob",
        "data are .bin/.idx pairs, read as one stream in the order of train.seed; set data.train",
    ),
    (
        "freeze-* kd* distill* teacher-* mos export-kd-* logits-load-* logits-save-* rl-* "
        "grpo-* perform-rl-step",
        "nothing but pretraining: no frozen parts, no teacher, no reinforcement learning",
    ),
    (
        "encoder-* decoder-* bert-* biencoder-* ict-* retr* vision-* img-* dino-* swin-* "
        "num-classes",
        "nothing but a decoder of text is trained",
    ),
    (
        "skip-train iterations-to-skip *spiky-loss* check-for-spiky-loss "
        "check-for-large-grads skip-samples*",
        "train.on_fault and train.spike_threshold say which steps are left out",
    ),
    (
        "calculate-per-token-loss",
        "the loss of a step is the mean over its micro-batches' targets",
    ),
    (
        "inference-* max-tokens-to-oom",
        "no part of training; tools/generate.py generates",
    ),
)
"""What trains otherwise, or may: patterns of names, and why."""

_CHANGES_NOTHING: tuple[tuple[str, str], ...] = (
    (
        "lr-wsd-*",
        "for --lr-decay-style WSD alone",
    ),
    (
        "log-* logging-* timing-* tensorboard-* wandb-* one-logger-* no-one-logger "
        "*-to-tensorboard tb-* otel-* app-tag-* enable-one-logger record-memory-history "
        "memory-snapshot-path barrier-*",
        "metrics.jsonl has every step; docs/watching.md says what else is recorded",
    ),
    (
        "profile* use-pytorch-profiler nvtx-* *straggler* run-workload-* wall-clock-*",
        "tools/profile_step.py shows where the time of a step goes",
    ),
    (
        "save-* ckpt-* dist-ckpt-* use-dist-ckpt* async-* use-persistent-* no-save-* "
        "non-persistent-* auto-detect-ckpt-format universal-checkpoint *checkpoint-format* "
        "*checkpoint-convert* replication*",
        "checkpoints are sharded, written in the background, and resumed by any topology",
    ),
    (
        "use-mcore-models use-legacy-models transformer-impl enable-experimental yaml-cfg "
        "no-async-* attention-backend use-flash-attn* *-fusion no-persist-layer-norm "
        "cross-entropy-* cuda-graph* enable-cuda-graph external-cuda-graph "
        "attention-softmax-in-fp32 apply-query-key-layer-scaling no-query-key-layer-scaling "
        "*-kernel-constraints tp-comm-* te-* use-te-* use-transformer-engine* "
        "apply-layernorm-1p memory-centric-* use-tutel disable-mem-efficient-ln use-turbo-* "
        "sm-margin batch-invariant-mode",
        "how it is computed, not what: engine.ops, engine.attention and train.compile choose here",
    ),
    (
        "sequence-parallel cp-comm-type scatter-gather* use-ring-exchange-p2p "
        "ds-sequence-parallel-* force-ds-sequence-* hierarchical-* num-distributed-optimizer-*",
        "activations are shared along the sequence wherever tp or cp are above 1",
    ),
    (
        "overlap-* ddp-* delay-* align-* no-align-* no-overlap-* defer-* microbatch-group-* "
        "gradient-reduce-* accumulate-allreduce-* use-nccl-ub nccl-* *sharp* high-priority-* "
        "fsdp-* megatron-fsdp-* torch-fsdp2-* outer-dp-* enable-full-sharding-* "
        "init-model-with-meta-device use-cpu-initialization create-all-gather-group "
        "local-rank lazy-mpu-init distributed-backend distributed-timeout* "
        "use-tp-pp-dp-mapping DDP-impl enable-gloo-* disable-gloo-* use-sharp *-communicator* "
        "empty-unused-memory-level manual-gc* suggested-* data-parallel-* pp-partition-method "
        "pipeline-model-parallel-layout account-for-* cpu-offload* no-pin-cpu* "
        "optimizer-*offload* use-torch-optimizer-for-* pin-memory reuse-grad-buf-* keep-fp8-* "
        "use-*-layer-wise-* standalone-embedding-stage remote-device gtp-* "
        "partition-activations contigious-checkpointing synchronize-each-layer cpu-optimizer",
        "communication and memory, which DeepSpeed's ZeRO and torch's pipelining do here; "
        "engine.deepspeed_overrides reaches DeepSpeed's settings",
    ),
    (
        "deepspeed* zero-* profile-backward no-post-* create-moe-param-group",
        "the DeepSpeed configuration is derived and its file not read; "
        "engine.deepspeed_overrides takes what else it asks for",
    ),
    (
        "recompute-* checkpoint-num-layers distribute-* checkpoint-* no-checkpoint-*",
        "train.recompute is for all blocks, whole or but for train.recompute_keep",
    ),
    (
        "loss-scale* initial-loss-scale min-loss-scale hysteresis fp16-* fp32-residual-* "
        "bf16-* loss-scale-window",
        "bf16 and fp32 need no loss scaling, and residuals are in train.dtype",
    ),
    (
        "data-cache-path data-impl mmap-warmup num-workers valid-num-workers "
        "no-mmap-bin-files dataloader-* num-dataset-* no-create-attention-mask* "
        "create-attention-mask* object-storage-* mid-level-* s3-* data-parallel-random-init "
        "*-msc full-validation multiple-validation-sets allow-ambiguous-* no-shuffle* "
        "return-data-index",
        "the order of samples is reckoned, without index files or worker processes",
    ),
    (
        "tokenizer-* tiktoken-* vocab-* null-tokenizer-* trust-remote-code special-tokens* "
        "legacy-tokenizer special-*",
        "the tokenizer is a file of its own, data.tokenizer",
    ),
    (
        "no-check-for-nan* check-for-nan* rerun-* error-injection-* result-rejected-* "
        "check-weight-* inprocess-* enable-ft-* calc-ft-* ft-* adlr-* exit-signal* "
        "kill-switch-* auto-tune* exit-*",
        "numbers that are not finite stop a run (train.on_fault), signals and time limits end "
        "it saved (docs/slurm.md)",
    ),
    (
        "eval-* test-mode skip-val* dump-* *-seed-across* *-seeds-across* run-* num-hash* "
        "launch* master-* node-rank nnodes nproc*",
        "no setting of a run here",
    ),
)
"""What leaves what is learned as it is."""


def reason(name: str) -> tuple[bool, str]:
    """Whether an argument without counterpart changes training, and why there is none."""
    for changes, rows in ((True, _CHANGES), (False, _CHANGES_NOTHING)):
        for patterns, text in rows:
            if any(fnmatchcase(name, pattern) for pattern in patterns.split()):
                return changes, text
    return True, "not known to this tool: look it up, it is in no setting"
