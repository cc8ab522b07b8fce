"""The run folder: what is in it, how it is written and read, and where the tunnel starts. No torch."""

from tunnel_lightning.runs.analysis import (
    Analysis,
    SimilarityMap,
    analysis_folder,
    load_analysis,
    write_analysis,
)
from tunnel_lightning.runs.comparison import Comparison, is_comparison, load_comparison
from tunnel_lightning.runs.curves import (
    PROBES,
    Curve,
    curve,
    id_dataset,
    network_accuracy,
    ood_datasets,
    probe_variant,
)
from tunnel_lightning.runs.files import (
    machine_info,
    new_run_folder,
    package_versions,
    read_manifest,
    run_id_of,
    write_manifest,
)
from tunnel_lightning.runs.intervals import wilson
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
    "PROBES",
    "PROFILE_FILE",
    "RULES",
    "SCHEMA_VERSION",
    "Analysis",
    "Comparison",
    "Curve",
    "LayerInfo",
    "ProfileTable",
    "Row",
    "Run",
    "RunError",
    "SimilarityMap",
    "Tunnel",
    "analysis_folder",
    "curve",
    "id_dataset",
    "is_comparison",
    "load_analysis",
    "load_comparison",
    "load_run",
    "machine_info",
    "network_accuracy",
    "new_run_folder",
    "ood_datasets",
    "package_versions",
    "probe_variant",
    "read_layers",
    "read_manifest",
    "run_id_of",
    "tunnel_start",
    "tunnels",
    "wilson",
    "write_analysis",
    "write_layers",
    "write_manifest",
]
