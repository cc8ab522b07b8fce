"""What the page of a folder shows, by key."""

from tunnel_lightning.report.build import _page


def items(folder, kind):
    """Charts, maps, scatters or tables."""
    return {i.key: i for section in _page([folder])[0].sections for i in section.items if isinstance(i, kind)}
