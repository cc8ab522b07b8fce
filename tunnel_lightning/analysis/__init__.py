"""From a run folder, or any network, to the whole depth profile and its report."""
