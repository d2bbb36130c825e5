"""Public command lines rewritten in small: which arguments they use, not how they are written.

Each is a script, what has to come out of it as settings of ``gpt``, and pieces of what is said.
"""

from typing import Any, NamedTuple


class Case(NamedTuple):
    source: str
    """Where the real one is."""
    text: str
    settings: dict[str, Any]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    suffix: str = ".sh"


GPT3 = Case(
    "NVIDIA/Megatron-LM examples/gpt3/train_gpt3_175b_distributed.sh",
    """#!/bin/bash
export CUDA_DEVICE_MAX_CONNECTIONS=1
PER_NODE=8
NODES=2
OUT=$1  # where to
SHAPE=(
    --num-layers 4
    --hidden-size 64   # small
    --num-attention-heads 4
    --seq-length 128
    --max-position-embeddings 128
)
RUN=(
    --micro-batch-size 1
    --global-batch-size $(($PER_NODE*$NODES))
    --step-batch-size-schedule "0:4 2B:8"
    --train-iters 1000
    --lr-decay-iters 800
    --lr-warmup-fraction .01
    --lr 6.0e-5 --min-lr 6.0e-6 --lr-decay-style cosine
    --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.95 --clip-grad 1.0
    --init-method-std 0.006
    --fp16
)
torchrun --nproc_per_node $PER_NODE --nnodes $NODES pretrain_gpt.py \\
    ${SHAPE[@]} \\
    ${RUN[@]} \\
    --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 \\
    --data-path data/text --vocab-file vocab.json --merge-file merges.txt --split 949,50,1 \\
    --log-interval 100 --save-interval 500 --eval-interval 100 --eval-iters 10 \\
    --save $OUT --load $OUT --tensorboard-dir $OUT/tb
""",
    {
        "model.layers": 4, "model.width": 64, "model.heads": 4, "model.ffn_width": 256,
        "model.mlp": "relu2", "model.init_std": 0.006, "model.norm_eps": 1e-5,
        "model.tied_embedding": False, "model.vocab_size": 50432, "parallel.tp": 2,
        "parallel.pp": 2, "train.global_batch": 16, "train.steps": 1000, "train.dtype": "bf16",
        "optim.warmup_steps": 8, "optim.weight_decay": 0.1, "optim.betas": (0.9, 0.95),
        "optim.zero_stage": 0, "data.valid_fraction": 0.05, "data.train": "data/text",
        "logging.dir": "runs/first", "logging.tensorboard": True, "eval.steps": 10,
    },
    ("GELU", "LayerNorm", "learned_absolute", "dropout: attention 0.1", "biases", "--fp16",
     "--step-batch-size-schedule: 0:4 2B:8", "min_lr is reached after 800 steps", "test set"),
    ("--merge-file", "--load: a run resumes"),
)  # fmt: skip

LLAMA3 = Case(
    "NVIDIA/Megatron-LM examples/llama/train_llama3_8b_h100_fp8.sh",
    """OUT=${1:-"runs/llama"}
DATA=${2:-"MOCK"}
KIND="fp8"
TP=1
BASE=( --use-mcore-models --num-layers 2 --hidden-size 64 --ffn-hidden-size 192
  --num-attention-heads 4 --group-query-attention --num-query-groups 2 --kv-channels 16
  --seq-length 256 --max-position-embeddings 256 --position-embedding-type rope
  --rotary-base 1000000 --rotary-percent 1.0 --attention-dropout 0.0 --hidden-dropout 0.0
  --swiglu --normalization RMSNorm --init-method-std 0.0134 --attention-backend fused
  --apply-layernorm-1p --untie-embeddings-and-output-weights --disable-bias-linear )
BASE+=( --micro-batch-size 1 --global-batch-size 8 --train-samples 8000
  --lr-decay-samples 7000 --lr-warmup-samples 80 --lr 0.00015 --min-lr 1e-5
  --decoupled-lr 5.0e-4 --lr-decay-style cosine --bf16 --exit-duration-in-mins 235
  --use-distributed-optimizer --calculate-per-token-loss --manual-gc )
EXTRA=()
if [[ "$KIND" == "fp8" ]]; then
    EXTRA+=("--fp8-format hybrid" "--fp8-param-gather")
elif [[ "$KIND" == "fp4" ]]; then
    EXTRA+=("--fp4-format e2m1")
fi
if [[ "$DATA" == "MOCK" ]] || [[ -z "$DATA" ]]; then
    EXTRA+=("--mock-data" "--tokenizer-type NullTokenizer" "--vocab-size 1000" "--split '99,1,0'")
else
    EXTRA+=("--data-path $DATA")
fi
if [ ! -f pretrain_gpt.py ]; then echo "not here"; exit 1; fi
torchrun --nproc_per_node 8 pretrain_gpt.py ${BASE[@]} ${EXTRA[@]} \\
  --tensor-model-parallel-size $TP --sequence-parallel --save "$OUT" --log-throughput
""",
    {
        "model.kv_heads": 2, "model.head_dim": 16, "model.mlp": "swiglu", "model.ffn_width": 192,
        "model.rope_theta": 1e6, "model.vocab_size": 1024, "train.steps": 1000,
        "optim.warmup_steps": 10, "optim.zero_stage": 1, "train.exit_after": "235m",
        "logging.dir": "runs/first", "data.valid_fraction": 0.01, "model.tied_embedding": False,
    },
    ("--fp8-format", "--decoupled-lr", "--mock-data", "--calculate-per-token-loss"),
    ("--log-throughput", "--manual-gc", "--apply-layernorm-1p", "--sequence-parallel"),
)  # fmt: skip

MIXTRAL = Case(
    "NVIDIA/Megatron-LM examples/mixtral/train_mixtral_8x7b_distributed.sh",
    """ARGS=(--disable-bias-linear --seq-length 128 --num-layers 4 --hidden-size 64
    --ffn-hidden-size 224 --num-attention-heads 4 --normalization RMSNorm
    --position-embedding-type rope --swiglu --untie-embeddings-and-output-weights
    --group-query-attention --num-query-groups 2 --no-position-embedding
    --attention-dropout 0.0 --hidden-dropout 0.0)
MOE=(--num-experts 8 --moe-router-topk 2 --moe-aux-loss-coeff 1e-2 --moe-grouped-gemm)
LOG=(--log-interval 1 \\
    --save-interval 100 \\
    --eval-interval 50 --eval-iters 0)
if [ -n "${WANDB_API_KEY}" ]; then
    LOG+=(--wandb-project ${WANDB_PROJECT:-"Mixtral"})
fi
torchrun --nnodes ${SLURM_NNODES:-"1"} pretrain_gpt.py ${ARGS[@]} ${MOE[@]} ${LOG[@]} \\
    --tokenizer-type Llama2Tokenizer --tokenizer-model tok/tokenizer.model --vocab-size 500 \\
    --data-path 0.3 data/a_text 0.7 data/b_text --split 99990,8,2 \\
    --micro-batch-size 1 --global-batch-size 16 --lr 1e-4 --train-iters 500 \\
    --lr-warmup-iters 50 --bf16 --pipeline-model-parallel-size 2 \\
    --num-layers-per-virtual-pipeline-stage 1 --no-load-optim
""",
    {
        "data.tokenizer": "tok/tokenizer.model", "eval.every": 0, "optim.schedule": "linear",
        "optim.betas": (0.9, 0.999), "optim.weight_decay": 0.01, "parallel.pp": 2,
        "parallel.schedule": "interleaved", "parallel.stages_per_rank": 2, "model.vocab_size": 512,
    },
    ("--num-experts: there is no mixture", "--moe-router-topk", "--no-load-optim"),
)  # fmt: skip

QWEN = Case(
    "NVIDIA/Megatron-LM examples/post_training/modelopt/conf/Qwen/Qwen3-8B.sh",
    """if [ -z ${HF_MODEL} ]; then
    TOKENIZER=some/model
fi
MODEL_ARGS=" \\
    --micro-batch-size 1 \\
    --bf16 \\
    --disable-bias-linear --untie-embeddings-and-output-weights \\
    --position-embedding-type rope --rotary-base 1000000 --no-rope-fusion \\
    --normalization RMSNorm --norm-epsilon 1e-6 --swiglu \\
    --num-layers 2 --hidden-size 64 --num-attention-heads 4 --kv-channels 32 \\
    --group-query-attention --num-query-groups 1 --qk-layernorm \\
    --seq-length 128 --make-vocab-size-divisible-by 1187 \\
"
""",
    {"model.head_dim": 32, "model.kv_heads": 1, "model.gpt_qk_norm": True, "model.norm_eps": 1e-6,
     "model.ffn_width": 128, "train.steps": 1000, "train.micro_batch": 1},
    ("--qk-layernorm", "train.steps", "data.train", "model.vocab_size", "train.global_batch"),
    ("no command with options",),
)  # fmt: skip

FSDP = Case(
    "NVIDIA/Megatron-LM examples/megatron_fsdp/train_llama3_8b_fsdp_h100_fp8.sh",
    """FSDP=${FSDP:-1}
SHARD=${SHARD:-"optim_grads"}
A=(--num-layers 2 --hidden-size 64 --num-attention-heads 4 --seq-length 64
   --micro-batch-size 2 --train-iters 20 --lr 1e-3 --bf16 --recompute-activations)
if [ "${FSDP}" = 1 ]; then
    unset CUDA_DEVICE_MAX_CONNECTIONS
    A=("${A[@]}" --use-megatron-fsdp --data-parallel-sharding-strategy ${SHARD} --use-nccl-ub)
fi
torchrun --nproc_per_node 8 --nnodes 1 pretrain_gpt.py ${A[@]} --data-path x_text --vocab-size 100
""",
    {"optim.zero_stage": 2, "train.global_batch": 16, "train.recompute": True,
     "train.recompute_keep": ("matmul", "all_gather", "reduce_scatter"), "model.vocab_size": 128,
     "model.tied_embedding": True, "data.valid_fraction": 0.03},
    ("train.global_batch",), ("--use-nccl-ub",),
)  # fmt: skip

TEST_YAML = Case(
    "NVIDIA/Megatron-LM tests/functional_tests/test_cases/gpt/"
    "gpt3_mcore_te_tp1_pp2_cp4_a2a_p2p_nondeterministic",
    """ENV_VARS:
  NCCL_ALGO: Ring
MODEL_ARGS:
  --num-layers: 4
  --hidden-size: 64
  --num-attention-heads: 4
  --micro-batch-size: 2
  --global-batch-size: 8
  --seq-length: 64
  --train-iters: 50
  --lr: 0.00015
  --bf16: true
  --swiglu: false
  --data-path: ${DATA_PATH}/my_text_document
  --save: ${CHECKPOINT_SAVE_PATH}
  --vocab-file: ${DATA_PATH}/vocab.json
  --merge-file: ${DATA_PATH}/merges.txt
  --tensor-model-parallel-size: 1
  --context-parallel-size: 4
  --cp-comm-type: a2a+p2p
  --hierarchical-context-parallel-sizes: 2 2
  --use-distributed-optimizer: true
  --deterministic-mode: true
TEST_TYPE: regular
""",
    {"parallel.cp": 4, "parallel.ulysses": 2, "train.deterministic": True,
     "data.train": "/corpora/my_text_document", "model.mlp": "relu2", "optim.zero_stage": 1},
    ("GELU",), ("not read: ENV_VARS, TEST_TYPE", "$DATA_PATH stays"), ".yaml",
)  # fmt: skip

BLOOM = Case(
    "bigscience-workshop/bigscience train/tr11-176B-ml/tr11-176B-ml.slurm",
    """#SBATCH --nodes=2
source $WORK/start-here
OUT=$DATA_PATH/run
NHIDDEN=64
TRAIN_SAMPLES=8_000
OPTIMIZER_ARGS=" \\
    --optimizer adam --adam-beta1 0.9 --adam-beta2 0.95 --lr 6e-5 --min-lr 6e-6 \\
    --lr-decay-style cosine --lr-decay-samples 8_000 --lr-warmup-samples 160 \\
    --clip-grad 1.0 --weight-decay 1e-1 \\
    "
# for the long queue
#    --exit-duration-in-mins 1190 \\
EXIT_OPTS=" \\
    --exit-duration-in-mins 5990 \\
    "
GPT_ARGS=" \\
    --pp-partition-method 'type:transformer|embedding' \\
    --num-layers 4 --hidden-size $NHIDDEN --num-attention-heads 4 --seq-length 64 \\
    --micro-batch-size 2 --rampup-batch-size 2 2 100 --global-batch-size 8 \\
    --train-samples $TRAIN_SAMPLES --tokenizer-type PretrainedFromHF \\
    --tokenizer-name-or-path some/tokenizer --init-method-std 0.0048 --embed-layernorm \\
    --bf16 --seed 42 --position-embedding-type alibi --checkpoint-activations \\
    --kill-switch-path /tmp/kill --pad-vocab-size-to 256 \\
    $OPTIMIZER_ARGS $EXIT_OPTS \\
    "
config_json="./ds_config.$SLURM_JOB_ID.json"
cat <<EOT > $config_json
{ "zero_optimization": { "stage": 0, "it's": "(unbalanced" } }
EOT
DEEPSPEED_ARGS=" --deepspeed --deepspeed_config ${config_json} --zero-stage 0"
export LAUNCHER="python -u -m torch.distributed.run --nproc_per_node 8 --max_restarts 0"
export CMD=" \\
    `pwd`/pretrain_gpt.py \\
    --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 \\
    $GPT_ARGS --save $OUT --train-weighted-split-paths-path splits.txt \\
    --num-workers 2 --data-impl mmap $DEEPSPEED_ARGS \\
    "
echo $CMD
clear; srun --wait=60 bash -c "$LAUNCHER --node_rank \\$SLURM_PROCID $CMD" 2>&1 | tee -a log.txt
""",
    {"train.steps": 1000, "optim.warmup_steps": 20, "train.seed": 42, "model.vocab_size": 256,
     "train.exit_after": "5990m", "train.recompute": True, "logging.dir": "/corpora/run",
     "optim.weight_decay": 0.1, "parallel.tp": 2},
    ("alibi", "--rampup-batch-size: 2 2 100", "--embed-layernorm", "--train-weighted-split-paths"),
    ("--pp-partition-method", "--kill-switch-path", "--deepspeed-config", "another script"),
)  # fmt: skip

LLAMA2_DS = Case(
    "microsoft/Megatron-DeepSpeed examples_deepspeed/pretrain_llama2_distributed.sh",
    """DATASET="1 ./tmp/data/books_text_sentence"
ZERO_STAGE=2
WANDB_ARGS=
if [ 0 -eq 1 ]
then
WANDB_ARGS="--wandb-project never"
fi
ds_args=""
ds_args=" --deepspeed ${ds_args}"
ds_args=" --deepspeed_config=tmp/ds.json ${ds_args}"
ds_args=" --zero-stage=$ZERO_STAGE ${ds_args}"
if [ "true" = "true" ]; then
  ds_args="--deepspeed-activation-checkpointing ${ds_args}"
  # ds_args="--checkpoint-activations ${ds_args}"
fi
torchrun --nproc_per_node 8 \\
       pretrain_gpt.py \\
       --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 \\
       --num-layers 4 --hidden-size 64 --ffn-hidden-size 160 --num-attention-heads 4 \\
       --micro-batch-size 4 --global-batch-size 32 --seq-length 128 --train-iters 2500 \\
       --data-path $DATASET --data-impl mmap \\
       --tokenizer-type GPTSentencePieceTokenizer --tokenizer-model ./tmp/tokenizer.model \\
       --lr 3e-4 --lr-decay-style cosine --min-lr 3e-5 --weight-decay 0.1 --clip-grad 1 \\
       --lr-warmup-iters 200 --optimizer adam --adam-beta1 0.9 --adam-beta2 0.95 --bf16 \\
       --no-query-key-layer-scaling --attention-dropout 0 --hidden-dropout 0 \\
       --use-rotary-position-embeddings --untie-embeddings-and-output-weights --swiglu \\
       --normalization rmsnorm --disable-bias-linear --num-key-value-heads 2 \\
       $WANDB_ARGS $ds_args
""",
    {"model.kv_heads": 2, "optim.zero_stage": 1, "data.train": "./tmp/data/books_text_sentence",
     "train.recompute": True, "optim.warmup_steps": 200, "data.tokenizer": "./tmp/tokenizer.model",
     "logging.wandb_project": ""},
    ("model.vocab_size", "test set"), ("1 instead of 2", "--data-impl", "--deepspeed"),
)  # fmt: skip

GPT_DS = Case(
    "microsoft/Megatron-DeepSpeed examples_deepspeed/rebase/ds_pretrain_gpt_1.3B.sh",
    """seq_len=128
global_batch_size=8
train_tokens_in_million=1
train_tokens=$((${train_tokens_in_million} * 1000000))
train_samples=$(( 2 * 1000000 * 2 / ${seq_len} ))
num_gpus=$(($(ds_ssh nvidia-smi --query-gpu=name --format=csv,noheader | wc -l)-2))
data_path="${DATA_PATH}/pile_text_document"
no_pp="false"
if [[ $train_tokens -gt 0 ]]; then
    job="${job}_big"
fi
options=" \\
    --override-opt_param-scheduler --adam-beta1 0.9 --adam-beta2 0.95 \\
    --tensor-model-parallel-size 2 --lr-decay-tokens ${train_tokens} \\
    --lr-warmup-tokens 102400 --micro-batch-size 2 --exit-duration-in-mins 30000000 \\
    --global-batch-size ${global_batch_size} --num-layers 2 --hidden-size 64 \\
    --num-attention-heads 4 --seq-length ${seq_len} --train-tokens ${train_tokens} \\
    --train-samples ${train_samples} --lr 2.0e-4 --min-lr 1.0e-6 --lr-decay-style cosine \\
    --hysteresis 2 --num-workers 0 --fp16 --seed 1234 --save runs/${job}"
for (( node = 0; node <= 3; node++ ))
do
    options="--hidden-size 7"
done
deepspeed pretrain_gpt.py ${options} --data-path ${data_path} --vocab-file gpt2-vocab.json \\
    --merge-file m.txt --deepspeed --zero-stage 1 --no-pipeline-parallel &>> log
""",
    {"train.steps": 976, "optim.warmup_steps": 100, "train.exit_after": "30000000m",
     "data.train": "/corpora/pile_text_document", "model.width": 64, "optim.zero_stage": 1},
    ("--override-opt-param-scheduler", "--fp16"),
    ("--train-tokens is reached first", "a loop is not run", "--hysteresis"),
)  # fmt: skip

FPDT = Case(
    "microsoft/Megatron-DeepSpeed examples_deepspeed/sequence_parallel/"
    "ds_pretrain_gpt_6.7B_fpdt_32k.sh",
    """sp=4
opts="--ds-sequence-parallel-size ${sp} --ds-sequence-parallel-fpdt \\
  --ds-sequence-parallel-fpdt-chunk-size 64 --num-layers 2 --hidden-size 64 \\
  --num-attention-heads 4 --seq-length 256 --micro-batch-size 1 --global-batch-size 2 \\
  --train-iters 10 --lr 1e-4 --use-rotary-position-embeddings --rotary-percent 0.25 \\
  --rotary-position-embeddings-theta 100000000 --use-flash-attn-v2 --bf16"
deepspeed pretrain_gpt.py $opts --data-path books --vocab-size 200 --deepspeed --zero-stage 3 \\
  --deepspeed-activation-checkpointing --checkpoint-in-cpu 2>&1 | tee log
""",
    {"parallel.cp": 4, "parallel.ulysses": 4, "model.rotary_fraction": 0.25,
     "model.rope_theta": 1e8, "optim.zero_stage": 3, "train.offload": True},
    (), ("--ds-sequence-parallel-fpdt", "--use-flash-attn-v2"),
)  # fmt: skip

LLMJP = Case(
    "llm-jp/Megatron-LM scripts/mdx/llm-jp-llama-2-13b",
    """source .env/bin/activate
DATASET_DIR=data/bin
TRAIN_DATA_PATH=""
TRAIN_DATA_PATH="${TRAIN_DATA_PATH} 1442858730 ${DATASET_DIR}/ja/wiki_text"
TRAIN_DATA_PATH="${TRAIN_DATA_PATH} 4697570389 ${DATASET_DIR}/en/wiki_text"
python -m torch.distributed.launch pretrain_gpt.py --num-layers 2 --hidden-size 64 \\
  --num-attention-heads 4 --seq-length 64 --micro-batch-size 1 --global-batch-size 4 \\
  --train-iters 10 --lr 3e-4 --lr-decay-style WSD --lr-wsd-decay-iters 4 \\
  --lr-wsd-decay-style minus_sqrt --data-path ${TRAIN_DATA_PATH} --vocab-size 90 \\
  --reset-position-ids --reset-attention-mask --eod-mask-loss --optimizer muon \\
  --muon-momentum 0.9 --use-mpi --wandb-project "jp" --bf16 \\
  --decoder-first-pipeline-num-layers 1
""",
    {"optim.schedule": "wsd", "optim.decay_steps": 4, "data.document_mask": True,
     "optim.optimizer": "muon", "optim.momentum": 0.9, "logging.wandb_project": "jp",
     "optim.zero_stage": 0},
    ("minus_sqrt there; linear", "--use-mpi: not known"), ("--decoder-first",),
)  # fmt: skip

SWIFT = Case(
    "modelscope/ms-swift examples/train/megatron/pretrain.sh",
    """NPROC_PER_NODE=4 \\
CUDA_VISIBLE_DEVICES=0,1,2,3 \\
megatron pt \\
    --load Some-Model --dataset some/corpus --streaming true --packing true \\
    --num_layers 2 --hidden_size 64 --num_attention_heads 4 --tensor_model_parallel_size 4 \\
    --micro_batch_size 1 --global_batch_size 16 --recompute_granularity selective \\
    --train_iters 100 --eval_iters 10 --lr 1e-5 --lr_warmup_iters 30 --min_lr 1e-6 \\
    --seq_length 128 --sequence_parallel true --use_flash_attn true --untie_embeddings false
""",
    {"parallel.tp": 4, "train.recompute": True, "optim.warmup_steps": 30, "train.dtype": "fp32"},
    ("--load: Megatron's checkpoints", "--dataset: not known", "--streaming: not known"),
    ("--sequence-parallel",),
)  # fmt: skip

CASES = {
    name.lower(): case
    for name, case in {
        "gpt3": GPT3, "llama3": LLAMA3, "mixtral": MIXTRAL, "qwen": QWEN, "fsdp": FSDP,
        "yaml": TEST_YAML, "bloom": BLOOM, "llama2_deepspeed": LLAMA2_DS,
        "gpt_deepspeed": GPT_DS, "fpdt": FPDT, "llm_jp": LLMJP, "swift": SWIFT,
    }.items()
}  # fmt: skip
