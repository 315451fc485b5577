"""Immutable pytree structs, selectors and variables for JAX models."""

from pz_core.auto_order_types import AutoOrderedAcrossTypes as AutoOrderedAcrossTypes
from pz_core.colors import color_from_string as color_from_string
from pz_core.colors import oklch_color as oklch_color
from pz_core.partitioning import NotInThisPartition as NotInThisPartition
from pz_core.partitioning import combine as combine
from pz_core.random_stream import RandomStream as RandomStream
from pz_core.selectors import Selection as Selection
from pz_core.selectors import select as select
from pz_core.struct import PyTreeDataclassSafetyError as PyTreeDataclassSafetyError
from pz_core.struct import Struct as Struct
from pz_core.struct import StructStaticMetadata as StructStaticMetadata
from pz_core.struct import is_pytree_dataclass_type as is_pytree_dataclass_type
from pz_core.struct import is_pytree_node_field as is_pytree_node_field
from pz_core.struct import pytree_dataclass as pytree_dataclass
from pz_core.tree_diff import TreeDiff as TreeDiff
from pz_core.tree_diff import diff as diff
from pz_core.tree_patch import patch as patch
from pz_core.tree_util import pretty_keystr as pretty_keystr
from pz_core.variable_transforms import variable_cond as variable_cond
from pz_core.variable_transforms import variable_grad as variable_grad
from pz_core.variable_transforms import variable_remat as variable_remat
from pz_core.variable_transforms import variable_scan as variable_scan
from pz_core.variable_transforms import variable_value_and_grad as variable_value_and_grad
from pz_core.variable_transforms import variable_vmap as variable_vmap
from pz_core.variables import AbstractVariable as AbstractVariable
from pz_core.variables import AbstractVariableSlot as AbstractVariableSlot
from pz_core.variables import AbstractVariableValue as AbstractVariableValue
from pz_core.variables import AutoStateVarLabel as AutoStateVarLabel
from pz_core.variables import ClosedOverVariableError as ClosedOverVariableError
from pz_core.variables import LabeledVariable as LabeledVariable
from pz_core.variables import LabeledVariableValue as LabeledVariableValue
from pz_core.variables import Parameter as Parameter
from pz_core.variables import ParameterSlot as ParameterSlot
from pz_core.variables import ParameterValue as ParameterValue
from pz_core.variables import ScopedStateVarLabel as ScopedStateVarLabel
from pz_core.variables import StateVariable as StateVariable
from pz_core.variables import StateVariableSlot as StateVariableSlot
from pz_core.variables import StateVariableValue as StateVariableValue
from pz_core.variables import UnboundVariableError as UnboundVariableError
from pz_core.variables import VariableConflictError as VariableConflictError
from pz_core.variables import VariableLabel as VariableLabel
from pz_core.variables import bind_variables as bind_variables
from pz_core.variables import freeze_params as freeze_params
from pz_core.variables import freeze_state_vars as freeze_state_vars
from pz_core.variables import freeze_variables as freeze_variables
from pz_core.variables import scoped_auto_state_var_labels as scoped_auto_state_var_labels
from pz_core.variables import unbind_params as unbind_params
from pz_core.variables import unbind_state_vars as unbind_state_vars
from pz_core.variables import unbind_variables as unbind_variables
from pz_core.variables import variable_jit as variable_jit

__all__ = [
    "AbstractVariable",
    "AbstractVariableSlot",
    "AbstractVariableValue",
    "AutoOrderedAcrossTypes",
    "AutoStateVarLabel",
    "ClosedOverVariableError",
    "LabeledVariable",
    "LabeledVariableValue",
    "NotInThisPartition",
    "Parameter",
    "ParameterSlot",
    "ParameterValue",
    "PyTreeDataclassSafetyError",
    "RandomStream",
    "ScopedStateVarLabel",
    "Selection",
    "StateVariable",
    "StateVariableSlot",
    "StateVariableValue",
    "Struct",
    "StructStaticMetadata",
    "TreeDiff",
    "UnboundVariableError",
    "VariableConflictError",
    "VariableLabel",
    "bind_variables",
    "color_from_string",
    "combine",
    "diff",
    "freeze_params",
    "freeze_state_vars",
    "freeze_variables",
    "is_pytree_dataclass_type",
    "is_pytree_node_field",
    "oklch_color",
    "patch",
    "pretty_keystr",
    "pytree_dataclass",
    "scoped_auto_state_var_labels",
    "select",
    "unbind_params",
    "unbind_state_vars",
    "unbind_variables",
    "variable_cond",
    "variable_grad",
    "variable_jit",
    "variable_remat",
    "variable_scan",
    "variable_value_and_grad",
    "variable_vmap",
]
