"""The run folder: what is in it, how it is written and read, and where the tunnel starts. No torch."""

from tunnel_lightning.runs.curves import Curve, curve, id_dataset, network_accuracy, ood_datasets
from tunnel_lightning.runs.files import (
    machine_info,
    new_run_folder,
    package_versions,
    read_manifest,
    run_id_of,
    write_manifest,
)
from tunnel_lightning.runs.reader import Run, load_run
from tunnel_lightning.runs.schema import (
    INPUT,
    LAYERS_FILE,
    MANIFEST_FILE,
    NETWORK,
    PROFILE_FILE,
    SCHEMA_VERSION,
    LayerInfo,
    Row,
    RunError,
)
from tunnel_lightning.runs.table import ProfileTable, read_layers, write_layers
from tunnel_lightning.runs.tunnel import RULES, Tunnel, tunnel_start, tunnels

__all__ = [
    "INPUT",
    "LAYERS_FILE",
    "MANIFEST_FILE",
    "NETWORK",
    "PROFILE_FILE",
    "RULES",
    "SCHEMA_VERSION",
    "Curve",
    "LayerInfo",
    "ProfileTable",
    "Row",
    "Run",
    "RunError",
    "Tunnel",
    "curve",
    "id_dataset",
    "load_run",
    "machine_info",
    "network_accuracy",
    "new_run_folder",
    "ood_datasets",
    "package_versions",
    "read_layers",
    "read_manifest",
    "run_id_of",
    "tunnel_start",
    "tunnels",
    "write_layers",
    "write_manifest",
]
