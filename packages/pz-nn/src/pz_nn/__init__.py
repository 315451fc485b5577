"""Declarative, named-axis neural network layers that are plain JAX pytrees."""

from pz_nn.attention import Attention as Attention
from pz_nn.attention import KVCachingAttention as KVCachingAttention
from pz_nn.attention_bias import ApplyALiBi as ApplyALiBi
from pz_nn.attention_bias import ApplyAttentionBias as ApplyAttentionBias
from pz_nn.attention_bias import SoftmaxWithSink as SoftmaxWithSink
from pz_nn.attention_bias import alibi_slopes as alibi_slopes
from pz_nn.attention_masks import ApplyAttentionMask as ApplyAttentionMask
from pz_nn.attention_masks import ApplyBidirectionalAttentionMask as ApplyBidirectionalAttentionMask
from pz_nn.attention_masks import ApplyCausalAttentionMask as ApplyCausalAttentionMask
from pz_nn.attention_masks import (
    ApplyCausalSlidingWindowAttentionMask as ApplyCausalSlidingWindowAttentionMask,
)
from pz_nn.attention_masks import ApplyExplicitAttentionMask as ApplyExplicitAttentionMask
from pz_nn.attention_masks import (
    ApplyPackedDocumentAttentionMask as ApplyPackedDocumentAttentionMask,
)
from pz_nn.attention_masks import ApplyPrefixAttentionMask as ApplyPrefixAttentionMask
from pz_nn.attention_masks import (
    ApplySlidingWindowWithSinksAttentionMask as ApplySlidingWindowWithSinksAttentionMask,
)
from pz_nn.basic_ops import CastToDType as CastToDType
from pz_nn.basic_ops import Elementwise as Elementwise
from pz_nn.basic_ops import Softmax as Softmax
from pz_nn.basic_ops import TanhSoftCap as TanhSoftCap
from pz_nn.batch_norm import BatchNorm as BatchNorm
from pz_nn.batch_norm import InferenceBatchNorm as InferenceBatchNorm
from pz_nn.batch_norm import TrainingBatchNorm as TrainingBatchNorm
from pz_nn.block_edits import ForSomeBlocks as ForSomeBlocks
from pz_nn.block_edits import edit_blocks as edit_blocks
from pz_nn.checkpointing import CheckpointName as CheckpointName
from pz_nn.combinators import BranchAndAddTogether as BranchAndAddTogether
from pz_nn.combinators import BranchAndMultiplyTogether as BranchAndMultiplyTogether
from pz_nn.combinators import ConcatBranches as ConcatBranches
from pz_nn.combinators import Residual as Residual
from pz_nn.contraction import NamedEinsum as NamedEinsum
from pz_nn.contraction import contract as contract
from pz_nn.convolution import Conv as Conv
from pz_nn.convolution import ConvOperator as ConvOperator
from pz_nn.convolution import ConvTranspose as ConvTranspose
from pz_nn.convolution import ConvTransposeOperator as ConvTransposeOperator
from pz_nn.dropout import DisabledDropout as DisabledDropout
from pz_nn.dropout import StochasticDropout as StochasticDropout
from pz_nn.dropout import maybe_dropout as maybe_dropout
from pz_nn.embeddings import ApplyRoPE as ApplyRoPE
from pz_nn.embeddings import ApplyRoPEToSubset as ApplyRoPEToSubset
from pz_nn.embeddings import EmbeddingDecode as EmbeddingDecode
from pz_nn.embeddings import EmbeddingLookup as EmbeddingLookup
from pz_nn.embeddings import EmbeddingTable as EmbeddingTable
from pz_nn.fused_attention import FusedAttentionError as FusedAttentionError
from pz_nn.fused_attention import FusedMixValues as FusedMixValues
from pz_nn.fused_attention import PendingAttention as PendingAttention
from pz_nn.fused_attention import PrepareAttention as PrepareAttention
from pz_nn.fused_attention import use_fused_attention as use_fused_attention
from pz_nn.gated import GatedMLP as GatedMLP
from pz_nn.group_norm import GroupNorm as GroupNorm
from pz_nn.group_norm import GroupStandardize as GroupStandardize
from pz_nn.grouping import CheckedSequential as CheckedSequential
from pz_nn.grouping import CheckStructure as CheckStructure
from pz_nn.grouping import Identity as Identity
from pz_nn.grouping import NamedGroup as NamedGroup
from pz_nn.grouping import Sequential as Sequential
from pz_nn.grouping import inline_anonymous_sequentials as inline_anonymous_sequentials
from pz_nn.grouping import inline_groups as inline_groups
from pz_nn.grouping import is_anonymous_sequential as is_anonymous_sequential
from pz_nn.grouping import is_sequential_or_named as is_sequential_or_named
from pz_nn.initializers import constant_initializer as constant_initializer
from pz_nn.initializers import he_normal_initializer as he_normal_initializer
from pz_nn.initializers import he_uniform_initializer as he_uniform_initializer
from pz_nn.initializers import initializer_by_name as initializer_by_name
from pz_nn.initializers import lecun_normal_initializer as lecun_normal_initializer
from pz_nn.initializers import lecun_uniform_initializer as lecun_uniform_initializer
from pz_nn.initializers import normal_initializer as normal_initializer
from pz_nn.initializers import orthogonal_initializer as orthogonal_initializer
from pz_nn.initializers import truncated_normal_initializer as truncated_normal_initializer
from pz_nn.initializers import variance_scaling_initializer as variance_scaling_initializer
from pz_nn.initializers import xavier_normal_initializer as xavier_normal_initializer
from pz_nn.initializers import xavier_uniform_initializer as xavier_uniform_initializer
from pz_nn.initializers import zero_initializer as zero_initializer
from pz_nn.kv_cache import CachingLayer as CachingLayer
from pz_nn.kv_cache import KVCacheOverflowError as KVCacheOverflowError
from pz_nn.kv_cache import kv_cache_overflows as kv_cache_overflows
from pz_nn.layer import Layer as Layer
from pz_nn.layer_stack import LayerStack as LayerStack
from pz_nn.layer_stack import LayerStackGetAttrKey as LayerStackGetAttrKey
from pz_nn.layer_stack import LayerStackVarBehavior as LayerStackVarBehavior
from pz_nn.layer_stack import layerstack_axes_from_keypath as layerstack_axes_from_keypath
from pz_nn.linear_and_affine import AddBias as AddBias
from pz_nn.linear_and_affine import Affine as Affine
from pz_nn.linear_and_affine import ConstantRescale as ConstantRescale
from pz_nn.linear_and_affine import Linear as Linear
from pz_nn.linear_and_affine import LinearInPlace as LinearInPlace
from pz_nn.linear_and_affine import (
    LinearOperatorWeightInitializer as LinearOperatorWeightInitializer,
)
from pz_nn.linear_and_affine import RenameAxes as RenameAxes
from pz_nn.mixture_of_experts import ExpertLinear as ExpertLinear
from pz_nn.mixture_of_experts import MixtureOfExperts as MixtureOfExperts
from pz_nn.parameters import DuplicateParameterNameError as DuplicateParameterNameError
from pz_nn.parameters import ParameterLike as ParameterLike
from pz_nn.parameters import assert_no_parameter_slots as assert_no_parameter_slots
from pz_nn.parameters import derive_param_key as derive_param_key
from pz_nn.parameters import make_parameter as make_parameter
from pz_nn.parameters import unique_parameter_names as unique_parameter_names
from pz_nn.pooling import AveragePool as AveragePool
from pz_nn.pooling import MaxPool as MaxPool
from pz_nn.position_embeddings import AddLearnedPositions as AddLearnedPositions
from pz_nn.position_embeddings import AddSinusoidalPositions as AddSinusoidalPositions
from pz_nn.quantized import Int8Linear as Int8Linear
from pz_nn.quantized import quantize_linear as quantize_linear
from pz_nn.quantized import quantize_linears as quantize_linears
from pz_nn.recurrent import GRUCell as GRUCell
from pz_nn.recurrent import LSTMCell as LSTMCell
from pz_nn.recurrent import RecurrentCell as RecurrentCell
from pz_nn.recurrent import ScanOver as ScanOver
from pz_nn.ring_cache import RingKVCachingAttention as RingKVCachingAttention
from pz_nn.rope_scaling import DefaultScaling as DefaultScaling
from pz_nn.rope_scaling import DynamicScaling as DynamicScaling
from pz_nn.rope_scaling import LinearScaling as LinearScaling
from pz_nn.rope_scaling import Llama3Scaling as Llama3Scaling
from pz_nn.rope_scaling import LongRoPEScaling as LongRoPEScaling
from pz_nn.rope_scaling import RoPEScaling as RoPEScaling
from pz_nn.rope_scaling import YarnScaling as YarnScaling
from pz_nn.side_inputs import TakeSideInput as TakeSideInput
from pz_nn.stack_surgery import SuperBlock as SuperBlock
from pz_nn.stack_surgery import restack as restack
from pz_nn.stack_surgery import unstack as unstack
from pz_nn.standardization import ComputeInDType as ComputeInDType
from pz_nn.standardization import LayerNorm as LayerNorm
from pz_nn.standardization import RMSLayerNorm as RMSLayerNorm
from pz_nn.standardization import RMSStandardize as RMSStandardize
from pz_nn.standardization import ScaleWithOffset as ScaleWithOffset
from pz_nn.standardization import Standardize as Standardize
from pz_nn.training_mode import set_training as set_training

__all__ = [
    "AddBias",
    "AddLearnedPositions",
    "AddSinusoidalPositions",
    "Affine",
    "ApplyALiBi",
    "ApplyAttentionBias",
    "ApplyAttentionMask",
    "ApplyBidirectionalAttentionMask",
    "ApplyCausalAttentionMask",
    "ApplyCausalSlidingWindowAttentionMask",
    "ApplyExplicitAttentionMask",
    "ApplyPackedDocumentAttentionMask",
    "ApplyPrefixAttentionMask",
    "ApplyRoPE",
    "ApplyRoPEToSubset",
    "ApplySlidingWindowWithSinksAttentionMask",
    "Attention",
    "AveragePool",
    "BatchNorm",
    "BranchAndAddTogether",
    "BranchAndMultiplyTogether",
    "CachingLayer",
    "CastToDType",
    "CheckStructure",
    "CheckedSequential",
    "CheckpointName",
    "ComputeInDType",
    "ConcatBranches",
    "ConstantRescale",
    "Conv",
    "ConvOperator",
    "ConvTranspose",
    "ConvTransposeOperator",
    "DefaultScaling",
    "DisabledDropout",
    "DuplicateParameterNameError",
    "DynamicScaling",
    "Elementwise",
    "EmbeddingDecode",
    "EmbeddingLookup",
    "EmbeddingTable",
    "ExpertLinear",
    "ForSomeBlocks",
    "FusedAttentionError",
    "FusedMixValues",
    "GRUCell",
    "GatedMLP",
    "GroupNorm",
    "GroupStandardize",
    "Identity",
    "InferenceBatchNorm",
    "Int8Linear",
    "KVCacheOverflowError",
    "KVCachingAttention",
    "LSTMCell",
    "Layer",
    "LayerNorm",
    "LayerStack",
    "LayerStackGetAttrKey",
    "LayerStackVarBehavior",
    "Linear",
    "LinearInPlace",
    "LinearOperatorWeightInitializer",
    "LinearScaling",
    "Llama3Scaling",
    "LongRoPEScaling",
    "MaxPool",
    "MixtureOfExperts",
    "NamedEinsum",
    "NamedGroup",
    "ParameterLike",
    "PendingAttention",
    "PrepareAttention",
    "RMSLayerNorm",
    "RMSStandardize",
    "RecurrentCell",
    "RenameAxes",
    "Residual",
    "RingKVCachingAttention",
    "RoPEScaling",
    "ScaleWithOffset",
    "ScanOver",
    "Sequential",
    "Softmax",
    "SoftmaxWithSink",
    "Standardize",
    "StochasticDropout",
    "SuperBlock",
    "TakeSideInput",
    "TanhSoftCap",
    "TrainingBatchNorm",
    "YarnScaling",
    "alibi_slopes",
    "assert_no_parameter_slots",
    "constant_initializer",
    "contract",
    "derive_param_key",
    "edit_blocks",
    "he_normal_initializer",
    "he_uniform_initializer",
    "initializer_by_name",
    "inline_anonymous_sequentials",
    "inline_groups",
    "is_anonymous_sequential",
    "is_sequential_or_named",
    "kv_cache_overflows",
    "layerstack_axes_from_keypath",
    "lecun_normal_initializer",
    "lecun_uniform_initializer",
    "make_parameter",
    "maybe_dropout",
    "normal_initializer",
    "orthogonal_initializer",
    "quantize_linear",
    "quantize_linears",
    "restack",
    "set_training",
    "truncated_normal_initializer",
    "unique_parameter_names",
    "unstack",
    "use_fused_attention",
    "variance_scaling_initializer",
    "xavier_normal_initializer",
    "xavier_uniform_initializer",
    "zero_initializer",
]
